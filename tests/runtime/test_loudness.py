"""Loudness, against what pyloudnorm 0.2.0 says of the same samples."""

from __future__ import annotations

import math

import numpy as np
import pytest

from moshijax.runtime.loudness import loudness
from moshijax.runtime.prompt import checked
from tests.parity.weights_by_name import clip


def recording():
    """Noise with a pause, which is left out, and quiet speech, which is not."""
    wave = clip(range(40), 1920)
    wave[20000:45000] *= 0.01
    return wave


def test_as_the_meter_of_the_standard_says():
    assert loudness(recording(), 24000) == pytest.approx(-9.887142723504587, abs=1e-6)
    assert loudness(recording(), 8000) == pytest.approx(-11.220449069455809, abs=1e-6)
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(48000) / 24000)
    assert loudness(tone, 24000) == pytest.approx(-9.757379682529896, abs=1e-6)


def test_silence_has_none():
    assert loudness(np.zeros(24000), 24000) == -math.inf
    assert loudness(np.ones(2000) * 0.1, 24000) == -math.inf


@pytest.mark.parametrize("peak", [0.01, 1.0])
def test_a_voice_is_brought_to_minus_24(peak):
    """Quiet and loud recordings come out alike, whatever their level was."""
    voice = recording()
    voice *= np.float32(peak) / np.abs(voice).max()
    assert loudness(checked(voice, 24000), 24000) == pytest.approx(-24, abs=1e-3)
