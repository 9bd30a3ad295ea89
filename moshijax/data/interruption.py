"""Early interruption: where the user begins to speak over the model, the model falls silent instead of speaking on.

Full-duplex recordings hold few such places, since people who overlap mostly finish. The cut is made on the grid: codes
of silence take the place of the model's, and the words that are no longer said are dropped. Ours; Moshi's instruct data
has interruptions that were written so (arXiv 2410.00037, 4.4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moshijax.data.transcript import Word

PAUSE = 1.0  # seconds without a word, after which a speaker's next word begins another turn
_BACKCHANNEL = 1.0  # seconds; what is shorter and has at most two words interrupts nobody (Full-Duplex-Bench)
_SLOP = 1e-6  # frames, as in placement


@dataclass(frozen=True)
class Cut:
    """The end of a turn that is not spoken.

    Attributes:
      start: seconds, when the user begins to speak.
      first, end: frames of the recording in which the model is silent instead, `end` not among them.
      words: that are dropped, those which begin in these frames.
    """

    start: float
    first: int
    end: int
    words: int


def turns(words: Sequence[Word], speaker: str, pause: float = PAUSE) -> list[list[Word]]:
    """Return the words of a speaker, sorted by start, in turns that a pause of so many seconds separates."""
    found: list[list[Word]] = []
    end = -math.inf
    for word in words:
        if word.speaker == speaker:
            if word.start - end >= pause:
                found.append([])
            found[-1].append(word)
            end = max(end, word.end)
    return found


def interrupt(
    words: Sequence[Word], frame_rate: float, probability: float, most_frames: int, rng: np.random.Generator
) -> tuple[list[Word], list[Cut]]:
    """Cut turns of the model where the user begins to speak over them.

    Args:
      words: of a recording, with the speakers "model" and "user", sorted by start.
      frame_rate: frames per second.
      probability: that the model gives way, each time the user begins.
      most_frames: the model speaks on for 0 to this many frames, drawn uniformly.
      rng: decides what is drawn.

    Returns:
      The words that are left, and the cuts.
    """
    begins = [turn[0].start for turn in turns(words, "user") if not is_backchannel(turn)]
    cuts, dropped = [], set()
    for turn in turns(words, "model"):
        for start in begins:
            if not turn[0].start < start < turn[-1].end:
                continue
            yields, late = rng.random() < probability, int(rng.integers(most_frames + 1))
            first = math.floor(start * frame_rate + _SLOP) + late
            unsaid = [word for word in turn if math.floor(word.start * frame_rate + _SLOP) >= first]
            if yields and unsaid:
                # Half of the pause stays silent too: sounds end later than words, and begin earlier.
                end = math.ceil((max(word.end for word in turn) + PAUSE / 2) * frame_rate - _SLOP)
                cuts.append(Cut(start, first, end, len(unsaid)))
                dropped |= {id(word) for word in unsaid}
                break
    return [word for word in words if id(word) not in dropped], cuts


def is_backchannel(turn: Sequence[Word]) -> bool:
    """Return whether a turn is so short that it interrupts nobody."""
    return len(turn) <= 2 and max(word.end for word in turn) - turn[0].start < _BACKCHANNEL
