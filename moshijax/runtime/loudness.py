"""Loudness of a recording in LUFS (ITU-R BS.1770-4): weighted as people hear, pauses left out."""

from __future__ import annotations

import math

import numpy as np

BLOCK_SECONDS, STEP_SECONDS = 0.4, 0.1
SILENCE, BELOW_MEAN = -70.0, -10.0  # blocks quieter than this do not count: in LUFS, and under the mean of the others


def _shelf(rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a filter with 4 dB more above 1.5 kHz, as the head has."""
    amplitude, omega = 10 ** (4.0 / 40), 2 * math.pi * 1500.0 / rate
    cos, wide = math.cos(omega), 2 * math.sqrt(amplitude) * math.sin(omega) / math.sqrt(2.0)
    more, less = amplitude + 1, amplitude - 1
    b = amplitude * np.array([more + less * cos + wide, -2 * (less + more * cos), more + less * cos - wide])
    return b, np.array([more - less * cos + wide, 2 * (less - more * cos), more - less * cos - wide])


def _high_pass(rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a filter that removes what is below 38 Hz."""
    omega = 2 * math.pi * 38.0 / rate
    cos, alpha = math.cos(omega), math.sin(omega)
    return np.array([(1 + cos) / 2, -(1 + cos), (1 + cos) / 2]), np.array([1 + alpha, -2 * cos, 1 - alpha])


def weighted(wave: np.ndarray, rate: int) -> np.ndarray:
    """Filter `wave [N]` with both filters, whose responses end within the second of silence that is put after it."""
    length = len(wave) + rate
    turn = np.exp(-2j * np.pi * np.fft.rfftfreq(length))
    spectrum = np.fft.rfft(np.asarray(wave, np.float64), length)
    for b, a in (_shelf(rate), _high_pass(rate)):
        spectrum *= np.polyval(b[::-1], turn) / np.polyval(a[::-1], turn)
    return np.fft.irfft(spectrum, length)[: len(wave)]


def loudness(wave: np.ndarray, rate: int) -> float:
    """Measure one channel `wave [N]` in LUFS; minus infinity if it is silent or shorter than a block of 0.4 s."""
    block, step = round(BLOCK_SECONDS * rate), round(STEP_SECONDS * rate)
    if len(wave) < block:
        return -math.inf
    power = np.concatenate([[0.0], np.cumsum(np.square(weighted(wave, rate)))])
    starts = np.arange(0, len(wave) - block + 1, step)
    blocks = (power[starts + block] - power[starts]) / block

    def level(power: np.ndarray) -> np.ndarray:
        return -0.691 + 10 * np.log10(np.maximum(power, 1e-12))

    heard = blocks[level(blocks) >= SILENCE]
    if not len(heard):
        return -math.inf
    heard = heard[level(heard) > level(heard.mean()) + BELOW_MEAN]
    return float(level(heard.mean()))
