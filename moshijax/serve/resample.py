"""The sample rate of a stream changed: exactly, whatever the pieces in which the stream comes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float

CROSSINGS = 16  # zero crossings of the filter on each side, at the lower of both rates
KAISER = 9.0  # shape of its window: what is beyond the lower rate's half is 90 dB down


class Resampler:
    """Take a stream at one rate and return it at another, by a polyphase filter with linear phase.

    The output is late by `CROSSINGS` samples of the lower rate. It depends on the stream alone, bit for bit, not on its
    pieces.

    Args:
      source, target: rates in Hz.
    """

    def __init__(self, source: int, target: int):
        common = math.gcd(source, target)
        self._up, self._down = target // common, source // common
        # The filter runs at source * up = target * down; each of `up` phases has its own taps.
        slower = max(self._up, self._down)
        half = CROSSINGS * slower
        time = np.arange(-half, half + 1)
        taps = np.sinc(time / slower) * np.kaiser(len(time), KAISER) * self._up / slower
        taps = np.pad(taps, (0, -len(taps) % self._up))
        # [phase, k], the oldest sample first.
        self._bank = np.ascontiguousarray(taps.reshape(-1, self._up).T[:, ::-1]).astype(np.float32)
        self._past = np.zeros(self._bank.shape[1] - 1, np.float32)
        self._position = 0  # of the next output in the filter's time, from the beginning of what comes next

    def __call__(self, pcm: Float[np.ndarray, " N"]) -> Float[np.ndarray, " M"]:
        """Take the next piece, of any length; return all samples that are complete."""
        if self._up == self._down or not len(pcm):
            return pcm
        stream = np.concatenate([self._past, pcm])
        positions = np.arange(self._position, len(pcm) * self._up, self._down)
        self._position = (self._position + len(positions) * self._down) - len(pcm) * self._up
        self._past = stream[len(pcm) :]
        windows = np.lib.stride_tricks.sliding_window_view(stream, self._bank.shape[1])
        return np.einsum("nk,nk->n", windows[positions // self._up], self._bank[positions % self._up])
