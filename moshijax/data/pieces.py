"""Recordings of any length in pieces that share their ends, and what is made of these joined again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float


def overlapping(
    blocks: Iterable[Float[np.ndarray, "n ..."]], size: int, overlap: int
) -> Iterator[Float[np.ndarray, "n ..."]]:
    """Cut a recording into pieces of `size` samples, of which neighbours share `overlap`; the last one is shorter.

    Args:
      blocks: of the recording, of any lengths.
      size: of a piece, more than `overlap`.
      overlap: in samples.
    """
    held: np.ndarray | None = None
    fresh = False  # whether more is held than the overlap with the last piece
    for block in blocks:
        held = block if held is None else np.concatenate([held, block])
        fresh = fresh or len(block) > 0
        while len(held) >= size:
            yield held[:size]
            held = held[size - overlap :]
            fresh = len(held) > overlap
    if fresh and held is not None and len(held):
        yield held


def faded(made: Iterable[Float[np.ndarray, "n C"]], size: int, overlap: int) -> Iterator[Float[np.ndarray, "n C"]]:
    """Join what was made of the pieces of `overlapping`, each as long as its piece: neighbours are faded over.

    Args:
      made: of every piece.
      size: as of `overlapping`.
      overlap: likewise.

    Yields:
      Samples in [-1, 1], as many together as the recording has.
    """
    fade = np.linspace(0, 1, overlap, dtype=np.float32)[:, None]
    tail: np.ndarray | None = None  # of the last piece, that the next one overlaps
    for piece in made:
        if tail is not None and len(tail):
            shared = min(len(tail), len(piece))
            mixed = tail[:shared] * (1 - fade[:shared]) + piece[:shared] * fade[:shared]
            piece = np.concatenate([mixed, piece[shared:]])
        end = len(piece) - overlap if len(piece) == size else len(piece)
        yield np.clip(piece[:end], -1, 1)
        tail = piece[end:]
    if tail is not None and len(tail):
        yield np.clip(tail, -1, 1)
