"""What is heard in a clip of speech: whether it is fit for use, and when the words of its text are spoken.

Many synthesisers give sound alone, and some repeat words, drop them, or stop early. A recogniser hears each clip again.
It also aligns the text with the sound. Words with times are matched with the text letter by letter, so that it does not
matter where either of them puts spaces.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from moshijax.data.ranges import check_probabilities
from moshijax.data.synthesis.speech import Span
from moshijax.errors import DataError

if TYPE_CHECKING:
    from moshijax.data.recognizer import Aligner, TimedWord

TimedText = tuple[str, float, float]  # text, start and end in seconds

_FRAME_SECONDS = 0.02
_QUIET_DB = -35.0  # relative to the loudest frame, what is silence
_FASTEST, _SLOWEST = 50.0, 3.0  # letters per second
_LETTERS_OF_DIGIT = 6  # "seven", with what may come between digits
_PAUSES = 1.5  # seconds beside the letters: breaths, pauses, silence at both ends
_SILENT = 10 ** (-50 / 20)  # RMS of the loud half
_LONGEST = 30.0  # seconds that can be aligned
_FULL, _CLIPPED_SHARE = 0.999, 0.01


class ClipRejected(DataError):
    """A clip that is not fit for use.

    Attributes:
      kind: "not_finite", "silent", "clipped", "length" or "misheard".
    """

    def __init__(self, message: str, kind: str = "") -> None:  # (pickles call it with the message alone)
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Listening:
    """Who hears clips again, and what is too different from the text.

    Attributes:
      model: of Whisper: a folder, a name in the local cache, or "tiny.en" (`moshijax.data.recognizer.Whisper`).
      language: code of what is spoken.
      device: "cpu" or "cuda".
      most_misheard: share of letters that may differ; above it the clip is rejected.
    """

    model: str = "tiny.en"
    language: str = "en"
    device: str = "cpu"
    most_misheard: float = 0.3

    def __post_init__(self) -> None:
        check_probabilities(self, "most_misheard")

    def recognizer(self) -> Aligner:
        """Return the recogniser, one per process."""
        return _whisper(self.model, self.language, self.device)

    def hear(self, samples: np.ndarray, rate: int, text: str) -> tuple[TimedText, ...]:
        """Return words of a clip with their times: those of the text, aligned with the sound, as far as one can do it.

        Raises:
          ClipRejected: something else is heard.
        """
        recognizer = self.recognizer()
        words = recognizer.words(samples, rate)
        check_heard(words, text, self.most_misheard)
        if len(samples) <= _LONGEST * rate:
            words = recognizer.align(samples, rate, text.split())
        return tuple((word.text, word.start, word.end) for word in words)

    def deciding(self) -> dict[str, Any]:
        """Return all that decides what is heard, as JSON values."""
        return {"recognizer": self.recognizer().settings, "most_misheard": self.most_misheard}


@cache
def _whisper(model: str, language: str, device: str) -> Aligner:
    from moshijax.data.recognizer import Whisper

    return Whisper(model, language, device)


def check(samples: np.ndarray, rate: int, text: str) -> None:
    """Check length and level of a clip.

    Args:
      samples: [N] float32.
      rate: in Hz.
      text: that is spoken.

    Raises:
      ClipRejected: there is no sound, it is clipped, or the text cannot last so long.
    """
    letters = max(1, len(letters_of(text)))
    seconds, digits = len(samples) / rate, sum(char.isdigit() for char in text)
    what = f"the clip of {text[:40]!r}"
    levels = np.sort(_levels(samples, rate))
    if not len(levels) or np.sqrt(np.square(levels[len(levels) // 2 :]).mean()) < _SILENT:
        raise ClipRejected(f"{what} is silent: speak it again, or in another voice", "silent")
    if (np.abs(samples) >= _FULL).mean() > _CLIPPED_SHARE:
        raise ClipRejected(f"{what} is clipped: lower the level of the synthesiser", "clipped")
    least, most = letters / _FASTEST, (letters + (_LETTERS_OF_DIGIT - 1) * digits) / _SLOWEST + _PAUSES
    if not least <= seconds <= most:
        raise ClipRejected(
            f"{what} lasts {seconds:.2f} s, where {letters} letters take {least:.2f} to {most:.2f} s: speak it again, "
            "or write it in other words",
            "length",
        )


def check_heard(heard: Sequence[TimedWord], text: str, most: float) -> None:
    """Check that what was heard is the text.

    Raises:
      ClipRejected: more than a share `most` of the letters differs.
    """
    differs = 1 - _matcher(letters_of(text), letters_of(" ".join(word.text for word in heard))).ratio()
    if differs > most:
        said = " ".join(word.text for word in heard)
        raise ClipRejected(
            f"the clip of {text[:40]!r} was heard as {said[:40]!r}, with {differs:.0%} other letters: speak it again, "
            "or in another voice",
            "misheard",
        )


def word_times(text: str, heard: Sequence[TimedText], samples: np.ndarray, rate: int) -> list[Span]:
    """Return when the tokens of a text are spoken, from words that somebody heard in it, with their times.

    A letter takes an equal share of the word in which it was heard. Tokens without any letter that was heard share the
    time between their neighbours, by their letters. Silence at both ends of a token is taken off.

    Args:
      text: that is spoken.
      heard: in order.
      samples: [N] float32 of the clip.
      rate: in Hz.

    Returns:
      Every token between spaces, with samples, in order and without overlap.
    """
    tokens = text.split()
    levels = _levels(samples, rate)
    loud = np.flatnonzero(levels > levels.max(initial=0.0) * 10 ** (_QUIET_DB / 20))
    first, last = (float(loud[0]), float(loud[-1] + 1)) if len(loud) else (0.0, float(len(levels)))
    begin, end = first * _FRAME_SECONDS, max(last * _FRAME_SECONDS, first * _FRAME_SECONDS + _FRAME_SECONDS)
    edges = _edges(tokens, heard, begin, end)
    spans = []
    for token, (start, stop) in zip(tokens, edges, strict=True):
        inside = loud[(loud * _FRAME_SECONDS >= start - _FRAME_SECONDS) & (loud * _FRAME_SECONDS < stop)]
        if len(inside):
            start, stop = max(start, inside[0] * _FRAME_SECONDS), min(stop, (inside[-1] + 1) * _FRAME_SECONDS)
        spans.append((token, round(start * rate), min(round(max(start, stop) * rate), len(samples))))
    return spans


def _edges(tokens: Sequence[str], heard: Sequence[TimedText], begin: float, end: float) -> list[tuple[float, float]]:
    """Start and end of every token, in seconds from `begin` to `end`."""
    wanted = [(letter, number) for number, token in enumerate(tokens) for letter in letters_of(token)]
    letters, starts, ends = [], [], []
    for word, start, stop in heard:
        own = letters_of(word)
        for place, letter in enumerate(own):
            letters.append(letter)
            starts.append(start + (stop - start) * place / len(own))
            ends.append(start + (stop - start) * (place + 1) / len(own))
    found: dict[int, tuple[float, float]] = {}
    for block in _matcher("".join(letter for letter, _ in wanted), "".join(letters)).get_matching_blocks():
        for offset in range(block.size):
            token = wanted[block.a + offset][1]
            start, stop = starts[block.b + offset], ends[block.b + offset]
            found[token] = (
                (min(start, found[token][0]), max(stop, found[token][1])) if token in found else (start, stop)
            )
    edges: list[tuple[float, float]] = []
    at, number = begin, 0
    while number < len(tokens):
        if number in found:
            start = min(max(found[number][0], at), end)
            at = min(max(found[number][1], start), end)
            edges.append((start, at))
            number += 1
            continue
        group = [n for n in range(number, len(tokens)) if not any(k in found for k in range(number, n + 1))]
        following = found.get(group[-1] + 1)
        limit = end if following is None else min(max(following[0], at), end)
        sizes = np.cumsum([0] + [max(1, len(letters_of(tokens[n]))) for n in group])
        cuts = at + (limit - at) * sizes / sizes[-1]
        edges += [(float(a), float(b)) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
        at, number = limit, group[-1] + 1
    return edges


def letters_of(text: str) -> str:
    """Return letters and digits alone, without case."""
    return "".join(char for char in text.casefold() if char.isalnum())


def _matcher(one: str, other: str) -> difflib.SequenceMatcher:
    return difflib.SequenceMatcher(None, one, other, autojunk=False)


def _levels(samples: np.ndarray, rate: int) -> np.ndarray:
    """RMS of every 20 ms."""
    step = round(_FRAME_SECONDS * rate)
    pieces = samples[: len(samples) // step * step].reshape(-1, step)
    return np.sqrt(np.square(pieces, dtype=np.float64).mean(axis=1))
