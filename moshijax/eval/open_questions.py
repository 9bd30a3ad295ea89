"""Spoken questions with open answers: Web Questions, Llama Questions, TriviaQA, by text and by what is heard.

The Moshi paper (arXiv 2410.00037, table 8): the question is in the user's stream, then one EPAD is forced in the text,
which makes the model begin to speak; what it writes from there on is the answer. It also puts a random opening of its
instruct data before the question, which is not published and left out here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moshijax.data.recognizer import SHIPPED, Whisper
from moshijax.errors import ConfigError
from moshijax.eval.evaluation import Evaluation, ProgressFn, Results, silent
from moshijax.eval.heard import JUDGES
from moshijax.eval.question_sets import OpenQuestion, read_questions
from moshijax.eval.spoken_qa import conversation
from moshijax.files import write_json
from moshijax.optional import MissingPackage
from moshijax.runtime import audio
from moshijax.runtime.manifest import MANIFEST

if TYPE_CHECKING:
    from moshijax.report.page import Page
    from moshijax.runtime.rows import Rows

ANSWERS = "answers.json"
_AT_ONCE = 64  # questions in memory


@dataclass(frozen=True)
class OpenQuestions(Evaluation):
    """Share of questions of which the model's answer holds an accepted one, in its text and in what is heard of it.

    Attributes:
      artifact: of a model that converses.
      questions: a table or a manifest (`moshijax.eval.question_sets.read_questions`).
      force_epad: force one EPAD when the question is over, as published; False: the model begins when it likes.
      answer_seconds: time for the answer, after the question.
      recognizer: as `moshijax.data.recognizer.Whisper` takes it; None: only the text is scored.
      shown: answers on the page, with audio.
      platform: "cpu", "cuda" or "tpu"; None: what jax finds.
    """

    artifact: str
    questions: str
    force_epad: bool = True
    answer_seconds: float = 10.0
    recognizer: str | None = SHIPPED
    shown: int = 6
    platform: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.answer_seconds < 3600 or self.shown < 0:
            raise ConfigError(
                f"answer_seconds {self.answer_seconds:g} and shown {self.shown}: must be above 0 and below an "
                "hour, and at least 0"
            )

    def run(self, out: Path, progress: ProgressFn = silent) -> Results:
        """See `Evaluation.run`; `answers.json` is written to `out`."""
        from moshijax import runtime

        asked, sha256 = read_questions(self.questions)
        description = conversation(self.artifact)
        results = Results(
            f"Questions of {self.questions} to {self.artifact}",
            "An answer is right if it holds the words of an accepted one. "
            + ("One EPAD is forced when the question is over." if self.force_epad else "Nothing is forced."),
        )
        recognizer = None
        if self.recognizer is not None:
            try:
                recognizer = Whisper(self.recognizer)
            except MissingPackage as error:
                results.notes.append(f"heard answers are not scored: {error}")
        progress(0, None, "compiling")
        model = runtime.load(self.artifact, self.platform)
        rows = runtime.Rows(model, max(description["batches"]), prompts=False)
        answers: list[Answer] = []
        for first in range(0, len(asked), _AT_ONCE):
            for answer in self._ask(rows, asked[first : first + _AT_ONCE], first):
                if recognizer is not None:
                    answer = dataclasses.replace(answer, heard=recognizer.hear(answer.pcm, model.sample_rate))
                answers.append(answer if len(answers) < self.shown else dataclasses.replace(answer, pcm=np.zeros(0)))
                progress(len(answers), len(asked), "questions")
        write_json(out / ANSWERS, [answer.as_json() for answer in answers])
        results.add("text/accuracy", {one.question.id: (one.question.accepts(one.text), 1) for one in answers})
        if recognizer is not None:
            results.add("heard/accuracy", {one.question.id: (one.question.accepts(one.heard), 1) for one in answers})
        results.add("answered", {one.question.id: (bool(one.text), 1) for one in answers})
        results.sections.append(partial(_draw, results=results, answers=answers, rate=model.sample_rate, settings=self))
        sha = hashlib.sha256((Path(self.artifact) / MANIFEST).read_bytes()).hexdigest()
        more = {"sampling": description["sampling"]["defaults"]}
        if recognizer is not None:
            more["recognizer"] = recognizer.sha256
        results.provenance = self.provenance(sha, {"questions": sha256}, JUDGES if recognizer else (), **more)
        return results

    def _ask(self, rows: Rows, asked: Sequence[OpenQuestion], seed: int) -> list[Answer]:
        """Play some questions, each with a seed of its own, and return what is said after them."""
        from moshijax.runtime import play
        from moshijax.runtime.rows import CallOptions
        from moshijax.runtime.text import words_of

        model = rows.artifact
        users = [audio.read_mixed(question.audio, model.sample_rate) for question in asked]
        ends = [math.ceil(len(user) / model.frame_size) for user in users]
        epad = model.manifest["text"]["special"]["epad"]
        calls, _ = play.play(
            rows,
            users,
            [CallOptions(seed + n) for n in range(len(users))],
            tail_seconds=self.answer_seconds,
            forced=[{end: epad} for end in ends] if self.force_epad else None,
        )
        found = []
        for question, call, end in zip(asked, calls, ends, strict=True):
            words = [word for word, start, _ in words_of(model, call.text_tokens) if start >= end * model.frame_seconds]
            found.append(Answer(question, " ".join(words), call.pcm[end * model.frame_size :]))
        return found


@dataclass(frozen=True)
class Answer:
    """What was said after a question.

    Attributes:
      question: that was asked.
      text: that the model wrote.
      pcm: that it spoke.
      heard: what the recogniser heard of it; None: there is none.
    """

    question: OpenQuestion
    text: str
    pcm: np.ndarray
    heard: str | None = None

    def as_json(self) -> dict[str, object]:
        """Return it without the audio."""
        one = self.question
        scored = {"text": self.text, "right": one.accepts(self.text), "heard": self.heard}
        return {"id": one.id, "question": one.asked, "answers": list(one.answers), **scored}


def _draw(page: Page, results: Results, answers: Sequence[Answer], rate: int, settings: OpenQuestions) -> None:
    values = results.values
    page.section("Answers")
    rows = [("in the text", "text/accuracy"), ("in what is heard", "heard/accuracy"), ("any words", "answered")]
    page.table(("", "share"), [(label, f"{values[name]:.1%}" if name in values else "-") for label, name in rows])
    shown = answers[: settings.shown]
    page.clips(((one.question.asked or one.question.id, f"{one.text or '(nothing)'}", one.pcm) for one in shown), rate)
    page.table(
        ("question", "accepted", "text", "heard"),
        [
            (one.question.asked or one.question.id, one.question.answers[0], one.text or "(nothing)",
             "-" if one.heard is None else one.heard or "(nothing)")
            for one in answers
        ],
        [one.question.accepts(one.text) for one in answers],
    )  # fmt: skip
