"""Speech translation through the artifact against the reference's own runner: the end of the input, and of the call."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from moshijax import runtime
from moshijax.export import artifact
from moshijax.lm import policies
from moshijax.tokens import EOS
from moshijax.weights import load_lm, load_mimi
from tests.parity.weights_by_name import clip, load_fixture, write_checkpoint


def translated(folder: Path) -> dict[str, tuple[np.ndarray, list[bool]]]:
    """What the artifact says and has heard in every run of the fixture: columns `[calls, K]`, and whether it ended."""
    description, want = load_fixture("hibiki_end")
    config, params = load_lm(write_checkpoint(folder / "model", description))
    mimi, mimi_params = load_mimi(write_checkpoint(folder / "mimi", description["mimi"]))
    pieces = [f"{i}" for i in range(config.text_card)]
    models = (mimi, mimi_params), (config, params), pieces
    built = artifact.build(*models, folder / "artifact", policy=policies.Translation(), prefill_lengths=(4,))
    rows = runtime.Rows(runtime.load(built), 1, prompts=False)
    waveform = clip(description["frame_seeds"], mimi.frame_size).reshape(-1, mimi.frame_size)
    found, step = {}, rows._step
    for kind, ends in description["ends"].items():
        greedy = runtime.CallOptions(sampling={"temperature": 0, "text_temperature": 0})
        row, call = rows.open(greedy), itertools.count()

        def ending(weights, state, inputs, call=call, ends=ends):
            if next(call) in ends:
                inputs["force_text"][0] = EOS
            return step(weights, state, inputs)

        rows._step = ending
        rows.step(np.zeros((1, mimi.frame_size), np.float32))
        columns, ended = [], []
        for n in range(1, len(want[f"{kind}_out"])):  # (the first call primes the model)
            if n == 1 + len(waveform):
                rows.end_input(row)
            pcm = waveform[n - 1] if n <= len(waveform) else np.zeros(mimi.frame_size, np.float32)
            frame = rows.step(pcm[None])
            columns.append(frame.codes[row])
            ended.append(bool(frame.ended[row]))
        found[kind] = np.stack(columns), ended
        rows.close(row)
    return found


def expected(kind: str) -> np.ndarray:
    """The reference's columns: what came back, and what was heard with it."""
    _, want = load_fixture("hibiki_end")
    given, out = want[f"{kind}_given"], want[f"{kind}_out"]
    return np.concatenate([out, given], axis=1)[1:]


@pytest.mark.slow
def test_the_artifact_ends_as_the_reference(tmp_path):
    """The same columns heard, the end of the input among them, the same said; and it stops in the same call."""
    description, _ = load_fixture("hibiki_end")
    for kind, (columns, ended) in translated(tmp_path).items():
        np.testing.assert_array_equal(columns, expected(kind), err_msg=kind)
        assert ended == [False] * (len(ended) - 1) + [True], kind
        assert (columns[len(description["frame_seeds"]), -2:] == description["config"]["card"]).all()
