"""How high the sound of a recording reaches, which its sample rate does not tell: calls of 8 kHz lie in 24 kHz."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float

STEP = 100  # Hz
#: Power of a step over that of the strongest one, above which there is sound. Noise of 16 bits stays below it in speech
#: of -50 dBFS, and the consonants of speech reach it up to 10 kHz.
QUIETEST = 10 ** (-55 / 10)
_WINDOW = 0.04  # seconds: 25 Hz
NO_SOUND = "no sound"


class Bandwidth:
    """The highest frequency that carries energy, of a signal that is fed block by block.

    The power spectrum is the mean over windows of Hann of 40 ms and over channels, summed in steps of 100 Hz. The band
    reaches to the upper end of the highest step with at least -55 dB of the strongest one's power; the window adds up
    to 100 Hz to a band with a sharp end.

    Args:
      sample_rate: in Hz.
      channels: their number.
    """

    def __init__(self, sample_rate: int, channels: int) -> None:
        self._window = np.hanning(round(_WINDOW * sample_rate)).astype(np.float32)
        frequencies = np.fft.rfftfreq(len(self._window), 1 / sample_rate)
        self._steps = np.searchsorted(np.arange(STEP, sample_rate / 2, STEP), frequencies, side="right")
        self._most = sample_rate // 2
        self._power = np.zeros(len(frequencies))
        self._rest = np.zeros((channels, 0), np.float32)

    def add(self, block: Float[np.ndarray, "n channels"]) -> None:
        """Take in a block of float32; what is not finite counts as silence."""
        signal = np.concatenate([self._rest, np.where(np.isfinite(block), block, 0).T], axis=1)
        size = len(self._window)
        count = signal.shape[1] // size
        windows = signal[:, : count * size].reshape(-1, size)
        self._power += np.square(np.abs(np.fft.rfft(windows * self._window, axis=1))).sum(axis=0)
        self._rest = signal[:, count * size :]

    def hertz(self) -> int:
        """Return the upper end of the band, 0 without any sound."""
        power = np.bincount(self._steps, self._power)
        if not power.max() > 0:
            return 0
        return min(self._most, STEP * (int(np.flatnonzero(power >= QUIETEST * power.max())[-1]) + 1))


def name_of(hertz: int) -> str:
    """Return the kind of sound that reaches so high, by which hours are counted."""
    if hertz <= 0:
        return NO_SOUND
    return "up to 4.5 kHz" if hertz <= 4500 else "up to 8.5 kHz" if hertz <= 8500 else "above 8.5 kHz"
