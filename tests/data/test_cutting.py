"""Pieces of long channels: where they end, what they hold, and how much of a recording is held at once."""

from __future__ import annotations

import functools
import tracemalloc

import numpy as np
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from moshijax.data import audio, cutting
from moshijax.data.signal import SPEECH_RMS

RATE = 16_000


def speech(*bursts: tuple[int, int], frames: int) -> np.ndarray:
    levels = np.zeros(frames, np.float32)
    for first, stop in bursts:
        levels[first:stop] = 0.1
    return levels


def test_a_short_channel_is_one_piece_and_one_without_speech_none():
    assert cutting.cut(speech((3, 5), frames=100), 100) == [(0, 100)]
    assert cutting.cut(np.zeros(100, np.float32), 40) == [] == cutting.cut(np.zeros(0, np.float32), 40)
    assert cutting.cut(np.full(100, 0.9 * SPEECH_RMS), 40) == []


def test_a_channel_is_cut_in_its_pauses():
    # A pause around 80, which is in the second half of the first piece, and one around 30, which is not.
    levels = speech((0, 20), (40, 70), (90, 130), frames=130)
    (first, second) = cutting.cut(levels, 100)
    assert first[0] == 0 and 70 < first[1] < 90 and second == (first[1], 130)
    # Over noise as loud as speech the pause is still where it is quietest.
    assert cutting.cut(levels + 0.2, 100)[0] == first


@given(st.lists(st.floats(0, 1, width=32), max_size=300), st.integers(2, 120))
def test_pieces_are_short_and_hold_everything_that_sounds(levels, longest):
    levels = np.array(levels, np.float32)
    spans = cutting.cut(levels, longest)
    assert all(0 < stop - first <= longest for first, stop in spans)
    assert all(before[1] <= after[0] for before, after in zip(spans, spans[1:]))
    inside = np.zeros(len(levels), bool)
    for first, stop in spans:
        inside[first:stop] = True
    assert not (levels[~inside] > SPEECH_RMS).any()


def test_pieces_are_the_samples_of_their_channel(tmp_path):
    signal = np.random.default_rng(0).uniform(-0.5, 0.5, (RATE * 25 + 7, 2)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", signal, RATE, subtype="FLOAT")
    spans = [(0, 40), (40, 90), (400, 900), (1000, 1250)]
    found = list(cutting.pieces(tmp_path / "a.wav", 1, spans, RATE))
    assert [begin for begin, _ in found] == [0.0, 0.8, 8.0, 20.0]
    for (first, stop), (_, samples) in zip(spans, found, strict=True):
        np.testing.assert_array_equal(samples, signal[320 * first : 320 * stop, 1])


def test_of_a_long_recording_a_piece_and_a_block_are_held(tmp_path, monkeypatch):
    """Two minutes in pieces of 2 s and blocks of 1 s: at most 10 s of samples are in memory at once."""
    seconds = 120
    soundfile.write(tmp_path / "a.wav", np.full(RATE * seconds, 0.1, np.float32), RATE)
    monkeypatch.setattr(audio, "blocks", functools.partial(audio.blocks, block_seconds=1.0))
    spans, total = cutting.cut(np.full(50 * seconds, 0.1), 100), 0
    tracemalloc.start()
    for _, samples in cutting.pieces(tmp_path / "a.wav", 0, spans, RATE):
        total += len(samples)
    held = tracemalloc.get_traced_memory()[1] / samples.itemsize
    tracemalloc.stop()
    assert total == seconds * RATE and 2 * RATE < held < 10 * RATE
