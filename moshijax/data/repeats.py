"""Stretches of recordings that were heard before, by votes of their fingerprints (arXiv 2410.00037, appendix B).

Two stretches that share a key vote for the time between them; where many keys vote for one time, the later stretch is
a repeat of the earlier one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moshijax.data.fingerprint import FRAME_RATE
from moshijax.errors import require

_NEXT = 40  # later places of a key that one of its places is compared with: work grows with the keys, not their square
_FREQUENT = 10  # places that a stretch is also heard at, from which on the paper calls it frequent


@dataclass(frozen=True)
class RepeatRules:
    """What counts as a repeat. The paper states no threshold; these are ours.

    Attributes:
      segment_seconds: stretch that is judged as one; what is left at the end of a recording belongs to the last.
      votes: keys that agree on a time, at least. Copies of speech of 2 s by MP3 and Opus at their lowest quality have
        18 and more, different speech 1.
      share: of a recording, from which on it is left out if so much of it is repeated.
      frequent_share: of a recording, from which on it is left out, the first copy too, if so much of it is frequent:
        a model learns by heart what it hears that often. None: frequent stretches are only counted.
    """

    segment_seconds: float = 4.0
    votes: int = 8
    share: float = 0.5
    frequent_share: float | None = None

    def __post_init__(self) -> None:
        require(self.segment_seconds >= 1, f"segment_seconds is {self.segment_seconds}: use at least 1")
        require(self.votes >= 2, f"votes is {self.votes}: use at least 2")
        for name in ("share", "frequent_share"):
            share = getattr(self, name)
            if share is not None:
                require(0 < share <= 1, f"{name} is {share}: it is a share of a recording, above 0 and up to 1")


@dataclass(frozen=True)
class Repeat:
    """A segment that an earlier recording has too.

    Attributes:
      start, end: of the segment, in seconds.
      of: number of the recording that has it.
      at: where the segment begins there, in seconds; below 0 if it begins before that recording.
    """

    start: float
    end: float
    of: int
    at: float


@dataclass(frozen=True)
class Found:
    """What was found of one recording.

    Attributes:
      repeats: its segments that are in an earlier recording that is kept, or earlier in itself.
      share: of its length, that they make up.
      frequent: how many of its segments are heard at ten or more other places.
      frequent_share: of its length, that they make up.
      left_out: "frequent" or "repeat" if the rules leave it out; None: it stays.
    """

    repeats: tuple[Repeat, ...]
    share: float
    frequent: int
    frequent_share: float
    left_out: str | None

    @property
    def kept(self) -> bool:
        """Whether it stays."""
        return self.left_out is None


def find_repeats(
    frames: Sequence[int], times: Sequence[np.ndarray], keys: Sequence[np.ndarray], rules: RepeatRules
) -> list[Found]:
    """Find what is repeated in recordings; a function of their order.

    Args:
      frames: length of every recording, 40 a second.
      times: of every recording, time in frames of its keys, uint32 [n].
      keys: of every recording, uint32 [n].
      rules: what counts.

    Returns:
      What was found of every recording, in the same order.
    """
    places = _Places(frames, round(rules.segment_seconds * FRAME_RATE))
    later, earlier = _pairs(places, times, keys)
    at = _agreed(places, later, earlier, rules.votes)
    back = _agreed(places, earlier, later, rules.votes)
    heard_at = sum(np.bincount(rows[:, 0], minlength=places.segments) for rows in (at, back))
    found: list[Found] = []
    stop = 0
    for number in range(len(frames)):
        first, last = int(places.first_segment[number]), int(places.first_segment[number + 1])
        start = stop
        while stop < len(at) and at[stop, 0] < last:
            stop += 1
        repeats: dict[int, Repeat] = {}
        for segment, own, there in at[start:stop].tolist():
            other = places.recording(there)
            # A recording that is left out hides nothing.
            if segment not in repeats and (other == number or found[other].kept):
                begin, end = (place - int(places.start[number]) for place in places.span(segment))
                ahead = own - int(places.start[number]) - begin  # of that key in the segment
                repeats[segment] = Repeat(
                    begin / FRAME_RATE, end / FRAME_RATE, other,
                    (there - int(places.start[other]) - ahead) / FRAME_RATE,
                )  # fmt: skip
        seconds = sum(repeat.end - repeat.start for repeat in repeats.values())
        share = seconds * FRAME_RATE / max(1, frames[number])
        frequent = first + np.flatnonzero(heard_at[first:last] >= _FREQUENT)
        often = sum(stop - begin for begin, stop in map(places.span, frequent.tolist())) / max(1, frames[number])
        left_out = "repeat" if share >= rules.share else None
        if rules.frequent_share is not None and often >= rules.frequent_share:
            left_out = "frequent"
        found.append(Found(tuple(repeats[s] for s in sorted(repeats)), share, len(frequent), often, left_out))
    return found


class _Places:
    """All recordings on one line of time, each followed by nothing for as long as a segment."""

    def __init__(self, frames: Sequence[int], segment: int):
        lengths = np.asarray(frames, np.int64)
        self.segment = segment
        self.start = np.concatenate([[0], np.cumsum(lengths + segment)])
        self._counts = np.maximum(1, (lengths + segment // 2) // segment)
        self.first_segment = np.concatenate([[0], np.cumsum(self._counts)])
        self.segments = int(self.first_segment[-1])
        self._frames = lengths

    def recording(self, place: int) -> int:
        """Number of the recording that a place is in."""
        return max(0, int(np.searchsorted(self.start, place, side="right")) - 1)

    def segment_of(self, recordings: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Number of the segment of every place."""
        inside = (places - self.start[recordings]) // self.segment
        return self.first_segment[recordings] + np.minimum(inside, self._counts[recordings] - 1)

    def span(self, segment: int) -> tuple[int, int]:
        """First place of a segment, and the one behind the last."""
        number = int(np.searchsorted(self.first_segment, segment, side="right")) - 1
        inside = segment - int(self.first_segment[number])
        begin = int(self.start[number]) + inside * self.segment
        is_last = inside == int(self._counts[number]) - 1
        return begin, int(self.start[number] + self._frames[number]) if is_last else begin + self.segment


