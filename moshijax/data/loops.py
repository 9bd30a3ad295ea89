"""Words that a recogniser wrote over and over, as Whisper does on noise and music."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import numpy as np

from moshijax.data.transcript import Word

#: Above it the text is taken for a loop (arXiv 2212.04356, 4.5).
MOST_COMPRESSION = 2.4
PIECE_SECONDS = 30.0  # what Whisper hears at once
PAUSE_SECONDS = 2.0  # after which what is said again is no loop: a listener says "yeah" all the time
_LONGEST_PHRASE = 60  # words


def compression(text: str) -> float:
    """Return the bytes of a text over those that zlib makes of them; 0 for none."""
    content = text.encode()
    return len(content) / len(zlib.compress(content))


def looped(words: Sequence[Word]) -> set[Word]:
    """Find the words that belong to a loop, each channel by itself.

    A loop is a phrase of up to 60 words that is said over and over, apart from case and marks, until the text of all
    of it, the first time included, compresses by more than `MOST_COMPRESSION`: "no" ten times, "thank you" five times,
    a sentence of 40 letters three times. A pause of 2 s ends it. Of the words that are left, those of 30 s between
    pauses are a loop if their text compresses as much, which copies that differ a little do. The paper hears such a
    passage again and draws the words at random; here it has none, so that they are a function of the sound.

    Args:
      words: of all channels.
    """
    found: set[Word] = set()
    for speaker in {word.speaker for word in words}:
        own = sorted((word for word in words if word.speaker == speaker), key=lambda word: word.start)
        starts, ends = (np.array([getattr(word, name) for word in own]) for name in ("start", "end"))
        pauses = np.flatnonzero(starts[1:] - np.maximum.accumulate(ends)[:-1] > PAUSE_SECONDS) + 1
        for first, stop in zip([0, *pauses], [*pauses, len(own)], strict=True):
            found |= _in_passage(own[first:stop])
    return found


def _in_passage(words: Sequence[Word]) -> set[Word]:
    """Do as `looped` with words of one channel that no pause parts."""
    exact = _repeated([re.sub(r"[^\w']", "", word.text.lower()) or word.text for word in words])
    found = {words[n] for n in exact}
    heard_at_once: dict[int, list[Word]] = {}
    for n, word in enumerate(words):
        if n not in exact:
            heard_at_once.setdefault(int((word.start - words[0].start) // PIECE_SECONDS), []).append(word)
    for rest in heard_at_once.values():
        if compression(" ".join(word.text for word in rest)) > MOST_COMPRESSION:
            found |= set(rest)
    return found


def _repeated(texts: Sequence[str]) -> set[int]:
    """Return the places of the words of phrases that are repeated at once and too often."""
    known: dict[str, int] = {}
    numbers = np.array([known.setdefault(text, len(known)) for text in texts])
    found: set[int] = set()
    for length in range(1, min(_LONGEST_PHRASE, len(texts) // 2) + 1):
        same = np.concatenate([[False], numbers[length:] == numbers[:-length], [False]])
        edges = np.flatnonzero(same[1:] != same[:-1])
        for first, stop in zip(edges[::2], edges[1::2], strict=True):
            if stop - first >= length:
                stretch = range(first, stop + length)
                if compression(" ".join(texts[n] for n in stretch)) > MOST_COMPRESSION:
                    found.update(stretch)
    return found
