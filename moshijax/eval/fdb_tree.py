"""The folders of Full-Duplex-Bench v1 and v1.5 (arXiv 2503.04721): what a task holds, and what a model adds.

`ROOT/{task}/{ID}/` has `input.wav` and annotations; a model adds `output.wav` of the same start and length, and its
words as `output.json`. Format as in the public repository at commit d7336bd.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from moshijax import files
from moshijax.errors import DataError

#: Task -> kind of scorer.
TASKS = {
    "candor_pause_handling": "pause",
    "synthetic_pause_handling": "pause",
    "candor_turn_taking": "turn_taking",
    "icc_backchannel": "backchannel",
    "synthetic_user_interruption": "interruption",
    "user_interruption": "overlap",
    "user_backchannel": "overlap",
    "talking_to_other": "overlap",
    "background_speech": "overlap",
}
#: Kind -> what a folder of it holds before a model answers.
GIVEN = {
    "pause": ("input.wav", "pause.json"),
    "turn_taking": ("input.wav", "turn_taking.json"),
    "backchannel": ("input.wav",),
    "interruption": ("input.wav", "interrupt.json"),
    "overlap": ("input.wav", "clean_input.wav", "metadata.json"),
}
#: What models, transcribers and judges add to a folder.
ADDED = (
    "output.wav", "output.json", "clean_output.wav", "clean_output.json", "input.json", "clean_input.json",
    "latency_intervals.json", "rating.json", "content_tag.json",
)  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """A folder of the benchmark.

    Attributes:
      task: a key of `TASKS`.
      id: digits.
      folder: its path.
    """

    task: str
    id: str
    folder: Path

    @property
    def kind(self) -> str:
        """Of scorer."""
        return TASKS[self.task]

    @property
    def recordings(self) -> dict[str, str]:
        """What a model hears -> what it writes."""
        pairs = {"input": "output"} | ({"clean_input": "clean_output"} if self.kind == "overlap" else {})
        return {f"{heard}.wav": f"{said}.wav" for heard, said in pairs.items()}


class TimedWord(NamedTuple):
    """A word of a transcript.

    Attributes:
      text: as it was written.
      start, end: in seconds; None where the transcriber did not know.
    """

    text: str
    start: float | None
    end: float | None


def read_tree(root: Path, tasks: Sequence[str] = ()) -> dict[str, list[Sample]]:
    """Return the samples of every task that is there, by number.

    Args:
      root: the folder with the tasks.
      tasks: to read; empty: those that are there.

    Raises:
      DataError: no task is there, one that was asked for is not, or a folder misses a file of the benchmark.
    """
    found = {}
    for task in tasks or TASKS:
        if not (root / task).is_dir():
            if tasks:
                raise DataError(f"{root} has no folder {task}; fetch the benchmark's data, or leave the task out")
            continue
        folders = [path for path in (root / task).iterdir() if path.is_dir() and path.name.isdecimal()]
        found[task] = [Sample(task, path.name, path) for path in sorted(folders, key=lambda path: int(path.name))]
        if not found[task]:
            raise DataError(f"{root / task} has no folders named by numbers, one for each sample; fetch the data again")
        for name in GIVEN[TASKS[task]]:
            lacking = [sample.folder for sample in found[task] if not (sample.folder / name).is_file()]
            if lacking:
                raise DataError(
                    f"{len(lacking)} of {len(found[task])} folders of {task} have no {name}, such as {lacking[0]}; "
                    "fetch the benchmark's data again"
                )
    if not found:
        raise DataError(f"{root} has none of the tasks {', '.join(TASKS)}; give the folder that holds them")
    return found


def read_words(path: Path) -> list[TimedWord]:
    """Read a transcript, `{"text": ..., "chunks": [{"text": word, "timestamp": [start, end]}]}`.

    Raises:
      DataError: the file has another form.
    """
    content = files.read_json(path, "transcript")
    try:
        return [TimedWord(str(one["text"]), *map(_time, one["timestamp"])) for one in content["chunks"]]
    except (TypeError, KeyError, ValueError) as error:
        raise DataError(
            f'{path} is not {{"text": ..., "chunks": [{{"text": word, "timestamp": [start, end]}}]}} '
            f"({error!r}): transcribe it again"
        ) from None


def _time(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no time")
    return float(value)


def write_words(path: Path, words: Iterable[tuple[str, float, float]]) -> None:
    """Write a transcript of (word, start, end)."""
    words = list(words)
    chunks = [{"text": text, "timestamp": [round(start, 4), round(end, 4)]} for text, start, end in words]
    files.write_json(path, {"text": " ".join(text for text, _, _ in words), "chunks": chunks})


def annotated(path: Path) -> tuple[float, float]:
    """Return the times in seconds of the first entry of `turn_taking.json` or `interrupt.json`.

    Raises:
      DataError: the file has another form.
    """
    content = files.read_json(path, "annotation")
    try:
        start, end = content[0]["timestamp"]
        return float(start), float(end)
    except (TypeError, KeyError, IndexError, ValueError):
        raise DataError(f'{path} is not [{{"timestamp": [start, end]}}]; fetch the benchmark\'s data again') from None


def read_reference(path: Path) -> Mapping[str, Sequence[float]]:
    """Read the curves of human backchannels, `icc_gt_distribution.json`: ID -> shares of equal parts of a recording.

    Raises:
      DataError: the file has another form.
    """
    content = files.read_json(path, "reference")
    curves = content.items() if isinstance(content, dict) else [(None, None)]
    if not all(
        isinstance(curve, list) and len(curve) > 1 and all(isinstance(share, int | float) for share in curve)
        for _, curve in curves
    ):
        raise DataError(f"{path} is no object of lists of numbers by ID; give icc_gt_distribution.json")
    return content