def _pairs(places: _Places, times: Sequence[np.ndarray], keys: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Places [n] that share a key with an earlier one, and these."""
    place = np.concatenate(
        [start + np.asarray(time, np.int64) for start, time in zip(places.start, times, strict=False)]
    )
    key = np.concatenate([np.asarray(part) for part in keys])
    order = np.lexsort((place, key))
    place, key = place[order], key[order]
    later, earlier = [], []
    for step in range(1, _NEXT + 1):
        same = np.flatnonzero(key[step:] == key[:-step])
        # What a recording has just said, such as a steady tone, is no repeat.
        same = same[place[same + step] - place[same] >= places.segment]
        later.append(place[same + step])
        earlier.append(place[same])
    return np.concatenate(later), np.concatenate(earlier)


def _agreed(places: _Places, own: np.ndarray, other: np.ndarray, votes: int) -> np.ndarray:
    """Where enough keys agree, by segment, the one with most votes first.

    Distances of one frame apart count as one, since frames of two copies need not begin together.

    Returns:
      Rows [n, 3] of the segment of `own`, the place of one of its keys, and the place in `other` of the same one.
    """
    if not len(own):
        return np.zeros((0, 3), np.int64)
    segment = places.segment_of(np.searchsorted(places.start, own, side="right") - 1, own)
    distance = own - other
    order = np.lexsort((own, distance, segment))
    segment, distance, own = segment[order], distance[order], own[order]
    first = np.flatnonzero((np.diff(segment, prepend=-1) != 0) | (np.diff(distance, prepend=distance[0] - 1) != 0))
    counts = np.diff(first, append=len(own))
    segment, distance, own = segment[first], distance[first], own[first]
    follows = (segment[1:] == segment[:-1]) & (distance[1:] == distance[:-1] + 1)  # neighbours are next to each other
    total = counts.copy()
    total[1:] += np.where(follows, counts[:-1], 0)
    total[:-1] += np.where(follows, counts[1:], 0)
    # Of neighbours the one with most votes stands for all.
    best = total >= votes
    best[1:] &= ~follows | (counts[1:] > counts[:-1])
    best[:-1] &= ~follows | (counts[:-1] >= counts[1:])
    chosen = np.lexsort((distance, -total, segment))
    chosen = chosen[best[chosen]]
    return np.column_stack([segment, own, own - distance])[chosen]
