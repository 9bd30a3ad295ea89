"""Word times of a recording: reading the sidecar, and repairing what can be repaired, counted."""

from __future__ import annotations

import json
import math
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moshijax.annotations import shown
from moshijax.errors import DataError

SPEAKERS: Mapping[str, str] = {"SPEAKER_MAIN": "model", "SPEAKER_USER": "user", "model": "model", "user": "user"}
_LONGEST_GUESS = 1.0  # seconds that a word without an end may last
_SHORTEST = 0.02  # seconds given to a word whose start and end are equal
_SLACK = 0.5  # seconds by which a word may lie outside the recording before the item is rejected
_REPEATS = 4  # equal words in a row that look like a slipped alignment


class UnknownSpeaker(DataError):
    """A speaker label that no map explains; it stops the job, since guessing would train on the wrong channel."""


@dataclass(frozen=True)
class Word:
    """A spoken word.

    Attributes:
      text: NFC, without surrounding space.
      start: in seconds.
      end: in seconds.
      speaker: "model" or "user".
    """

    text: str
    start: float
    end: float
    speaker: str


def read_sidecar(path: Path) -> dict[str, Any]:
    """Read the JSON object of a sidecar file.

    Raises:
      DataError: the file is missing, not UTF-8, or holds no such object; the message names it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"transcript {path} does not exist: every recording needs one, named like it") from error
    except OSError as error:
        raise DataError(f"transcript {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"transcript {path} is not UTF-8 (byte {error.start}): convert it to UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"transcript {path} is not JSON ({error}): write it again") from error
    if not isinstance(content, dict) or not isinstance(content.get("alignments"), list):
        raise DataError(f'transcript {path} has no list "alignments" of [word, [start, end], speaker]')
    return content


def _time(value: Any) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None


def parse_alignments(
    alignments: list[Any],
    duration: float,
    speakers: Mapping[str, str] | None = SPEAKERS,
    min_score: float = 0.0,
) -> tuple[list[Word], Counter[str]]:
    """Read the words of a transcript, and repair their times.

    Missing starts are interpolated between the neighbours of the same speaker; a missing, reversed or equal end becomes
    the next word's start, at most a second later.

    Args:
      alignments: entries [word, [start, end], speaker] or [word, [start, end], speaker, score].
      duration: of the recording, in seconds.
      speakers: label -> "model" or "user"; None: labels mean nothing and all words are the model's.
      min_score: scores below it count as low.

    Returns:
      The words, sorted by start, and counts: `estimated_start`, `estimated_end`, `reversed`, `zero_length`, `unsorted`,
      `empty_word`, `clamped`, `low_score`, `repeated_words`.

    Raises:
      UnknownSpeaker: a label that `speakers` does not map.
      DataError: an entry of another form, or a word more than half a second outside the recording.
    """
    counts: Counter[str] = Counter()
    entries: list[list[Any]] = []
    for index, entry in enumerate(alignments):
        try:
            text, times, label, *rest = entry
            start, end = (_time(t) for t in (times or (None, None)))
            text = " ".join(unicodedata.normalize("NFC", text).split())
            text.encode("utf-8")  # (half a character cannot be)
            hash(label)
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"alignment {index} is {shown(entry)}: it must be [word, [start, end], speaker]") from error
        if speakers is not None and label not in speakers:
            raise UnknownSpeaker(
                f"speaker {label!r} of word {text!r} is not known: map it with --speaker {label}=model or {label}=user"
            )
        if not text:
            counts["empty_word"] += 1
            continue
        score = _time(rest[0]) if rest else None
        if score is not None and score < min_score:
            counts["low_score"] += 1
        entries.append([text, start, end, "model" if speakers is None else speakers[label]])
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
    for index, (text, start, end, speaker) in enumerate(entries):
        if end is not None and end < start:
            counts["reversed"] += 1
        elif end is not None and end == start:
            counts["zero_length"] += 1
        elif end is None:
            counts["estimated_end"] += 1
        if end is None or end <= start:
            following = next((e[1] for e in entries[index + 1 :] if e[1] > start), duration)
            end = max(min(following, start + _LONGEST_GUESS), start + _SHORTEST)
        if start < -_SLACK or start >= duration + _SLACK or end > duration + 2 * _SLACK:
            raise DataError(
                f"word {text!r} at {start:.2f} to {end:.2f} s lies outside the recording of {duration:.2f} s: "
                "align it again, or check that transcript and recording belong together"
            )
        if start < 0 or end > duration:
            counts["clamped"] += 1
            start = min(max(start, 0.0), max(duration - _SHORTEST, 0.0))
            end = max(min(end, duration), start)
        words.append(Word(text, start, end, speaker))
    return words


def _slips(words: list[Word]) -> int:
    run, slips = 1, 0
    for a, b in zip(words, words[1:], strict=False):
        run = run + 1 if a.text.lower() == b.text.lower() and a.speaker == b.speaker else 1
        slips += run == _REPEATS
    return slips
