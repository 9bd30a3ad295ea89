"""Texts of evaluations, and whether a document has a stretch of one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from moshijax import optional
from moshijax.data.raw_text import formats, words
from moshijax.data.records import digest
from moshijax.errors import DataError

LONG = 12  # words that a document and an evaluation have in common: the default of datatrove
SHORT = 8  # words of an evaluation's text, at least: shorter ones are in many documents by chance


@dataclass(frozen=True)
class Evaluations:
    """Stretches of words of the texts of evaluations.

    Attributes:
      hashes: of every stretch -> name of the file that has it.
      lengths: of the stretches, in words.
      texts: how many there are.
      short: how many of them are too short to look for.
      sha256: of all hashes.
    """

    hashes: dict[int, str]
    lengths: tuple[int, ...]
    texts: int
    short: int
    sha256: str

    def find(self, text: str) -> tuple[str, str] | None:
        """Return the evaluation that a document has a stretch of, and the stretch; None: none."""
        found = words.plain_words(text) if self.hashes else []
        for length in self.lengths:
            for stretch, key in _stretches(found, length):
                if key in self.hashes:
                    return self.hashes[key], stretch
        return None


def read(paths: Sequence[Path], field: str = "text") -> Evaluations:
    """Read the texts of evaluations, in any format that `formats.reader` knows.

    A text of 12 words or more is found by any 12 of its words in a row, one of 8 to 11 words by all of them.

    Raises:
      DataError: a file holds something else than texts, or only such as are too short.
    """
    hashes: dict[int, str] = {}
    lengths: set[int] = set()
    texts = short = 0
    for path in paths:
        before = len(hashes)
        for found in formats.reader(path, field)():
            if isinstance(found, formats.Refused):
                raise DataError(f"{path}, {found.name}: {found.reason}")
            texts += 1
            plain = words.plain_words(found.text)
            if len(plain) < SHORT:
                short += 1
                continue
            lengths.add(min(LONG, len(plain)))
            for _, key in _stretches(plain, min(LONG, len(plain))):
                hashes.setdefault(key, path.name)
        if len(hashes) == before:
            raise DataError(f"{path} has no text of {SHORT} words or more to look for: leave it out")
    return Evaluations(hashes, tuple(sorted(lengths)), texts, short, digest(sorted(hashes)))


def _stretches(plain: Sequence[str], length: int) -> Iterator[tuple[str, int]]:
    key = optional.load("xxhash").xxh3_64_intdigest
    for first in range(len(plain) - length + 1):
        stretch = " ".join(plain[first : first + length])
        yield stretch, key(stretch)
