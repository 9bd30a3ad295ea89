"""A run directory: what was run, written before the first step, and the refusal to mix two recipes in one."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moshijax.config_json import differences, to_json
from moshijax.errors import ConfigError, DataError
from moshijax.train.experiment import FREE_ON_RESUME, ExperimentConfig

CONFIG, RECIPE, MODEL = "config.json", "config.gin", "model.json"
CHECKPOINTS, METRICS, TENSORBOARD, NONFINITE = "checkpoints", "metrics.jsonl", "tensorboard", "nonfinite.json"
PROFILE = "profile"
SHOWN_DIFFERENCES = 4


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that is either the old one or complete."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


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

    def claim(self, experiment: ExperimentConfig, model: tuple[str, Any], recipe: str | None) -> None:
        """Record what is run here, or check that it is the same run.

        Args:
          model: kind and config of the model.
          recipe: gin text of the whole resolved experiment.

        Raises:
          ConfigError: the directory holds a run of another recipe (the differences are listed), or other files.
        """
        config = to_json(experiment)
        if (self.path / CONFIG).exists():
            self._refuse_another(json.loads((self.path / CONFIG).read_text(encoding="utf-8")), config)
        elif self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{self.path} is a file; give a directory for the run")
        elif self.checkpoints.exists():
            raise ConfigError(
                f"{self.path} has checkpoints but no {CONFIG}, so nobody knows of what; use another directory"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        kind, model_config = model
        write_json(self.path / MODEL, {"kind": kind, "config": to_json(model_config)})
        if recipe is not None:
            (self.path / RECIPE).write_text(recipe, encoding="utf-8")
        write_json(self.path / CONFIG, config)

    def _refuse_another(self, old: Any, new: Any) -> None:
        found = [d for d in differences(old, new) if d[0].split(".")[0] not in FREE_ON_RESUME]
        if not found:
            return
        shown = "; ".join(
            f"{path} is {there!r} there, {here!r} here" for path, there, here in found[:SHOWN_DIFFERENCES]
        )
        more = f" and {len(found) - SHOWN_DIFFERENCES} more" if len(found) > SHOWN_DIFFERENCES else ""
        raise ConfigError(
            f"{self.path} is a run of another recipe: {shown}{more}; use another run directory or that recipe"
        )

    def model(self) -> tuple[str, Any]:
        """Kind of the model and the JSON of its config.

        Raises:
          DataError: this is not a run directory.
        """
        try:
            found = json.loads((self.path / MODEL).read_text(encoding="utf-8"))
            return found["kind"], found["config"]
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"{self.path} is not a run directory: no usable {MODEL} ({error}); give the --run-dir of a run"
            ) from None
