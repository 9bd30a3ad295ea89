"""Speech synthesis through the artifact against the reference's own engine, token for token."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from moshijax import lm, runtime
from moshijax.export import artifact
from moshijax.lm import policies
from moshijax.testing import tiny
from moshijax.tokens import UNGENERATED
from moshijax.weights import load_lm
from tests.parity.weights_by_name import load_fixture, write_checkpoint

CODEC = dataclasses.replace(tiny.CODEC, quantizer=dataclasses.replace(tiny.CODEC.quantizer, bins=24))


def spoken(name: str, folder: Path) -> tuple[np.ndarray, list[list[list]]]:
    """What the artifact says to the script of a fixture: columns `[B, K, T]` and, per row, its words and their columns.

    The columns of a prefix that are not returned hold UNGENERATED.
    """
    description, want = load_fixture(name)
    settings, rows = description["settings"], len(description["scripts"])
    config, params = load_lm(write_checkpoint(folder / "model", description))
    codec_model, _, pieces = tiny.tiny_models(lm_config=config, codec_config=CODEC)
    voiced = "speaker_wavs" in want
    voices = [(want["speaker_wavs"][row], want["speaker_wavs_mask"][row]) for row in range(rows)] if voiced else []
    delay, prefixed = settings["delay_steps"], "prefix_0" in want
    out = artifact.build(
        codec_model,
        (config, params),
        pieces,
        folder / "speech",
        batches=(rows,),
        policy=policies.Synthesis(delay, settings["second_stream_ahead"], max_padding=settings["max_padding"]),
        guidance=lm.Guidance(description["guidance"], text=False) if prefixed else None,
        conditions={"speaker_wavs": voices[0]} if voiced else None,
        prefill_lengths=(4,),
    )
    batch = runtime.Rows(runtime.load(out), rows)
    greedy = {"temperature": 0, "text_temperature": 0, "pad_bonus": settings["padding_bonus"]}
    opened = []
    for row, script in enumerate(description["scripts"]):
        prompt, first = None, 0
        if prefixed:
            prefix = want[f"prefix_{row}"]
            first = prefix.shape[1] + delay
            prompt = np.full((len(prefix), first), UNGENERATED, np.int32)
            prompt[0, : prefix.shape[1]], prompt[1:, delay:] = prefix[0], prefix[1:]
        conditions = {"control": ("ok", "no")[row], **({"speaker_wavs": voices[row]} if voiced else {})}
        words = [runtime.ScriptWord(word["text"], tuple(word["tokens"]), word["padding"]) for word in script]
        opened.append(batch.open(runtime.CallOptions(0, greedy, conditions, prompt, null_until=first)))
        batch.say(opened[-1], words, done=True)
    found = np.full(want["frames"].shape, UNGENERATED)
    while (found[:, 0, -1] == UNGENERATED).any():
        frame = batch.step()
        for row in range(rows):
            column = int(frame.index[row])
            if 0 <= column < found.shape[2]:
                found[row, :, column] = frame.codes[row]
                # There is nothing to hear before the audio begins.
                assert (np.abs(frame.pcm[row]).max() > 0) == (column >= delay)
    return found, [[list(word) for word in batch.spoken(row)] for row in opened]


def expected(name: str) -> tuple[np.ndarray, np.ndarray]:
    """The reference's columns, and which of them are returned `[B, T]`."""
    description, want = load_fixture(name)
    columns = np.arange(want["frames"].shape[2])
    delay = description["settings"]["delay_steps"]
    firsts = [want[f"prefix_{row}"].shape[1] + delay if "prefix_0" in want else 1 for row in range(len(want["frames"]))]
    return want["frames"], columns >= np.array(firsts)[:, None]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tts_voice", "tts_prefix"])
def test_the_artifact_speaks_as_the_reference(name, tmp_path):
    frames, transcripts = spoken(name, tmp_path)
    want, returned = expected(name)
    assert (returned.sum(1) > 20).all()
    there = frames[:, 0] != UNGENERATED
    assert (there | ~returned).all()
    np.testing.assert_array_equal(frames.swapaxes(1, 2)[there], want.swapaxes(1, 2)[there])
    assert transcripts == load_fixture(name)[0]["transcripts"]
