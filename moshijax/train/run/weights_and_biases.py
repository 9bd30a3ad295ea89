"""The numbers of a run to Weights & Biases, beside the files in the run directory."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from moshijax import optional
from moshijax.config_json import to_json
from moshijax.train.experiment import ExperimentConfig, WandbConfig

ID = "wandb_id"


class WandbLog:
    """One run there for one run directory: a resumed run continues under the same id."""

    def __init__(self, config: WandbConfig, run_dir: Path, recipe: Any) -> None:
        """Open the run there.

        Args:
          recipe: JSON value of the experiment.

        Raises:
          MissingPackage: `wandb` is not installed.
        """
        wandb = optional.load("wandb")
        path = run_dir / ID
        if not path.exists():
            path.write_text(secrets.token_hex(4), encoding="utf-8")
        self._run = wandb.init(
            project=config.project,
            entity=config.entity,
            name=config.name or run_dir.name,
            group=config.group,
            tags=list(config.tags),
            mode=config.mode,
            id=path.read_text(encoding="utf-8").strip(),
            resume="allow",
            dir=str(run_dir),
            config=recipe,
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def wandb_logs(experiment: ExperimentConfig, run_dir: Path) -> list[WandbLog]:
    """Return the log of an experiment there: on the first process alone, and none without settings for it."""
    if experiment.wandb is None or jax.process_index() > 0:
        return []
    return [WandbLog(experiment.wandb, run_dir, to_json(experiment))]
