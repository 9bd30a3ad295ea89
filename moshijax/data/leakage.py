"""Words that a microphone picked up from the other speaker."""

from __future__ import annotations

import bisect
import re
from collections.abc import Sequence

import numpy as np

from moshijax.data.signal import loudness
from moshijax.data.transcript import Word

NEAR = 0.3  # seconds between the starts of a word and of its copy
WEAKER = 2.0  # amplitude ratio of the two, 6 dB: two people who say the same at once are nearer in level


def leaked(words: Sequence[Word], levels: np.ndarray) -> set[Word]:
    """Find words that are heard on both channels at once, and are weaker where they are found.

    A word counts that the other channel has too, apart from case and marks, beginning at most 0.3 s before or after,
    and at least 6 dB louder from the beginning of the first to the end of the last of the two.

    Args:
      words: of both channels.
      levels: RMS of every 20 ms, [frames, 2]: left the model's channel.
    """
    columns = {"model": 0, "user": 1}
    spoken: dict[tuple[str, int], list[Word]] = {}
    for word in sorted(words, key=lambda word: word.start):
        key = re.sub(r"[^\w']", "", word.text.lower())
        if key:
            spoken.setdefault((key, columns[word.speaker]), []).append(word)
    found = set()
    for (key, column), own in spoken.items():
        others = spoken.get((key, 1 - column), [])
        starts = [word.start for word in others]
        for word in own:
            first, stop = bisect.bisect_left(starts, word.start - NEAR), bisect.bisect_right(starts, word.start + NEAR)
            for other in others[first:stop]:
                both = Word(key, min(word.start, other.start), max(word.end, other.end), word.speaker)
                if loudness(levels, [both], 1 - column) >= WEAKER * loudness(levels, [both], column):
                    found.add(word)
    return found
