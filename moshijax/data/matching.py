"""A known text matched with what a recogniser heard: which words are said when, roughly, in recordings of hours.

Runs of words that occur once in both are anchors, those of them that are in the same order stand, and between anchors
the two are compared word by word. This takes time in proportion to the words.
"""

from __future__ import annotations

import bisect
import difflib
import itertools
import re
from collections import Counter
from collections.abc import Sequence

_RUN = 3  # words of an anchor
_COMPARED = 2000  # words between anchors that are compared; more are not matched

_MISSED = 20  # words in a row that a recogniser may leave out, besides half of what it hears


def plain(word: str) -> str:
    """Return a word without case and marks, as words are compared; "" for marks alone."""
    return re.sub(r"[^\w']", "", word.lower()).strip("'")


def match(known: Sequence[str], heard: Sequence[str]) -> list[tuple[int, int]]:
    """Return the pairs (index of a known word, index of the same word that was heard), increasing in both.

    Args:
      known: words, as `plain` makes them.
      heard: words, likewise.
    """
    found: list[tuple[int, int]] = []
    before = (0, 0)
    for anchor in [*_anchors(known, heard), (len(known), len(heard))]:
        if anchor[0] < before[0] or anchor[1] < before[1]:
            continue  # inside the last one
        found += _between(known, heard, before, anchor)
        if anchor[0] < len(known) and anchor[1] < len(heard):
            found += [(anchor[0] + n, anchor[1] + n) for n in range(_RUN)]
        before = (anchor[0] + _RUN, anchor[1] + _RUN)
    return found


def places(known: int, pieces: Sequence[int], pairs: Sequence[tuple[int, int]]) -> list[int | None]:
    """Say in which piece of a recording every known word is said.

    Words between two that match are spread over what was heard between them. Where much less was heard than is known,
    the words are not said.

    Args:
      known: number of known words.
      pieces: number of the piece of every word that was heard, increasing.
      pairs: as of `match`.

    Returns:
      The number of the piece for every known word, increasing; None: it is not said.
    """
    found: list[int | None] = [None] * known
    for (k0, h0), (k1, h1) in itertools.pairwise([(-1, -1), *pairs, (known, len(pieces))]):
        count, between = k1 - k0 - 1, h1 - h0 - 1
        if k1 < known:
            found[k1] = pieces[h1]
        if count > 2 * between + _MISSED:
            continue
        for n in range(count):
            near = h0 + 1 + n * between // count if between else max(h0, 0)
            found[k0 + 1 + n] = pieces[min(near, len(pieces) - 1)] if pieces else None
    return found


def _anchors(known: Sequence[str], heard: Sequence[str]) -> list[tuple[int, int]]:
    """Return where runs begin that occur once in both, in the longest order that both share."""
    places = []
    for words in (known, heard):
        runs = [tuple(words[n : n + _RUN]) for n in range(len(words) - _RUN + 1)]
        once = Counter(runs)
        places.append({run: n for n, run in enumerate(runs) if once[run] == 1})
    pairs = sorted((n, places[1][run]) for run, n in places[0].items() if run in places[1])
    # The longest increasing subsequence: the end of the best one of every length, and what came before each pair.
    ends, tails, before = [], [], []
    for index, (_, place) in enumerate(pairs):
        length = bisect.bisect_left(ends, place)
        before.append(tails[length - 1] if length else None)
        if length == len(ends):
            ends.append(place)
            tails.append(index)
        else:
            ends[length], tails[length] = place, index
    found, index = [], tails[-1] if tails else None
    while index is not None:
        found.append(pairs[index])
        index = before[index]
    return found[::-1]


def _between(
    known: Sequence[str], heard: Sequence[str], start: tuple[int, int], stop: tuple[int, int]
) -> list[tuple[int, int]]:
    one, other = known[start[0] : stop[0]], heard[start[1] : stop[1]]
    if not one or not other or max(len(one), len(other)) > _COMPARED:
        return []
    blocks = difflib.SequenceMatcher(None, one, other, autojunk=False).get_matching_blocks()
    return [(start[0] + a + n, start[1] + b + n) for a, b, size in blocks for n in range(size)]
