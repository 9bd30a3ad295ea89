"""What a stretch of sound is known by, whatever its level, coding or start: the fingerprint of the Moshi paper.

By appendix B of arXiv 2410.00037: keypoints of a mel spectrogram (64 bands from 200 to 3000 Hz, 40 frames a second) are
where the energy is above the mean and at its greatest in a sliding window, in the band that is loudest then. Three
keypoints in a row make a key of 26 bits: 6 for each band, and 4 for the time from the one before and to the one after,
4 to 19 frames each. Where the paper gives no value, ours is marked so.

A copy that begins between two frames has other keypoints. The keys of a signal are therefore those of two spectrograms,
the second half a frame later (ours): of two copies, two spectrograms are never more than a quarter of a frame apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, Int

SAMPLE_RATE = 8000
FRAME_RATE = 40
BANDS = 64
_HOP = SAMPLE_RATE // FRAME_RATE
_WINDOW = 1024  # samples, 128 ms (ours)
_LOW, _HIGH = 200.0, 3000.0
_PEAK = 1  # frame on either side among which a keypoint is the greatest (ours)
_MEAN = 5 * FRAME_RATE  # frames on either side over which the mean is taken, of logarithms (ours)
_FLOOR = 1e-9  # energy, below that of the last bit of 16
_NEAREST, _FARTHEST = 4, 20
_OFFSETS = np.arange(_NEAREST, _FARTHEST)
_AT_ONCE = 20_000  # keypoints


def mel_filters() -> Float[np.ndarray, "bands bins"]:
    """Return triangular filters over the bins of a spectrum, at even distances in mel."""
    edges = np.linspace(_mel(_LOW), _mel(_HIGH), BANDS + 2)
    hertz = 700 * (10 ** (edges / 2595) - 1)
    bins = np.fft.rfftfreq(_WINDOW, 1 / SAMPLE_RATE)
    low, centre, high = hertz[:-2, None], hertz[1:-1, None], hertz[2:, None]
    return np.maximum(0, np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)))


def _mel(hertz: float) -> float:
    return 2595 * np.log10(1 + hertz / 700)


class _Spectrogram:
    """The loudest band of every frame of a signal that comes in blocks."""

    def __init__(self, skip: int, filters: np.ndarray):
        self._skip, self._filters = skip, filters
        self._window = np.hanning(_WINDOW)
        self._rest = np.zeros(0, np.float32)
        self._energy: list[np.ndarray] = []
        self._band: list[np.ndarray] = []

    def add(self, block: np.ndarray) -> None:
        skipped = min(self._skip, len(block))
        self._skip -= skipped
        signal = np.concatenate([self._rest, block[skipped:]])
        count = max(0, (len(signal) - _WINDOW) // _HOP + 1)
        if count:
            frames = np.lib.stride_tricks.sliding_window_view(signal, _WINDOW)[::_HOP][:count]
            energies = (np.abs(np.fft.rfft(frames * self._window)) ** 2) @ self._filters
            self._band.append(energies.argmax(axis=1))
            self._energy.append(np.log(energies.max(axis=1) + _FLOOR))
        self._rest = signal[count * _HOP :]

    def keys(self) -> tuple[np.ndarray, np.ndarray]:
        if not self._band:
            return np.zeros(0, np.uint32), np.zeros(0, np.uint32)
        band, chosen = np.concatenate(self._band), keypoints(np.concatenate(self._energy))
        found = [_triples(part, band, chosen) for part in _parts(chosen)]
        if not found:
            return np.zeros(0, np.uint32), np.zeros(0, np.uint32)
        times, keys = (np.concatenate(arrays).astype(np.uint32) for arrays in zip(*found, strict=True))
        return times, keys


def fingerprint(
    blocks: Iterable[Float[np.ndarray, "n channels"]],
) -> tuple[int, Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Return the fingerprint of a recording, of the mean of its channels, in memory of four numbers a frame.

    Args:
      blocks: of the recording at 8 kHz.

    Returns:
      The number of frames (40 a second), and of every triple the time in frames and the key, uint32, ordered by time.
    """
    filters, samples = mel_filters().T, 0
    both = _Spectrogram(0, filters), _Spectrogram(_HOP // 2, filters)
    for block in blocks:
        mono = block.mean(axis=1)
        samples += len(mono)
        for one in both:
            one.add(mono)
    times, keys = (np.concatenate(arrays) for arrays in zip(*(one.keys() for one in both), strict=True))
    order = np.argsort(times, kind="stable")
    return -(-samples // _HOP), times[order], keys[order]


def keypoints(energy: Float[np.ndarray, " T"]) -> Int[np.ndarray, " K"]:
    """Return the frames whose loudest band is above the mean around them and greater than those near them.

    Args:
      energy: of the loudest band of every frame, as logarithm.
    """
    count = len(energy)
    sums, place = np.concatenate([[0.0], np.cumsum(energy)]), np.arange(count)
    first, stop = np.maximum(place - _MEAN, 0), np.minimum(place + _MEAN + 1, count)
    mean = (sums[stop] - sums[first]) / (stop - first)
    padded = np.pad(energy, _PEAK, constant_values=-np.inf)
    near = np.lib.stride_tricks.sliding_window_view(padded, 2 * _PEAK + 1)
    # Of equal frames the first is the greatest; in silence none is above the mean, but for the error of its sum.
    return np.flatnonzero((near.argmax(axis=1) == _PEAK) & (energy > mean + 1e-6))


def _parts(chosen: np.ndarray) -> Iterable[np.ndarray]:
    return (chosen[start : start + _AT_ONCE] for start in range(0, len(chosen), _AT_ONCE))


def _triples(centres: np.ndarray, band: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Times and keys of all triples around some of the keypoints."""
    at = np.full(len(band) + 2 * _FARTHEST, -1, np.int32)  # band of every keypoint
    at[chosen + _FARTHEST] = band[chosen]
    before = at[centres[:, None] + _FARTHEST - _OFFSETS]
    after = at[centres[:, None] + _FARTHEST + _OFFSETS]
    which, back, forth = np.nonzero((before[:, :, None] >= 0) & (after[:, None, :] >= 0))
    bands = (before[which, back] * BANDS + band[centres[which]]) * BANDS + after[which, forth]
    return centres[which], (bands * len(_OFFSETS) + back) * len(_OFFSETS) + forth
