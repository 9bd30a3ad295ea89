"""The voice of an answer whose units come bit by bit (overlap-save).

A vocoder's layers see some units and frames on both sides of what they make. So sound is made in windows that reach
that far beyond it, and only as far as what is behind it is known: then it is the sound of the whole answer, wherever
the pieces end. Windows have a few fixed lengths, for which programs are compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moshijax.errors import DataError

if TYPE_CHECKING:
    from jaxtyping import Float, Int

#: Units whose durations are computed at a time.
UNITS = 64
#: Frames of sound that are made at a time.
LENGTHS = (16, 64, 256)
#: The id of what is before or behind an answer.
OUTSIDE = -1


@dataclass(frozen=True)
class VoiceShape:
    """What a stream needs to know of a vocoder.

    Attributes:
      units: ids are below this.
      hop: samples of a frame.
      reach_units: units on each side that the duration of one depends on.
      reach_frames: frames on each side that the sound of one depends on.
      lengths: frames that can be made at a time, the shortest first.
    """

    units: int
    hop: int
    reach_units: int
    reach_frames: int
    lengths: tuple[int, ...] = LENGTHS


class UnitVoice:
    """The voice of one answer.

    Args:
      shape: of the vocoder.
      durations: int32 `[1, reach_units + UNITS + reach_units]` to the frames `[1, same]` that each unit lasts.
      generate: int32 `[1, reach_frames + L + reach_frames]`, a unit per frame, L one of the lengths, to float32
        `[1, L * hop]`.
    """

    def __init__(self, shape: VoiceShape, durations: Callable[[Any], Any], generate: Callable[[Any], Any]):
        self.shape, self._durations, self._generate = shape, durations, generate
        self._units = np.zeros(0, np.int32)
        self._frames = np.zeros(0, np.int32)  # the unit of every frame whose unit's duration is known
        self._timed = self._made = 0  # units with durations, frames with sound

    def feed(self, units: Sequence[int]) -> None:
        """Take the next units.

        Raises:
          DataError: ids that the vocoder does not have.
        """
        ids = np.asarray(units)
        if ids.ndim != 1 or (ids.size and (ids.min() < 0 or ids.max() >= self.shape.units)):
            found = f"{ids.min()} to {ids.max()}" if ids.size else "none"
            raise DataError(
                f"units {found} of shape {ids.shape}: must be a list of ids from 0 to {self.shape.units - 1}"
            )
        self._units = np.concatenate([self._units, ids.astype(np.int32)])

    def take(self, done: bool = False) -> Float[np.ndarray, " N"]:
        """Return the sound that has become certain; all that is left if the answer is `done`."""
        shape = self.shape
        known = len(self._units) - (0 if done else shape.reach_units)
        while self._timed < known:
            window = _window(self._units, self._timed - shape.reach_units, UNITS + 2 * shape.reach_units)
            new = slice(self._timed, min(self._timed + UNITS, known))
            lasting = np.asarray(self._durations(window))[0, shape.reach_units :][: new.stop - new.start]
            self._frames = np.concatenate([self._frames, np.repeat(self._units[new], lasting)])
            self._timed = new.stop
        certain = len(self._frames) - (0 if done else shape.reach_frames)
        pieces = [np.zeros(0, np.float32)]
        while self._made < certain:
            left = certain - self._made
            length = next((length for length in shape.lengths if length >= left), shape.lengths[-1])
            window = _window(self._frames, self._made - shape.reach_frames, length + 2 * shape.reach_frames)
            pieces.append(np.asarray(self._generate(window))[0, : left * shape.hop])
            self._made += min(length, left)
        return np.concatenate(pieces)


def _window(ids: Int[np.ndarray, " T"], start: int, length: int) -> Int[np.ndarray, "1 L"]:
    """Return ids from a place on, which may be before the first, and behind the last `OUTSIDE`."""
    window = np.full((1, length), OUTSIDE, np.int32)
    here = ids[max(start, 0) : start + length]
    window[0, max(-start, 0) :][: len(here)] = here
    return window
