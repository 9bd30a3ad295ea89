"""Word times of a recording: reading the sidecar, and repairing what can be repaired, counted."""

from __future__ import annotations

import json
import math
import shlex
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moshijax import files
from moshijax.annotations import shown
from moshijax.data import word_lists
from moshijax.errors import DataError

SPEAKERS: Mapping[str, str] = {"SPEAKER_MAIN": "model", "SPEAKER_USER": "user", "model": "model", "user": "user"}
_LONGEST_GUESS = 1.0  # seconds that a word without an end may last
_SHORTEST = 0.02  # seconds given to a word whose start and end are equal
_SLACK = 0.5  # seconds by which a word may begin outside the recording before the item is rejected
_SHOWN_LABELS = 20
_REPEATS = 4  # equal words in a row that look like a slipped alignment


class UnknownSpeaker(DataError):
    """Speaker labels that no map explains; they stop the job, since guessing would train on the wrong channel.

    Args:
      labels: each with its number of words.
      where: the labels are.
    """

    def __init__(self, labels: Mapping[str, int], where: str = ""):
        super().__init__(labels, where)
        self.labels, self.where = labels, where

    def __str__(self) -> str:
        most = sorted(self.labels, key=lambda label: (-self.labels[label], label))
        named = []
        for label in most[:_SHOWN_LABELS]:
            number = f"{self.labels[label]} word{'s' if self.labels[label] > 1 else ''}"
            named.append(f"{label!r} ({number})" if label else f"{number} without a speaker")
        more = f" and {len(most) - _SHOWN_LABELS} more" if len(most) > _SHOWN_LABELS else ""
        options = " ".join(f"--speaker {shlex.quote(f'{label}={who}')}" for label, who in zip(most, ("user", "model")))
        where = f"{self.where}: " if self.where else ""
        return (
            f"{where}unknown speakers, {', '.join(named)}{more}: say of each whether it is the user or the "
            f"model, as in {options}"
        )


@dataclass(frozen=True)
class Word:
    """A spoken word.

    Attributes:
      text: NFC, without surrounding space.
      start: in seconds.
      end: in seconds.
      speaker: "model" or "user".
      score: probability that it is right, 0 to 1, or another score of whoever found it; None: it has none.
    """

    text: str
    start: float
    end: float
    speaker: str
    score: float | None = None


def read_sidecar(path: Path) -> dict[str, Any]:
    """Read the JSON object of a sidecar file, with the list "alignments" also where another program wrote the words.

    In place of a JSON file that is not there a CTM file beside it is read; see `moshijax.data.word_lists`.

    Raises:
      DataError: the file is missing, not UTF-8, or holds no list of words that is known; the message names it.
    """
    ctm = path.with_suffix(".ctm")
    if not path.exists():
        if ctm.exists():
            return {"alignments": word_lists.read_ctm(ctm)}
        raise DataError(
            f"transcript {path} does not exist: every recording needs one, named like it{files.meant(path)}"
        )
    content = files.read_json(path, "transcript")
    try:
        alignments = word_lists.alignments_of(content)
    except DataError as error:
        raise DataError(f"transcript {path}: {error}") from error
    if alignments is None:
        raise DataError(
            f'transcript {path} has no list "alignments" of [word, [start, end], speaker], nor words with times in '
            "another form that is known"
        )
    return {**(content if isinstance(content, dict) else {}), "alignments": alignments}


def label_of(value: Any) -> str:
    """Return a speaker label as text: numbers and truth values as JSON writes them, "" for none.

    Raises:
      TypeError: it is neither.
    """
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    raise TypeError(f"{shown(value)} is no speaker")


def _number(value: Any) -> float | None:
    """Return a time or score, also one that is written as text; None if there is none.

    Raises:
      ValueError: a text that is no number.
      TypeError: a value of another kind.
    """
    if isinstance(value, str):
        value = float(value) if value.strip() else None
    if isinstance(value, bool) or not isinstance(value, int | float | None):
        raise TypeError(f"{shown(value)} is no number")
    return float(value) if value is not None and math.isfinite(value) else None


