"""A run directory: what was run, written before the first step, and the refusal to mix two recipes in one."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moshijax.config_json import differences, to_json
from moshijax.errors import ConfigError
from moshijax.train.experiment import FREE_ON_RESUME, ExperimentConfig
from moshijax.weights.run import CHECKPOINTS, CONFIG, METRICS, MODEL, RECIPE

DATA, CHANGES = "data.json", "changes.jsonl"
TENSORBOARD, NONFINITE = "tensorboard", "nonfinite.json"
PROFILE = "profile"
SHOWN_DIFFERENCES = 12


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that is either the old one or complete."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


@dataclass(frozen=True)
class Claim:
    """What is run in a directory.

    Attributes:
      model: kind and config of the model.
      data: program, or "eval" -> name of a part of its data -> sha256 (`moshijax.train.task.Source.identity`).
      recipe: gin text of the whole resolved experiment, if there is one.
    """

    experiment: ExperimentConfig
    model: tuple[str, Any]
    data: dict[str, dict[str, str]]
    recipe: str | None = None


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

    def has_checkpoint(self) -> bool:
        """Whether the run has begun and has something to go on from; only complete checkpoints have a number."""
        return self.checkpoints.is_dir() and any(path.name.isdecimal() for path in self.checkpoints.iterdir())

    def claim(self, what: Claim, allow_change: bool = False) -> list[str]:
        """Record what is run here, or check that it is the same run.

        Returns:
          what differs from the run that is here, one line each, when `allow_change`; nothing was recorded then: see
          `accept`.

        Raises:
          ConfigError: the directory holds a run of another recipe or of other data (the differences are listed), or
            other files.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{self.path} is a file; give a directory for the run")
        if not (self.path / CONFIG).exists():
            if self.checkpoints.exists():
                raise ConfigError(
                    f"{self.path} has checkpoints but no {CONFIG}, so nobody knows of what; use another directory"
                )
            self._write(what)
            return []
        recipe, data = self._changes(what)
        if not recipe and not data:
            self._write(what)
        elif not allow_change:
            kinds = " and ".join(name for name, found in (("another recipe", recipe), ("other data", data)) if found)
            shown, more = [*recipe, *data][:SHOWN_DIFFERENCES], len(recipe) + len(data) - SHOWN_DIFFERENCES
            raise ConfigError(
                f"{self.path} is a run of {kinds}: {'; '.join(shown)}{f' and {more} more' if more > 0 else ''}; use "
                "another run directory, what it was begun with, or --allow-change"
            )
        return [*recipe, *data]

    def accept(self, what: Claim, changes: list[str], step: int) -> None:
        """Record a changed run from a step on; the changes are kept in changes.jsonl."""
        with (self.path / CHANGES).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "changes": changes}) + "\n")
        self._write(what)

    def _write(self, what: Claim) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        kind, model_config = what.model
        write_json(self.path / MODEL, {"kind": kind, "config": to_json(model_config)})
        if what.recipe is not None:
            (self.path / RECIPE).write_text(what.recipe, encoding="utf-8")
        write_json(self.path / DATA, what.data)
        write_json(self.path / CONFIG, to_json(what.experiment))

    def _changes(self, what: Claim) -> tuple[list[str], list[str]]:
        """How this differs from the run in the directory: in its recipe, in its data."""

        def lines(name: str, new: Any, free: tuple[str, ...] = ()) -> list[str]:
            old = json.loads((self.path / name).read_text(encoding="utf-8"))
            found = [d for d in differences(old, new) if d[0].split(".")[0] not in free]
            return [f"{path} is {there!r} there, {here!r} here" for path, there, here in found]

        data = lines(DATA, what.data) if (self.path / DATA).exists() else []
        return lines(CONFIG, to_json(what.experiment), FREE_ON_RESUME), [f"data {line}" for line in data]
