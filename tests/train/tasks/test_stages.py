"""The stages of training one after the other, each by the tiny twin of its recipe, from text to a released model."""

from __future__ import annotations

import dataclasses
import re

import jax
import numpy as np
import pytest
from click.testing import CliRunner
from flax.traverse_util import flatten_dict

from moshijax import config
from moshijax.cli.main import cli
from moshijax.errors import ConfigError
from moshijax.train.loop import train
from moshijax.train.run.checkpoint import Checkpointer
from moshijax.train.run.run_dir import RunDir
from moshijax.train.sharding import path_of
from moshijax.weights.opening import open_model
from moshijax.weights.run import load_run
from moshijax.weights.run_files import read_metrics
from tests.train.support.grids import write_dialogues, write_text, write_tokenizer
from tests.train.support.models import batches_of

TWO = ("diarized", "fisher", "instruct", "calls", "calls_heldout")
STAGES = (
    "helium",
    "pretraining",
    "post_training",
    "fisher",
    "instruct",
    "recognition",
    "synthesis",
    "finetuning",
    "lora",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """All stages trained, each from the one that its recipe names; the folder of the runs."""
    folder = tmp_path_factory.mktemp("stages")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "prepared").mkdir()
        for name in TWO:
            write_dialogues(folder / "prepared" / name, count=12, codebooks=2)
        write_dialogues(folder / "prepared" / "mixed", count=12, codebooks=2, channels=("mixed",))
        tokenizer = write_tokenizer(folder / "tokenizer.model")
        for name in ("text", "text_heldout"):
            write_text(folder / "prepared" / name, tokenizer)
        for stage in STAGES:
            train(config.load(recipe_of(stage)), folder / "runs" / stage)
    return folder / "runs"


def recipe_of(stage):
    return f"nano/{stage}.gin"


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_learns(runs, stage):
    lines = read_metrics(runs / stage / "metrics.jsonl")
    name = "train_text/loss" if stage == "helium" else "train/loss"
    found = [line[name] for line in lines if name in line]
    assert len(found) == 4 and found[-1] < found[0]
    made = config.load(recipe_of(stage))
    text_steps = sum("train_text/loss" in line for line in lines)
    shares = {kind.name: kind.share for kind in made.step_kinds}
    assert bool(text_steps) == ("text" in shares)
    assert any("train/loss" in line for line in lines) == ("audio" in shares)


def test_held_out_text_is_measured_from_the_text_model_on(runs):
    """What each stage with text steps leaves of the text: the perplexity at its end."""
    for stage in ("helium", "pretraining", "post_training"):
        lines = [line for line in read_metrics(runs / stage / "metrics.jsonl") if "eval_text/loss" in line]
        assert [line["step"] for line in lines] == [20]
        assert np.exp(lines[0]["eval_text/loss"]) == pytest.approx(lines[0]["eval_text/perplexity"], rel=1e-5)
        assert lines[0]["eval_text/perplexity"] < 0.8 * config.load(recipe_of(stage)).task.model.text_card


def test_each_twin_differs_from_its_recipe_in_size_alone():
    for stage in STAGES:
        small = config.load(recipe_of(stage))
        full = config.load(f"moshi/{stage}.gin")
        assert small.task.loss == full.task.loss
        assert small.task.model.layout.delays[:2] == full.task.model.layout.delays[:2]
        for ours, theirs in zip(small.task.step_kinds(), full.task.step_kinds(), strict=True):
            assert (ours.name, ours.share) == (theirs.name, theirs.share)
            for field in ("data", "eval_data"):
                assert of_any_size(getattr(ours, field)) == of_any_size(getattr(theirs, field))
        if stage not in ("finetuning", "lora"):
            assert (small.init_from, small.init_transforms) == (full.init_from, full.init_transforms)


def of_any_size(data):
    return data and dataclasses.replace(data, batch_size=1, num_frames=1)


def test_what_came_before_is_where_a_stage_starts(runs):
    """The user's tables began as copies and the release dropped the user's steps; the released model is whole."""
    _, helium, text, *_ = load_run(runs / "helium")
    _, one, single, *_ = load_run(runs / "pretraining")
    assert helium.layout.num_streams == 1 and one.layout.delays == (0, 0, 2)
    assert set(text) == {"temporal", "out_norm", "text_embedding", "text_head"}
    _, two, both, *_ = load_run(runs / "instruct")
    _, released, last, *_ = load_run(runs / "finetuning")
    assert (two.layout.dep_q, released.layout.dep_q) == (4, 2) and released.layout.delays == (0, 0, 1, 0, 1)
    assert both["depth"]["heads"]["steps"]["kernel"].shape[0] == 4
    assert last["depth"]["heads"]["steps"]["kernel"].shape[0] == 2
    assert load_run(runs / "recognition").config.depth is None
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(last))


def test_updates_are_all_that_lora_trains(runs):
    """The weights are those of the run it starts from, in bfloat16, without optimiser state; the updates moved."""
    tree = load_run(runs / "lora").params
    flat, before = flatten_dict(tree, sep="/"), flatten_dict(load_run(runs / "instruct").params, sep="/")
    updates = {path for path in flat if path.endswith(("lora_a", "lora_b"))}
    assert len(updates) == 24 and all(np.abs(flat[path]).max() > 0 for path in updates)
    same = [path for path in flat if path not in updates and flat[path].shape == before[path].shape]
    assert "temporal/layers/mlp/up/kernel" in same
    for path in same:
        np.testing.assert_array_equal(flat[path], before[path].astype(flat[path].dtype))
        assert flat[path].dtype == "bfloat16" or "norm" in path
    run = Checkpointer(RunDir(runs / "lora"))
    saved = run._manager.item_metadata(20)["optimizer"].tree
    run.close()
    moments = [path_of(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(saved["opt_states"])]
    assert sum("lora_" in path for path in moments) == 2 * len(updates)
    assert not any("kernel" in path or "table" in path for path in moments)


def test_a_run_is_published_in_its_released_form(runs, tmp_path):
    args = ["weights", "export", str(runs / "instruct"), str(tmp_path / "moshi"), "--format", "kyutai-fused"]
    CliRunner().invoke(cli, [*args, "--release"], catch_exceptions=False)
    found = open_model(tmp_path / "moshi")
    assert (found.config.layout.dep_q, found.config.layout.num_streams) == (2, 5)
    whole = flatten_dict(load_run(runs / "instruct").params, sep="/")
    for path, leaf in flatten_dict(found.parameters(stacked=True).tree(), sep="/").items():
        kept = whole[path]  # steps and tables of the model's rows come first
        steps = path.startswith("depth/layers") and "/steps/" in path
        kept = kept[:, : leaf.shape[1]] if steps else kept[: leaf.shape[0]]
        np.testing.assert_array_equal(np.asarray(leaf, np.float32), np.asarray(kept, np.float32), err_msg=path)
    with pytest.raises(ConfigError, match="release: that model has 2 depth steps and this one 2"):
        found.family.released(found)


def test_words_are_counted_before_the_first_step(runs, monkeypatch, caplog):
    """What the placement of the text moves is said once, at the start."""
    monkeypatch.chdir(runs.parent)
    made = config.load("nano/pretraining.gin")
    with caplog.at_level("INFO", "moshijax"):
        batches_of(made, "audio")
    assert re.search(r"words of 12 recordings: 48 placed, \d+ shifted later, 0 pulled earlier, 0 tokens", caplog.text)
