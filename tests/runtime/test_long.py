"""What takes longer: ten thousand steps, a large batch, another layout."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from moshijax import lm, runtime
from moshijax.export import artifact
from moshijax.runtime import audio
from moshijax.runtime.play import play
from moshijax.testing import tiny
from moshijax.tokens import UNGENERATED
from tools.soak.runtime import soak


@pytest.mark.slow
def test_ten_thousand_steps(artifact_dir):
    """No error, no compilation, no growing memory. `python -m tools.soak.runtime` runs a hundred thousand."""
    figures = soak(runtime.Rows(runtime.load(artifact_dir), 1), steps=10_000, report_every=1000)
    assert figures["compilations"] == 0 and figures["calls"] > 5
    # Between a tenth of the way and the end: allocator noise, not growth (1 KiB a step would be 9 MiB).
    assert figures["memory_growth_mib"] < 4


@pytest.mark.slow
def test_rows_of_a_large_batch_are_alike(models, tmp_path):
    """More rows than the matrix-vector path takes, and a number that no vector width divides: still bit for bit."""
    made = artifact.build(*models, tmp_path / "artifact", batches=(13,), prefill_lengths=(4,))
    rows = runtime.Rows(runtime.load(made), 13, prompts=False)
    random = np.random.RandomState(0)
    wave, *others = [(random.randn(640 * n) * 0.3).astype(np.float32) for n in (40, *random.randint(5, 60, 25))]
    sampling = {"temperature": 0.9, "text_temperature": 0.9, "top_k": 20, "text_top_k": 20}
    [alone], _ = play(rows, [wave], [runtime.CallOptions(5, sampling)])
    for position in (0, 6, 12):
        waves = others[:position] + [wave] + others[position:]
        seeds = [5 if w is wave else 100 + i for i, w in enumerate(waves)]
        calls, _ = play(rows, waves, [runtime.CallOptions(seed, sampling) for seed in seeds])
        np.testing.assert_array_equal(calls[position].codes, alone.codes)
        np.testing.assert_array_equal(calls[position].pcm, alone.pcm)


@pytest.mark.slow
def test_recognition_takes_audio_and_gives_text(cli, tmp_path):
    """Another layout through the same command: nothing is spoken, so there is nothing to write but text."""
    config = dataclasses.replace(tiny.LM, layout=lm.layouts.recognition(codebooks=3), depth=None)
    made = artifact.build(*tiny.tiny_models(lm_config=config), tmp_path / "artifact")
    audio.write(tmp_path / "user.wav", np.random.RandomState(0).uniform(-0.4, 0.4, (640 * 10, 1)), 8000)
    arguments = ("run", made, "--user", tmp_path / "user.wav")
    code, out, _ = cli(*arguments, "--text-out", tmp_path / "text.json")
    assert code == 0 and "wrote" not in out
    assert (
        json.loads((tmp_path / "text.json").read_text())["timing"]["steps"] == 10
    )  # column 0 came with the priming step
    code, _, err = cli(*arguments, "--out", tmp_path / "reply.wav")
    assert code == 2 and "has no audio out; omit --out" in err
    loaded = runtime.load(made)
    assert not loaded.speaks and loaded.hears
    [heard], _ = play(runtime.Rows(loaded, 1, prompts=False), [np.zeros(640 * 4, np.float32)])
    assert heard.pcm is None and heard.codes.shape == (4, 4) and (heard.codes[1:] == UNGENERATED).all()
    assert heard.text_tokens[0] == UNGENERATED and (heard.text_tokens[1:] >= 0).all()
