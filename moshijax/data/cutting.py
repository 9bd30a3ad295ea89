"""Long channels cut where nobody speaks, and read piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moshijax.data import audio
from moshijax.data.signal import ENVELOPE_SECONDS, SPEECH_RMS
from moshijax.recordings import Extent

if TYPE_CHECKING:
    from jaxtyping import Float

#: First and last level of a piece, the last one excluded.
Span = tuple[int, int]

_PAUSE = 15  # levels, 0.3 s


def cut(levels: Float[np.ndarray, " frames"], longest: int) -> list[Span]:
    """Cut a channel into pieces, and leave out those without speech.

    A piece ends in the quietest 0.3 s of the second half of the time that it may last, so that the threshold of speech
    matters to no cut.

    Args:
      levels: RMS of every 20 ms of the channel.
      longest: levels of a piece, at least 2.

    Returns:
      The pieces in order.
    """
    if not len(levels):
        return []
    power = np.convolve(np.square(levels, dtype=np.float64), np.full(_PAUSE, 1 / _PAUSE), mode="same")
    spans, start = [], 0
    while start < len(levels):
        stop = len(levels)
        if stop - start > longest:
            first = start + longest // 2
            quiet = power[first : start + longest + 1]
            stop = first + len(quiet) - 1 - int(np.argmin(quiet[::-1]))  # the last of equals: fewer pieces
        if levels[start:stop].max() > SPEECH_RMS:
            spans.append((start, stop))
        start = stop
    return spans


def pieces(
    path: Path, channel: int, spans: Sequence[Span], rate: int, extent: Extent | None = None
) -> Iterator[tuple[float, Float[np.ndarray, " N"]]]:
    """Read the pieces of one channel, of which no more than one and a block are held at a time.

    Args:
      path: of the recording.
      channel: its number.
      spans: of `cut`, of levels at `rate`.
      rate: in Hz, to which the recording is resampled.
      extent: of the recording, where it is known.

    Yields:
      Where each piece begins, in seconds, and its samples, float32.

    Raises:
      DataError: as `audio.blocks`.
    """
    step = round(ENVELOPE_SECONDS * rate)
    waiting = [(first * step, stop * step) for first, stop in spans][::-1]
    held, place = np.zeros(0, np.float32), 0  # where the held samples begin
    for block in audio.blocks(path, rate, (channel,), extent=extent):
        if not waiting:  # (the rest is decoded all the same: damage shows at the end)
            continue
        held = np.concatenate([held, block[:, 0]])
        while waiting and place + len(held) >= waiting[-1][1]:
            first, stop = waiting.pop()
            yield first / rate, held[first - place : stop - place]
            held, place = held[stop - place :], stop
        unused = min(len(held), max(0, waiting[-1][0] - place) if waiting else len(held))
        held, place = held[unused:], place + unused
