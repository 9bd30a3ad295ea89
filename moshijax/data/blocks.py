"""Signals that come in blocks: filters over them, and blocks of another size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np


class Filter:
    """A finite impulse response over a signal in blocks.

    Args:
      kernel: the response, from time 0 on.
    """

    def __init__(self, kernel: np.ndarray):
        self._kernel, self._tail = kernel, np.zeros(len(kernel) - 1)

    def __call__(self, block: np.ndarray) -> np.ndarray:
        """Return the filtered block [n] float64; what rings on comes with the next ones."""
        size = len(block) + len(self._kernel) - 1
        padded = 1 << max(1, size - 1).bit_length()
        whole = np.fft.irfft(np.fft.rfft(block, padded) * np.fft.rfft(self._kernel, padded), padded)[:size]
        whole[: len(self._tail)] += self._tail
        self._tail = whole[len(block) :]
        return whole[: len(block)]


def centred(blocks: Iterable[np.ndarray], kernel: np.ndarray) -> Iterator[np.ndarray]:
    """Filter a signal [n] with a symmetric kernel of odd length, without delay; the length stays."""
    response, wait = Filter(kernel), len(kernel) // 2
    skip = wait
    for block in blocks:
        filtered = response(block)
        yield filtered[skip:].astype(np.float32)
        skip = max(0, skip - len(filtered))
    yield response(np.zeros(wait))[skip:].astype(np.float32)


def pieces(blocks: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Cut a signal [n] into pieces of `size` samples; the last one may be shorter."""
    rest = np.zeros(0, np.float32)
    for block in blocks:
        rest = np.concatenate([rest, block])
        whole = len(rest) // size * size
        yield from rest[:whole].reshape(-1, size)
        rest = rest[whole:]
    if len(rest):
        yield rest


class Buffer:
    """A signal that comes in blocks, taken in any amounts.

    Args:
      blocks: of samples [n].
    """

    def __init__(self, blocks: Iterable[np.ndarray]):
        self._blocks, self._rest = iter(blocks), np.zeros(0, np.float32)

    def take(self, count: int) -> np.ndarray:
        """Return the next `count` samples, or what is left of them."""
        parts, have = [self._rest], len(self._rest)
        while have < count and (block := next(self._blocks, None)) is not None:
            parts.append(block)
            have += len(block)
        whole = np.concatenate(parts)
        self._rest = whole[count:]
        return whole[:count]
