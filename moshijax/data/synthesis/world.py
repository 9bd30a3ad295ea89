"""Closed worlds of spoken questions and answers: random calls that the model answers or leaves unanswered."""

from __future__ import annotations

import random
from dataclasses import dataclass

from moshijax import files
from moshijax.data.synthesis.dialogue import Dialogue, Utterance
from moshijax.data.synthesis.voices import CASTS, Cast
from moshijax.errors import DataError

SPLICED_WORDS = 9  # at most, in a spliced sentence


@dataclass(frozen=True)
class World:
    """A closed world of questions.

    Attributes:
      questions: (question, answer) pairs.
      unrelated: speech that gets no answer.
    """

    questions: tuple[tuple[str, str], ...]
    unrelated: tuple[str, ...] = ()


@dataclass(frozen=True)
class CallRanges:
    """Ranges from which a call of a world is drawn, uniformly.

    Attributes:
      duration: of the recording, in seconds.
      lead: seconds before the user speaks.
      gap: seconds between question and answer.
      grid: as in `Dialogue`.
      gain_db: of the user's channel.
      snr_db: of the user's channel.
      spliced: share of the unrelated utterances that begin like one sentence of the world, questions among them, and
        end like another: only a model that hears all of it knows whether to answer.
      cast: who asks and answers.
    """

    duration: float = 4.8
    lead: tuple[float, float] = (0.1, 1.6)
    gap: tuple[float, float] = (0.3, 0.3)
    grid: float = 0.0
    gain_db: tuple[float, float] = (-8.0, 6.0)
    snr_db: tuple[float, float] = (15.0, 40.0)
    spliced: float = 0.0
    cast: Cast = CASTS["espeak-ng"]


def parse_world(text: str, where: str = "text") -> World:
    """Read lines `question => answer`; a line without `=>` is unrelated speech; `#` begins a comment.

    Raises:
      DataError: a line without a question, or without an answer after `=>`; `where` names it.
    """
    questions, unrelated = [], []
    for number, raw in enumerate(files.lines(text), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        question, arrow, answer = (part.strip() for part in line.partition("=>"))
        if not question or (arrow and not answer):
            raise DataError(f"{where}, line {number}: {line[:60]!r} has no question or no answer around '=>'")
        if arrow:
            questions.append((question, answer))
        else:
            unrelated.append(question)
    return World(tuple(questions), tuple(unrelated))


def splice(world: World, rng: random.Random) -> str:
    """Join the beginning of a sentence of the world and the end of another so that they are no question of the world.

    Each part is as often one of a question as one of unrelated speech: the nearer to a question, the more it teaches.
    """
    questions = [question for question, _ in world.questions]
    kinds = [[text.split() for text in texts if " " in text] for texts in (questions, world.unrelated) if texts]
    while True:
        first, second = (rng.choice(rng.choice(kinds)) for _ in range(2))
        words = first[: rng.randint(1, len(first) - 1)] + second[rng.randint(1, len(second) - 1) :]
        if len(words) <= SPLICED_WORDS and " ".join(words) not in questions:
            return " ".join(words)


def draw_calls(
    world: World,
    answered: int,
    unanswered: int = 0,
    silent: int = 0,
    seed: int = 0,
    ranges: CallRanges = CallRanges(),
    prefix: str = "call",
) -> list[Dialogue]:
    """Draw random calls: questions in turn with random voices, leads and levels, then unrelated speech, then silence.

    Args:
      world: what is asked and answered.
      answered: number of calls with a question.
      unanswered: number of calls with unrelated speech.
      silent: number of calls in which nobody speaks.
      seed: of the draws.
      ranges: of what is drawn.
      prefix: of the ids.

    Returns:
      The dialogues; `meta` of each holds `kind` ("question", "unrelated" or "silence"), `question` and `answer`.

    Raises:
      DataError: the world lacks what is asked for.
    """
    if (answered and not world.questions) or (unanswered and not world.unrelated):
        raise DataError("the world has no question (or no unrelated speech) to draw from: add lines to its text")
    calls = []
    for index in range(answered + unanswered + silent):
        rng = random.Random(f"{seed} {prefix} {index}")
        voice = ranges.cast.user(rng)
        gap = rng.uniform(*ranges.gap)
        if index < answered:
            question, answer = world.questions[index % len(world.questions)]
            kind, utterances = "question", (Utterance("user", question), Utterance("model", answer, gap=gap))
        elif index < answered + unanswered:
            question, answer = world.unrelated[(index - answered) % len(world.unrelated)], ""
            if rng.random() < ranges.spliced:
                question = splice(world, rng)
            kind, utterances = "unrelated", (Utterance("user", question),)
        else:
            question, answer, kind, utterances = "", "", "silence", ()
        calls.append(
            Dialogue(
                id=f"{prefix}-{index:05d}",
                utterances=utterances,
                model_voice=ranges.cast.model,
                user_voice=voice,
                lead=round(rng.uniform(*ranges.lead), 3),
                duration=ranges.duration,
                grid=ranges.grid,
                gain_db=round(rng.uniform(*ranges.gain_db), 2),
                snr_db=round(rng.uniform(*ranges.snr_db), 1),
                meta={"kind": kind, "question": question, "answer": answer},
            )
        )
    return calls
