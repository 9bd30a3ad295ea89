"""Speech translation through the artifact against the reference's own runner: the end of the input, and of the call."""

from __future__ import annotations

import numpy as np
import pytest

from moshijax.export import artifact, runtime
from moshijax.lm import policies
from moshijax.lm.tokens import EOS
from moshijax.weights import load_lm, load_mimi
from tests.parity.weights_by_name import clip, load_fixture, write_checkpoint


@pytest.mark.slow
def test_the_artifact_ends_as_the_reference(tmp_path):
    """The same columns heard, the end of the input among them, the same said; and it stops in the same call."""
    description, want = load_fixture("hibiki_end")
    config, params = load_lm(write_checkpoint(tmp_path / "model", description))
    mimi, mimi_params = load_mimi(write_checkpoint(tmp_path / "mimi", description["mimi"]))
    pieces = [f"{i}" for i in range(config.text_card)]
    built = artifact.build(
        (mimi, mimi_params), (config, params), pieces, tmp_path / "artifact", policy=policies.Translation()
    )
    program = runtime.load(built, 1)
    waveform = clip(description["frame_seeds"], mimi.frame_size).reshape(-1, mimi.frame_size)
    for kind, ends in description["ends"].items():
        given, out = want[f"{kind}_given"], want[f"{kind}_out"]
        row = program.open(sampling={"temperature": 0, "text_temperature": 0})
        execute, call = program._execute, [0]

        def ending(name, inputs, active, execute=execute, call=call, ends=ends):
            if call[0] in ends:
                inputs["force_text"][0] = EOS
            call[0] += 1
            return execute(name, inputs, active)

        program._execute = ending
        heard, ended = [], []
        for n in range(1, len(out)):
            if n == 1 + len(waveform):
                program.end_input(row)
            pcm = waveform[n - 1] if n <= len(waveform) else np.zeros(mimi.frame_size, np.float32)
            frame = program.step(pcm[None])
            ended.append(bool(frame.ended[row]))
            if out[n, 0] == runtime.UNGENERATED:
                assert not frame.ready[row]
                continue
            np.testing.assert_array_equal(frame.codes[row][: out.shape[1]], out[n], err_msg=f"{kind}, call {n}")
            heard.append(frame.codes[row][out.shape[1] :])
        np.testing.assert_array_equal(heard, given[1 : 1 + len(heard)], err_msg=kind)
        assert (given[1 + len(waveform)] == config.card).all()
        assert ended == [False] * (len(out) - 2) + [True]
        program._execute = execute
        program.close(row)
