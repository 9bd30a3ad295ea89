"""Lines that were there before: in the same shard, or by the word of a classifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moshijax import optional

_LINES = 4_000_000  # of one Bloom filter, 17 MB
_ERROR = 1e-7  # probability that a filter takes a new line for one that it has seen
_RUN = 3  # lines in a row that the classifier calls duplicates, at least


class SeenLines:
    """Remember lines in a few bytes each: Bloom filters, as in the Moshi paper (section 4.1), there of FNV-1a hashes.

    A new line is taken for a known one with a probability of 1e-7 for every four million lines.
    """

    def __init__(self) -> None:
        self._filters: list[Any] = []
        self._room = 0
        self._hash: Callable[[bytes], int] = optional.load("xxhash").xxh3_64_intdigest

    def add(self, line: str) -> bool:
        """Remember a line without the space around it; say whether it is new."""
        key = self._hash(line.strip().encode("utf-8", "surrogatepass"))
        if any(key in seen for seen in self._filters):
            return False
        if not self._room:
            self._filters.append(optional.load("rbloom").Bloom(_LINES, _ERROR))
            self._room = _LINES
        self._filters[-1].add(key)
        self._room -= 1
        return True


def without_runs(lines: list[str], is_duplicate: Callable[[str], bool]) -> list[str]:
    """Return lines without the runs of at least three that are all duplicates (Moshi paper, section 4.1)."""
    kept: list[str] = []
    run: list[str] = []
    for line in lines:
        if is_duplicate(line):
            run.append(line)
            continue
        if len(run) < _RUN:
            kept += run
        kept.append(line)
        run = []
    return kept + run if len(run) < _RUN else kept
