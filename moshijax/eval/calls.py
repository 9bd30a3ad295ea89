"""Scores of question-and-answer calls: answers against chance, and whether the voice speaks where the text does."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

FLOOR_DB = -100.0
WORD_SECONDS = 0.4  # a word of the text stream counts as spoken for this long from its first frame
MARGIN_SECONDS = 0.8  # frames nearer than this to a spoken word count neither as speech nor as silence


@dataclass(frozen=True)
class HeldOutCall:
    """One call that was played, with what was asked and what came back.

    Attributes:
      id: of the recording.
      group: the voices that the call belongs to, for example "rough".
      kind: "question", "unrelated" or "silence".
      asked, expected, answered: texts; expected is "" where silence is right.
      words: (text, start, end) of the answer, in seconds of grid time.
      answer_delay: seconds from the end of the question to the first word, None without a word.
    """

    id: str
    group: str
    kind: str
    asked: str
    expected: str
    answered: str
    words: tuple[tuple[str, float, float], ...] = ()
    answer_delay: float | None = None

    @property
    def right(self) -> bool:
        """Whether the words are exactly the expected ones: none for speech that is no question, and for silence."""
        return normalise(self.answered) == normalise(self.expected)


@dataclass(frozen=True)
class Rate:
    """A share of calls.

    Attributes:
      hits: calls that count.
      total: all calls.
    """

    hits: int
    total: int

    @property
    def value(self) -> float:
        """The quotient, NaN if nothing was played."""
        return self.hits / self.total if self.total else float("nan")

    def __str__(self) -> str:
        return f"{self.hits} of {self.total}" if self.total else "none played"


def normalise(text: str) -> tuple[str, ...]:
    """Return words in lower case without punctuation: the form in which answers are compared."""
    return tuple(re.sub(r"[^\w\s']", " ", text.lower()).split())


def exact(calls: Iterable[HeldOutCall]) -> Rate:
    """Count the questions answered with exactly the right words."""
    questions = [call for call in calls if call.kind == "question"]
    return Rate(sum(call.right for call in questions), len(questions))


def answered(calls: Iterable[HeldOutCall], kind: str) -> Rate:
    """Count the calls of a kind in which the model said at least one word."""
    chosen = [call for call in calls if call.kind == kind]
    return Rate(sum(bool(normalise(call.answered)) for call in chosen), len(chosen))


def chance(calls: Sequence[HeldOutCall], shuffles: int = 200, seed: int = 0) -> float:
    """Return the share of exact answers when each is compared with the expected answer of a random question.

    The mean over random permutations of the questions: the score of a model that knows the answers but does not listen.
    """
    questions = [call for call in calls if call.kind == "question"]
    if not questions:
        return float("nan")
    rng = random.Random(seed)
    given = [normalise(call.answered) for call in questions]
    wanted = [normalise(call.expected) for call in questions]
    hits = 0
    for _ in range(shuffles):
        rng.shuffle(wanted)
        hits += sum(a == b for a, b in zip(given, wanted, strict=True))
    return hits / (shuffles * len(questions))


def frame_levels(pcm: Float[np.ndarray, " N"], frame_size: int) -> Float[np.ndarray, " T"]:
    """Return the RMS of every whole frame, in dB relative to full scale, not below `FLOOR_DB`."""
    frames = np.asarray(pcm, np.float64)[: len(pcm) // frame_size * frame_size].reshape(-1, frame_size)
    return 10 * np.log10(np.square(frames).mean(axis=1) + 10 ** (FLOOR_DB / 10))


@dataclass(frozen=True)
class SpeechEnergy:
    """Levels of the model's voice where its text says words and away from them, in dB relative to full scale.

    Attributes:
      words_db, silence_db: means of power over the frames, expressed in dB.
      audible: share of words with at least one frame louder than `threshold_db`.
      quiet: share of frames away from words that stay below it.
      words: number of words.
      threshold_db: above this level a frame is speech.
    """

    words_db: float
    silence_db: float
    audible: float
    quiet: float
    words: int
    threshold_db: float


def speech_energy(
    calls: Iterable[tuple[Float[np.ndarray, " N"], Sequence[tuple[str, float, float]]]],
    sample_rate: int,
    frame_size: int,
    threshold_db: float = -40.0,
) -> SpeechEnergy:
    """Compare the model's channel with its own text over calls of (pcm, words).

    A frame belongs to a word if it lies within `WORD_SECONDS` of the word's start, and to silence if it is further than
    `MARGIN_SECONDS` from every word (text gives the start of a word and not its end). Values are NaN where there is no
    frame of a kind.
    """
    inside, outside, loudest = [], [], []
    for pcm, words in calls:
        levels = frame_levels(pcm, frame_size)
        starts = np.array([start for _, start, _ in words])
        speech, silence = _regions(starts, len(levels), frame_size / sample_rate)
        inside.append(levels[speech])
        outside.append(levels[silence])
        for start in starts:
            own, _ = _regions(np.array([start]), len(levels), frame_size / sample_rate)
            if own.any():
                loudest.append(levels[own].max())
    inside_T, outside_T = (np.concatenate(parts) if parts else np.zeros(0) for parts in (inside, outside))
    return SpeechEnergy(
        words_db=_mean_power(inside_T),
        silence_db=_mean_power(outside_T),
        audible=float(np.mean(np.array(loudest) > threshold_db)) if loudest else float("nan"),
        quiet=float(np.mean(outside_T < threshold_db)) if len(outside_T) else float("nan"),
        words=len(loudest),
        threshold_db=threshold_db,
    )


def _regions(
    starts: Float[np.ndarray, " W"], frames: int, frame_seconds: float
) -> tuple[Bool[np.ndarray, " T"], Bool[np.ndarray, " T"]]:
    middle_T1 = (np.arange(frames)[:, None] + 0.5) * frame_seconds
    after_TW = middle_T1 - starts[None]
    speech = ((after_TW >= 0) & (after_TW < WORD_SECONDS)).any(axis=1)
    near = ((after_TW > -MARGIN_SECONDS) & (after_TW < WORD_SECONDS + MARGIN_SECONDS)).any(axis=1)
    return speech, ~near


def _mean_power(levels_db: Float[np.ndarray, " T"]) -> float:
    return float(10 * np.log10(np.mean(10 ** (levels_db / 10)))) if len(levels_db) else float("nan")