def parse_alignments(
    alignments: list[Any],
    duration: float,
    speakers: Mapping[str, str] | None = SPEAKERS,
    min_score: float = 0.0,
) -> tuple[list[Word], Counter[str]]:
    """Read the words of a transcript, and repair their times.

    Missing starts are interpolated between the neighbours of the same speaker; a missing, reversed or equal end becomes
    the next word's start, at most a second later; an end after that of the recording becomes that.

    Args:
      alignments: entries [word, [start, end], speaker] or [word, [start, end], speaker, score].
      duration: of the recording, in seconds.
      speakers: label, as text, -> "model" or "user"; None: labels mean nothing and all words are the model's.
      min_score: scores below it count as low.

    Returns:
      The words, sorted by start, and counts: `estimated_start`, `estimated_end`, `reversed`, `zero_length`, `unsorted`,
      `empty_word`, `clamped`, `low_score`, `repeated_words`.

    Raises:
      UnknownSpeaker: labels that `speakers` does not map, with all of them.
      DataError: an entry of another form, more words without a start than with one, or a word that begins more than
        half a second outside the recording.
    """
    counts: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    entries: list[list[Any]] = []
    for index, entry in enumerate(alignments):
        try:
            text, times, label, *rest = entry
            start, end = (_number(t) for t in (times or (None, None)))
            score = _number(rest[0]) if rest else None
            text = " ".join(unicodedata.normalize("NFC", text).split())
            text.encode("utf-8")  # (half a character cannot be)
            label = label_of(label)
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"alignment {index} is {shown(entry)}: it must be [word, [start, end], speaker]") from error
        if not text:
            counts["empty_word"] += 1
            continue
        if speakers is not None and label not in speakers:
            unknown[label] += 1
            continue
        if score is not None and score < min_score:
            counts["low_score"] += 1
        entries.append([text, start, end, "model" if speakers is None else speakers[label], score])
    if unknown:
        raise UnknownSpeaker(dict(unknown))
    untimed = sum(entry[1] is None for entry in entries)
    if 2 * untimed > len(entries):
        raise DataError(
            f"{untimed} of {len(entries)} words have no start time: align the transcript with the recording"
        )
    counts["unsorted"] += sum(
        1 for a, b in zip(entries, entries[1:], strict=False) if None not in (a[1], b[1]) and b[1] < a[1]
    )
    words = []
    for speaker in ("model", "user"):
        own = [entry for entry in entries if entry[3] == speaker]
        words += _repair(own, duration, counts)
    counts["repeated_words"] += _slips(words)
    words.sort(key=lambda word: (word.start, word.end))
    return words, +counts


def _repair(entries: list[list[Any]], duration: float, counts: Counter[str]) -> list[Word]:
    """Fills in the times of one speaker's words, in place, then sorts."""
    for index, entry in enumerate(entries):
        if entry[1] is None:
            counts["estimated_start"] += 1
            before = next((e[2] or e[1] for e in reversed(entries[:index]) if e[1] is not None), 0.0)
            gap = next((i for i, e in enumerate(entries[index:]) if e[1] is not None), None)
            after = entry[2] if entry[2] is not None else None
            if after is None:
                after = entries[index + gap][1] if gap is not None else min(duration, before + 2 * _LONGEST_GUESS)
            entry[1] = min(before + max(after - before, 0.0) / ((gap or 1) + 1), duration)
    entries.sort(key=lambda entry: entry[1])
    words = []
    for index, (text, start, end, speaker, score) in enumerate(entries):
        if end is not None and end < start:
            counts["reversed"] += 1
        elif end is not None and end == start:
            counts["zero_length"] += 1
        elif end is None:
            counts["estimated_end"] += 1
        if end is None or end <= start:
            following = next((e[1] for e in entries[index + 1 :] if e[1] > start), duration)
            end = max(min(following, start + _LONGEST_GUESS), start + _SHORTEST)
        if start < -_SLACK or start >= duration + _SLACK:
            raise DataError(
                f"word {text!r} at {start:.2f} to {end:.2f} s lies outside the recording of {duration:.2f} s: "
                "align it again, or check that transcript and recording belong together"
            )
        if start < 0 or end > duration:
            counts["clamped"] += 1
            start = min(max(start, 0.0), max(duration - _SHORTEST, 0.0))
            end = max(min(end, duration), start)
        words.append(Word(text, start, end, speaker, score))
    return words


def _slips(words: list[Word]) -> int:
    run, slips = 1, 0
    for a, b in zip(words, words[1:], strict=False):
        run = run + 1 if a.text.lower() == b.text.lower() and a.speaker == b.speaker else 1
        slips += run == _REPEATS
    return slips
