"""Activity: segments, what joins them, and speech by level and by Silero."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from moshijax.eval import activity
from moshijax.eval.activity import both, join, neither, of_level, segments, units
from moshijax.optional import MissingPackage


def tone(seconds: float, rate: int, *spoken: tuple[float, float]) -> np.ndarray:
    """A hum of -9 dBFS where it is spoken, and silence."""
    time = np.arange(round(seconds * rate)) / rate
    on = np.any([(start <= time) & (time < end) for start, end in spoken], axis=0)
    return (0.5 * np.sin(2 * np.pi * 220 * time) * on).astype(np.float32)


def test_segments_are_in_order_and_apart():
    assert segments([(2, 3), (0, 1), (0.5, 1.5), (1.5, 1.7), (4, 4)]).tolist() == [[0, 1.7], [2, 3]]
    assert segments([]).shape == (0, 2)


def test_units_end_at_silences_of_a_fifth_of_a_second():
    assert units(segments([(0, 1), (1.19, 2)])).tolist() == [[0, 2]]
    assert units(segments([(0, 1), (1.2, 2)])).tolist() == [[0, 1], [1.2, 2]]
    assert join(segments([(0, 1), (1.5, 2), (2.6, 3)]), 0.6).tolist() == [[0, 2], [2.6, 3]]


def test_both_and_neither_share_out_the_time():
    one, other = segments([(1, 3), (5, 6)]), segments([(2, 5.5), (7, 8)])
    assert both(one, other).tolist() == [[2, 3], [5, 5.5]]
    assert neither(one, other, 9).tolist() == [[0, 1], [6, 7], [8, 9]]
    assert neither(segments([]), segments([]), 2).tolist() == [[0, 2]]
    spoken = activity.total(one) + activity.total(other) - activity.total(both(one, other))
    assert spoken + activity.total(neither(one, other, 9)) == pytest.approx(9)


def test_level_finds_speech_to_a_frame_and_leaves_clicks_out():
    pcm = tone(3, 16_000, (0.5, 1.1), (2.0, 2.4)) + 1e-3
    pcm[24_000] = 1.0  # a click of one frame
    assert of_level(pcm, 16_000, -40).tolist() == pytest.approx(np.array([[0.5, 1.1], [2.0, 2.4]]), abs=0.021)
    assert len(of_level(pcm, 16_000, -5)) == 0
    assert of_level(tone(1, 8000, (0, 1)), 8000, -40).tolist() == [[0, 1]]


def test_silero_without_its_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with pytest.raises(MissingPackage, match=r"pip install 'moshijax\[hear\]'"):
        activity.of_silero(np.zeros(16_000, np.float32), 16_000)


def test_silero_hears_no_speech_in_a_hum():
    pytest.importorskip("faster_whisper")
    assert activity.of_silero(tone(2, 16_000, (0.5, 1.5)), 16_000).shape == (0, 2)
