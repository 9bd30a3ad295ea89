"""A model's answers to Full-Duplex-Bench, as the folders that its scripts read."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moshijax import files
from moshijax.errors import ConfigError, MoshijaxError
from moshijax.eval.evaluation import ProgressFn
from moshijax.eval.fdb_tree import ADDED, Sample, annotated, write_words
from moshijax.eval.spoken_qa import conversation
from moshijax.runtime import audio
from moshijax.runtime.manifest import MANIFEST

if TYPE_CHECKING:
    from jaxtyping import Float

    from moshijax.data.recognizer import Whisper
    from moshijax.runtime.artifact import Artifact
    from moshijax.runtime.hosting import Call

RECORD = "answers.json"  # beside the folders of the tasks: what the answers depend on
RATE = 16_000  # Hz; the published backchannel script takes it for granted
_AT_ONCE = 64  # recordings in memory


@dataclass(frozen=True)
class Answerer:
    """What answers.

    Attributes:
      artifact: of a model that converses.
      recognizer: hears the words of answers; None: they are the model's own text.
      platform: "cpu", "cuda" or "tpu"; None: what jax finds.
    """

    artifact: str
    recognizer: Whisper | None = None
    platform: str | None = None

    def record(self) -> dict[str, Any]:
        """Return what answers depend on.

        Raises:
          ConfigError: the artifact does not both listen and speak.
        """
        description = conversation(self.artifact)
        sound = description["audio"]
        return {
            "model": hashlib.sha256((Path(self.artifact) / MANIFEST).read_bytes()).hexdigest(),
            "sampling": description["sampling"]["defaults"],
            "frame_seconds": sound["frame_size"] / sound["sample_rate"],
            "clock": "slot",
            "words": "text" if self.recognizer is None else self.recognizer.sha256,
        }

    def answer(self, samples: Sequence[Sample], root: Path, progress: ProgressFn) -> list[Sample]:
        """Copy samples into another tree, hear them, and write `output.wav` and `output.json` there.

        Audio that the step which hears frame k returns takes the place of frame k, as the published clients write it:
        a frame better than a causal clock. What is there already is not made again. With a recogniser the inputs'
        words are written too, where a task has `clean_input.wav`.

        Args:
          samples: of the benchmark.
          root: of the tree to write; it may hold answers of the same model.
          progress: told the recordings done.

        Returns:
          The samples in that tree.

        Raises:
          ConfigError: the tree has answers of another model or in another way, or the artifact does not converse.
          DataError: a recording cannot be used.
        """
        self._claim(root)
        copies = [_copy(sample, root) for sample in samples]
        jobs = [(copy, heard, said) for copy in copies for heard, said in copy.recordings.items()]
        jobs = [job for job in jobs if not all((job[0].folder / name).is_file() for name in _written(job[2]))]
        if jobs:
            progress(0, len(jobs), "compiling")
        for (copy, heard, said), (pcm, words) in zip(jobs, self._heard(jobs, progress), strict=True):
            if self.recognizer is not None:
                begin = annotated(copy.folder / "interrupt.json")[1] if copy.kind == "interruption" else 0.0
                found = self.recognizer.words(pcm[int(begin * RATE) :], RATE)
                words = [(text, start + begin, end + begin) for text, start, end, _ in found]
                if copy.kind == "overlap":
                    sound = audio.read_channel(copy.folder / heard, RATE)
                    found = self.recognizer.words(sound, RATE)
                    write_words((copy.folder / heard).with_suffix(".json"), [word[:3] for word in found])
            audio.write(copy.folder / said, pcm, RATE)
            write_words((copy.folder / said).with_suffix(".json"), _after(copy, words))
        return copies

    def _claim(self, root: Path) -> None:
        record, path = self.record(), root / RECORD
        if path.exists() and (known := files.read_json(path, "record")) != record:
            differing = ", ".join(
                name for name in record if not isinstance(known, dict) or known.get(name) != record[name]
            )
            raise ConfigError(f"{root} holds answers that differ in {differing}; choose another folder, or remove it")
        root.mkdir(parents=True, exist_ok=True)
        files.write_json(path, record)

    def _heard(
        self, jobs: Sequence[tuple[Sample, str, str]], progress: ProgressFn
    ) -> Iterator[tuple[Float[np.ndarray, " N"], list[tuple[str, float, float]]]]:
        """What the model says to each recording, at `RATE` and as long, and the words of its text."""
        from moshijax import runtime
        from moshijax.runtime import play
        from moshijax.runtime.rows import CallOptions

        if not jobs:
            return
        model = runtime.load(self.artifact, self.platform)
        rows = runtime.Rows(model, max(model.manifest["batches"]), prompts=False)
        for first in range(0, len(jobs), _AT_ONCE):
            some = jobs[first : first + _AT_ONCE]
            users = [audio.read_channel(sample.folder / heard, model.sample_rate) for sample, heard, _ in some]
            calls, _ = play.play(rows, users, [CallOptions(int(sample.id)) for sample, *_ in some])
            for number, (job, call) in enumerate(zip(some, calls, strict=True), first + 1):
                yield in_slots(model, call, job[0].folder / job[1])
                progress(number, len(jobs), "recordings")


def in_slots(
    model: Artifact, call: Call, heard: Path
) -> tuple[Float[np.ndarray, " N"], list[tuple[str, float, float]]]:
    """Return a call's audio at `RATE`, as long as the recording that was heard, and its words, on the clock of slots.

    A column of the grid is returned `max_delay` steps after the frame that it belongs to was heard.
    """
    from moshijax.runtime.text import words_of

    samples, rate = audio.read(heard)
    length = round(len(samples) * RATE / rate)
    pcm = audio.resample(np.pad(call.pcm, (model.max_delay * model.frame_size, 0)), model.sample_rate, RATE)
    delay = model.max_delay * model.frame_seconds
    seconds = len(samples) / rate
    words = [(text, start + delay, min(end + delay, seconds)) for text, start, end in words_of(model, call.text_tokens)]
    return np.pad(pcm[:length], (0, max(0, length - len(pcm)))), [word for word in words if word[1] < seconds]


def _after(sample: Sample, words: list[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
    """Words after an interruption, where a task has one: the scripts crop the audio before they transcribe it."""
    if sample.kind != "interruption":
        return words
    _, end = annotated(sample.folder / "interrupt.json")
    return [word for word in words if word[1] >= end]


def _written(said: str) -> tuple[str, str]:
    return said, str(Path(said).with_suffix(".json"))


def _copy(sample: Sample, root: Path) -> Sample:
    """Link or copy what the benchmark gives, not what other models have added."""
    folder = root / sample.task / sample.id
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in sample.folder.iterdir():
            if path.name not in ADDED and path.is_file() and not (folder / path.name).exists():
                try:
                    os.link(path, folder / path.name)
                except OSError:  # (another disk)
                    shutil.copyfile(path, folder / path.name)
    except OSError as error:
        raise MoshijaxError(f"cannot copy {sample.folder} to {folder}: {error.strerror}") from None
    return Sample(sample.task, sample.id, folder)
