"""What counts as the same word in two texts, and the number of errors between them."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_LARGE = ((10**9, "billion"), (10**6, "million"), (1000, "thousand"), (100, "hundred"))


def normalize(text: str) -> list[str]:
    """Return words as they are compared: lower case, numbers written out, hyphens as spaces, no other marks.

    Apostrophes stay; spellings and names are compared as they are written.
    """
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text.lower().replace("’", "'"))
    text = re.sub(r"\d+", lambda digits: f" {spelled(int(digits[0]))} ", text)
    return [word for word in (part.strip("'") for part in re.sub(r"[^\w']", " ", text).split()) if word]


def spelled(number: int) -> str:
    """Return a whole number below 10^12 in words, without "and"; a larger one digit by digit."""
    if number >= 10**12:
        return " ".join(_SMALL[int(digit)] for digit in str(number))
    if number < 20:
        return _SMALL[number]
    if number < 100:
        return " ".join([_TENS[number // 10 - 2], *([_SMALL[number % 10]] if number % 10 else [])])
    size, name = next(entry for entry in _LARGE if number >= entry[0])
    return " ".join([spelled(number // size), name, *([spelled(number % size)] if number % size else [])])


def word_errors(expected: Sequence[str], heard: Sequence[str]) -> int:
    """Return the fewest substitutions, insertions and deletions between two sequences of words."""
    row = list(range(len(heard) + 1))
    for n, word in enumerate(expected, 1):
        before, row[0] = row[0], n
        for m, other in enumerate(heard, 1):
            before, row[m] = row[m], min(row[m] + 1, row[m - 1] + 1, before + (word != other))
    return row[-1]
