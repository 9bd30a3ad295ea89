"""A run directory: what was run, written before the first step, and the refusal to mix two recipes in one."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from moshijax import lock
from moshijax.annotations import shown
from moshijax.config_json import differences, to_json
from moshijax.data import sources
from moshijax.errors import ConfigError, DataError
from moshijax.files import write, write_json
from moshijax.train.experiment import FREE_ON_RESUME, ExperimentConfig
from moshijax.train.run import hosts
from moshijax.train.task import Batches
from moshijax.weights.run_files import (
    CHECKPOINTS,
    CONFIG,
    DATA,
    FILES,
    METRICS,
    MODEL,
    RECIPE,
    damaged,
    meanings_of,
    read_record,
)

log = logging.getLogger(__name__)

CHANGES, TENSORBOARD, PROFILE = "changes.jsonl", "tensorboard", "profile"
SHOWN_DIFFERENCES = 12


@dataclass(frozen=True)
class RunIdentity:
    """What is run in a directory.

    Attributes:
      data: kind of step, or name of its held-out batches -> name of a part of the data -> sha256 of what it holds.
      files: the same names -> name of a file that its rows are read from -> where it is.
      recipe: gin text of the whole resolved experiment, if there is one.
    """

    experiment: ExperimentConfig
    data: dict[str, dict[str, str]]
    files: dict[str, dict[str, Path]]
    recipe: str | None = None

    @classmethod
    def of(cls, experiment: ExperimentConfig, batches: Mapping[str, Batches], recipe: str | None) -> RunIdentity:
        """Return what an experiment with its opened batches is; see `moshijax.train.feed.open_batches`."""
        data = {name: dict(found.identity) for name, found in batches.items()}
        files = {name: dict(found.files) for name, found in batches.items()}
        return cls(experiment, data, files, recipe)

    def meanings(self) -> dict[str, str]:
        """Return what the tokens of the data mean: "tokenizer" and "codec" -> sha256, those that the data has.

        Raises:
          DataError: two parts of the data, such as the held-out one and the rest, are bound to different ones.
        """
        return meanings_of(self.data)

    @functools.cached_property
    def stamps(self) -> dict[str, dict[str, sources.Stamp]]:
        """What the files are now: size and time of each."""
        return {kind: sources.stamps(files) for kind, files in self.files.items()}


@dataclass(frozen=True)
class RunDir:
    """The files of one run."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    @property
    def metrics(self) -> Path:
        return self.path / METRICS

    @property
    def tensorboard(self) -> Path:
        return self.path / TENSORBOARD

    @property
    def profile(self) -> Path:
        return self.path / PROFILE

    def has_checkpoint(self) -> bool:
        """Whether the run has begun and can resume; only complete checkpoints have a number."""
        return self.checkpoints.is_dir() and any(path.name.isdecimal() for path in self.checkpoints.iterdir())

    def hold(self) -> contextlib.ExitStack:
        """Make the directory and be the only run in it, on the first process; return once it is there for all.

        Returns:
          What lets the directory go when it is closed.

        Raises:
          ConfigError: a file has its name.
          MoshijaxError: another run is in it; the message names its host and process.
        """
        held = contextlib.ExitStack()
        if jax.process_index() == 0:
            if self.path.exists() and not self.path.is_dir():
                raise ConfigError(f"{self.path} is a file; give a directory for the run")
            self.path.mkdir(parents=True, exist_ok=True)
            held.enter_context(lock.inside(self.path))
        hosts.agreed(0)
        return held

    def claim(self, identity: RunIdentity, allow_change: Sequence[str] = ()) -> list[str]:
        """Record what is run here, or check that it is the same run; on the first process, while the others wait.

        Args:
          identity: of what is to run.
          allow_change: what may differ from the run that is here: fields of the experiment, such as "steps" or
            "task.loss" with all that it holds; "data"; or the name of a damaged record, which is written again.

        Returns:
          What differs from the run that is here, one line each; then nothing was recorded: see `accept`.

        Raises:
          ConfigError: the directory holds a run of another recipe or of other data (the differences that are not
            allowed are listed), or other files.
          DataError: a record of the run is damaged.
        """
        allow_change = tuple(name.strip() for name in allow_change)
        known = [field.name for field in dataclasses.fields(ExperimentConfig)]
        for name in allow_change:
            if name.split(".")[0] not in known and name not in ("data", CONFIG, DATA, FILES):
                raise ConfigError(
                    f"--allow-change {name} is no field of a recipe; use data, {CONFIG}, {DATA}, {FILES}, or one of "
                    f"{', '.join(known)}"
                )
        changes: list[str] = []
        if jax.process_index() == 0:
            changes = self._claim(identity, allow_change)
            identity.experiment.task.save_assets(self.path)
        hosts.agreed(0)
        return changes

    def _claim(self, identity: RunIdentity, allow_change: Sequence[str]) -> list[str]:
        if not (self.path / CONFIG).exists():
            if self.checkpoints.exists():
                raise ConfigError(
                    f"{self.path} has checkpoints but no {CONFIG}, so nobody knows of what; use another directory"
                )
            self._write(identity)
            return []
        recipe = self._differences(CONFIG, to_json(identity.experiment), allow_change)
        recipe = [(field, line) for field, line in recipe if not _is_within(field, FREE_ON_RESUME)]
        data = [f"data {line}" for _, line in self._differences(DATA, identity.data, allow_change)]
        data += self._changed_files(identity, allow_change)
        changes = [*recipe, *(("data", line) for line in data)]
        refused = [(field, line) for field, line in changes if not _is_within(field, allow_change)]
        if refused:
            raise ConfigError(self._refusal(refused, allow_change))
        if not changes:
            self._write(identity)
        return [line for _, line in changes]

    def _refusal(self, refused: list[tuple[str, str]], allowed: Sequence[str]) -> str:
        fields = list(dict.fromkeys(field for field, _ in refused))
        if len(fields) > SHOWN_DIFFERENCES:
            fields = list(dict.fromkeys(field.split(".")[0] for field in fields))
        named = {"another recipe": any(f != "data" for f in fields), "other data": "data" in fields}
        kinds = " and ".join(kind for kind, found in named.items() if found)
        lines, more = [line for _, line in refused[:SHOWN_DIFFERENCES]], len(refused) - SHOWN_DIFFERENCES
        return (
            f"{self.path} is a run of {kinds}: {'; '.join(lines)}{f' and {more} more' if more > 0 else ''}; use "
            "another run directory, the recipe and data that it began with, or --allow-change "
            f"{','.join(dict.fromkeys([*allowed, *fields]))}"
        )

    def accept(self, identity: RunIdentity, changes: list[str], step: int) -> None:
        """Record a run that `claim` found changed, from a step on; the changes are logged and kept in changes.jsonl."""
        if not changes:
            return
        for change in changes:
            log.warning("changed at step %d: %s", step, change)
        with (self.path / CHANGES).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "changes": changes}) + "\n")
        self._write(identity)

    def _write(self, identity: RunIdentity) -> None:
        task = identity.experiment.task
        write_json(self.path / MODEL, {"kind": task.kind, "config": to_json(task.model_config())})
        if identity.recipe is not None:
            write(self.path / RECIPE, identity.recipe)
        write_json(self.path / DATA, identity.data)
        write_json(self.path / FILES, identity.stamps)
        write_json(self.path / CONFIG, to_json(identity.experiment))

    def _differences(self, name: str, new: dict[str, Any], allow_change: Sequence[str]) -> list[tuple[str, str]]:
        """Return how a new value differs from the one that a file of the run holds: field, and a line about it."""
        found = differences(self._recorded(name, new, allow_change), new)
        return [
            (where.split("[")[0], f"{where} is {shown(there)} there, {shown(here)} here")
            for where, there, here in found
        ]

    def _changed_files(self, identity: RunIdentity, allow_change: Sequence[str]) -> list[str]:
        """Return which files of the data have another size than they had, or are gone, one line for each kind of step.

        Which files there are is for `RunIdentity.data` to tell. One of another time alone, such as a copy, may well be
        what it was: a warning names it.
        """
        lines = []
        before = self._recorded(FILES, identity.stamps, allow_change)
        for kind, stamps in identity.stamps.items():
            seen = before.get(kind, {})
            both = [(name, seen[name], stamp) for name, stamp in stamps.items() if name in seen]
            changed = [name for name, old, new in both if _size(old) != _size(new)]
            touched = [name for name, old, new in both if old != new and _size(old) == _size(new)]
            if changed:
                lines.append(f"files of data {kind} have another size, or are gone: {sources.listed(changed)}")
            if touched:
                log.warning(
                    "files of data %s were written since the run began: %s; it continues as if they held the same",
                    kind,
                    sources.listed(touched),
                )
        return lines

    def _recorded(self, name: str, new: dict[str, Any], allow_change: Sequence[str]) -> dict[str, Any]:
        """Return what a file of the run holds; the new value, so that nothing differs, if there is no such file.

        Args:
          name: of the file.
          new: what it would hold now.
          allow_change: names that file if it may be damaged: then it is written again, with a warning, because it says
            nothing that could be compared.
        """
        path = self.path / name
        if not path.exists():
            return new
        try:
            found = read_record(path)
            if name == FILES and not all(map(_are_stamps, found.values())):
                raise damaged(path, "it does not hold sizes and times of files")
            return found
        except DataError as error:
            if name not in allow_change:
                raise
            log.warning("%s: it is written again, and what it said before is not compared", error)
            return new


def _is_within(field: str, names: Sequence[str]) -> bool:
    """Whether a field is one of those that are named, or part of one."""
    return any(field == name or field.startswith(f"{name}.") for name in names)


def _are_stamps(found: Any) -> bool:
    """Whether this is what `moshijax.data.sources.stamps` returns, through JSON."""
    return isinstance(found, dict) and all(
        stamp is None or isinstance(stamp, list) and [type(x) for x in stamp] == [int, int] for stamp in found.values()
    )


def _size(stamp: sources.Stamp) -> int | None:
    return None if stamp is None else stamp[0]
