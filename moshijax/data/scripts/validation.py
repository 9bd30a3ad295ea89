"""What a language model wrote, to a dialogue that can be spoken; or the reason why it is none."""

from __future__ import annotations

import re
from dataclasses import dataclass

from moshijax.data.scripts.families import Family
from moshijax.data.spoken import UNSPEAKABLE, spoken
from moshijax.errors import require

_LINE = re.compile(r"^\**(user|model)\**\s*(?:([@!+-])\s*(\d*\.?\d+))?\s*:\**\s*(.+)$", re.I)
_KIND = {"@": "backchannel", "!": "interruption"}
_LONGEST_GAP = 5.0  # seconds


@dataclass(frozen=True)
class ScriptRules:
    """Which scripts are kept.

    Attributes:
      turn_words: an utterance has at most so many.
    """

    turn_words: int = 80

    def __post_init__(self) -> None:
        require(self.turn_words >= 1, f"turn_words is {self.turn_words}: use at least 1")


@dataclass(frozen=True)
class Line:
    """An utterance as a script has it: `speaker`, `mark` such as "@0.5" or "", and `text`."""

    speaker: str
    mark: str
    text: str

    def __str__(self) -> str:
        return f"{self.speaker}{' ' + self.mark if self.mark else ''}: {self.text}"


def judge(text: str, family: Family, rules: ScriptRules) -> list[Line] | str:
    """Return the lines of a script, in their spoken form, or the reason for which it is rejected.

    Lines that begin with `#`, empty ones and fences of code around the whole are passed over. The reasons: "empty",
    "form" (another line, or a mark out of range), "turns" (too few or too many), "one_speaker", "begins" (with
    something that is no turn), "needs" (the kind that the family is about does not occur), "long" (an utterance),
    "silent" (an utterance without a word), and those of `spoken.UNSPEAKABLE`.
    """
    found = []
    for raw in re.sub(r"(?m)^\s*```\w*\s*$", "", text).splitlines():
        if not raw.strip() or raw.strip().startswith("#"):
            continue
        match = _LINE.match(raw.strip())
        if match is None or not _in_range(match[2], match[3]):
            return "form"
        said = spoken(match[4])
        for kind in UNSPEAKABLE:
            if said.removed[kind]:
                return kind
        if not any(char.isalnum() for char in said.text):
            return "silent"
        if len(said.text.split()) > rules.turn_words:
            return "long"
        found.append(Line(match[1].lower(), f"{match[2]}{float(match[3]):g}" if match[2] else "", said.text))
    if not found:
        return "empty"
    kinds = [_KIND.get(line.mark[:1], "turn") for line in found]
    if kinds[0] != "turn":
        return "begins"
    least, most = family.turns
    if not least <= len(found) <= most:
        return "turns"
    if {line.speaker for line in found} != {"user", "model"}:
        return "one_speaker"
    if family.needs and family.needs not in kinds:
        return "needs"
    return found


def _in_range(mark: str | None, number: str | None) -> bool:
    if mark is None:
        return True
    return float(number) <= (1.0 if mark in _KIND else _LONGEST_GAP)
