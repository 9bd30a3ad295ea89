"""Stages with done-markers: a run that is killed anywhere continues with the stage it was in."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import moshijax
from moshijax.errors import ConfigError, DataError
from moshijax.files import write_json
from moshijax.optional import MissingPackage
from moshijax.quickstart.settings import Folder, Settings

if TYPE_CHECKING:
    from moshijax.eval.evaluation import ProgressFn

CLAIM = "quickstart.json"


@dataclass(frozen=True)
class Stage:
    """One stage of the job.

    Attributes:
      name: of its marker.
      title: what is shown while it runs.
      work: may be interrupted anywhere and run again; what it returns goes into the marker.
      optional: it is left out where a package is missing, and tried again by the next run.
    """

    name: str
    title: str
    work: Callable[[Settings, Folder, ProgressFn], Mapping[str, Any]]
    optional: bool = False


def claim(settings: Settings, folder: Folder) -> None:
    """Take the run directory, or continue in it.

    Raises:
      ConfigError: it is no directory, holds something else, or was made with other settings.
      DataError: its record of settings is damaged.
    """
    if folder.path.exists() and not folder.path.is_dir():
        raise ConfigError(f"{folder.path} is not a directory; choose another --run-dir")
    wanted = json.loads(json.dumps({"version": moshijax.__version__, **dataclasses.asdict(settings)}))
    wanted.pop("workers")
    path = folder.path / CLAIM
    if not path.exists():
        if folder.path.exists() and any(folder.path.iterdir()):
            raise ConfigError(f"{folder.path} holds other files and no {CLAIM}; choose a new or empty --run-dir")
        try:
            folder.stages.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot make {folder.path}: {error.strerror}; choose another --run-dir") from None
        write_json(path, wanted)
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); remove {folder.path} and start again") from None
    for name, value in wanted.items():
        if found.get(name) != value:
            raise ConfigError(
                f"{folder.path} was started with {name} {found.get(name)!r}, not {value!r}; "
                "use that, or another --run-dir"
            )
    folder.stages.mkdir(exist_ok=True)


def done(folder: Folder, name: str) -> dict[str, Any] | None:
    """Return the marker of a finished stage, {"seconds": ..., "sessions": ..., "figures": {...}}; None before."""
    try:
        return json.loads(_marker(folder, name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def run(
    stages: Sequence[Stage],
    settings: Settings,
    folder: Folder,
    until: str | None = None,
    start: Callable[[int, Stage], ProgressFn] = lambda index, stage: lambda done, total, note: None,
    finish: Callable[[int, Stage, Mapping[str, Any], bool], None] = lambda index, stage, marker, before: None,
) -> None:
    """Run the stages that have no marker yet, and all after them, in order, up to and including `until`.

    Args:
      stages: all of the job.
      settings, folder: of the run.
      until: name of the last stage to run; None: all.
      start: called when a stage begins, with its index; returns what its progress is told to.
      finish: called for every stage that is done, with its marker and whether it was done before this run; for one
        that is left out the marker is {"left_out": why}.

    Raises:
      ConfigError: `until` names no stage, or the folder is not this run's.
      Exception: whatever a stage raises.
    """
    names = [stage.name for stage in stages]
    if until is not None and until not in names:
        raise ConfigError(f"no stage {until!r}; choose one of {', '.join(names)}")
    claim(settings, folder)
    last = names.index(until) if until is not None else len(stages) - 1
    for index, stage in enumerate(stages[: last + 1]):
        marker = done(folder, stage.name)
        before = marker is not None
        if marker is None:
            marker = _work(stage, names[index + 1 :], settings, folder, start(index, stage))
        finish(index, stage, marker, before)


def _work(stage: Stage, later: Sequence[str], settings: Settings, folder: Folder, tell: ProgressFn) -> dict[str, Any]:
    """Run a stage and return its marker; the markers of the stages after it, which used older results, go."""
    begun = time.perf_counter()
    sessions = _begin(folder, stage.name)
    try:
        figures = dict(stage.work(settings, folder, tell))
        marker = {"seconds": round(time.perf_counter() - begun, 2), "sessions": sessions, "figures": figures}
        for name in later:
            _marker(folder, name).unlink(missing_ok=True)
        write_json(_marker(folder, stage.name), marker)
    except MissingPackage as error:
        if not stage.optional:
            raise
        marker = {"left_out": str(error)}
    (folder.stages / f"{stage.name}.begun").unlink(missing_ok=True)
    return marker


def _marker(folder: Folder, name: str) -> Path:
    return folder.stages / f"{name}.json"


def _begin(folder: Folder, name: str) -> int:
    """Count and return the starts of a stage: 1 if it was never interrupted."""
    path = folder.stages / f"{name}.begun"
    try:
        count = int(path.read_text())
    except (OSError, ValueError):
        count = 0
    path.write_text(str(count + 1))
    return count + 1
