"""What the trainer asks of a model; the trainer itself knows none."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import numpy as np

from moshijax.data.batches import Fault
from moshijax.train.optimizer import OptimizerConfig

Batch = Mapping[str, jax.Array]
# name -> (numerator, denominator), both summed over microbatches and over the steps of a log interval.
Sums = dict[str, tuple[jax.Array, jax.Array]]


class LossParts(NamedTuple):
    """What the loss of one microbatch gives.

    Attributes:
      loss: [] float32, the microbatch's share of the loss of the whole batch, so that shares add up.
      sums: metrics.
      statistics: what `Task.update_model_state` needs, added up over the microbatches.
    """

    loss: jax.Array
    sums: Sums
    statistics: Any


class Batches(Protocol):
    """Batches by number; `batch(n)` is a function of the data, the seed and n alone.

    Attributes:
      identity: name of each part of the data -> sha256 of what it holds.
      content: what that is, for people: "1200 recordings, 13.4 hours".
      items: rows of an epoch.
      files: name -> file that rows are read from; a run notices those that change.
      skipped: items that this process found unusable so far -> why; those that a checkpoint names are put there before
        the run resumes from it.
    """

    identity: Mapping[str, str]
    content: str
    items: int
    files: Mapping[str, Path]
    skipped: dict[str, Fault]

    def batch(self, n: int, rows: slice = slice(None)) -> Mapping[str, np.ndarray]:
        """Return the whole (global) batch n, or some of its rows; the same shapes for every n."""
        ...


@dataclass(frozen=True)
class Update:
    """One update of a step: a loss, and an optimiser with a state of its own over the parameters that it owns.

    Attributes:
      name: of the loss and of the optimiser state; unique in a task.
      optimizer: None: the run's (`ExperimentConfig.optimizer`).
    """

    name: str
    optimizer: OptimizerConfig | None = None


@dataclass(frozen=True)
class StepKind:
    """A kind of steps of a run: what they train on, how many they are, and what they update.

    Attributes:
      name: also of the field of the task that holds the kind's settings, if it has any.
      updates: in the order in which a step makes them; each sees the parameters that the ones before it changed. The
        metrics of the last one stand under the kind's own name, those of the others under theirs.
      data: config of the batches; may be None where the share is 0.
      share: of all steps; those of a task add up to 1.
      eval_data: config of the held-out batches, whatever the share; None: none.
      suffix: of the names of its metrics, "train<suffix>/..." and "eval<suffix>/...".
      perplexity: the held-out loss is that of a token in nats, and its exponential is reported too.
    """

    name: str
    updates: tuple[Update, ...]
    data: Any
    share: Fraction = Fraction(1)
    eval_data: Any = None
    suffix: str = ""
    perplexity: bool = False

    @property
    def train_name(self) -> str:
        """Prefix of the metrics of its steps."""
        return f"train{self.suffix}"

    @property
    def eval_name(self) -> str:
        """Name of its held-out batches, and prefix of their metrics."""
        return f"eval{self.suffix}"


class Task(ABC):
    """A model with its losses, as pure functions, and the kinds of steps that train it.

    A task is a frozen dataclass that a recipe fills. The methods without a default are those that every task writes.

    Attributes:
      kind: kind of the model ("lm", "codec"), recorded with the checkpoint.
      parts: modules whose arithmetic is reported apart.
    """

    kind: ClassVar[str]
    parts: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def model_config(self) -> Any:
        """Return the frozen config of the model, recorded with the checkpoint."""

    @abstractmethod
    def step_kinds(self) -> tuple[StepKind, ...]:
        """Return the kinds of steps; the first one takes the steps that the others leave."""

    @abstractmethod
    def batches(self, kind: StepKind, data: Any, seed: int) -> Batches:
        """Open the batches of a kind of steps.

        Args:
          kind: of the steps.
          data: the kind's `data` or `eval_data`.
          seed: of the run.

        Raises:
          ConfigError: the task cannot use this data.
        """

    @abstractmethod
    def batch_shapes(self, kind: StepKind, data: Any) -> dict[str, jax.ShapeDtypeStruct]:
        """Return shapes and types of the batches that `batches` would open, from the config alone."""

    @abstractmethod
    def amounts(self, kind: StepKind, batch: Batch) -> dict[str, float]:
        """Return what a batch holds, by name ("frames", "audio_seconds"); it is reported per second."""

    @abstractmethod
    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """Make the parameters, boxed with logical axis names, and the state learnt without gradients (or {})."""

    @abstractmethod
    def denominators(self, update: str, batch: Batch) -> dict[str, jax.Array]:
        """Return sums of loss weights over the whole batch, from its targets alone."""

    @abstractmethod
    def loss_parts(
        self,
        update: str,
        params: Any,
        model_state: Any,
        batch: Batch,
        denominators: Mapping[str, jax.Array],
        key: jax.Array,
    ) -> LossParts:
        """Return the loss of a microbatch in an update.

        Args:
          update: its name.
          params: all parameters, in training form.
          model_state: what is learnt without gradients.
          batch: with `batch["row"]` [B], the row numbers in the whole batch: randomness that is drawn per row from
            `key` and these is the same for every number of microbatches.
          denominators: of the whole batch.
          key: the same for all updates of a step.
        """

    def held_out_parts(self, kind: StepKind, params: Any, model_state: Any, batch: Batch, key: jax.Array) -> LossParts:
        """Return the loss of a whole held-out batch; by default that of the last update of its kind."""
        update = kind.updates[-1].name
        return self.loss_parts(update, params, model_state, batch, self.denominators(update, batch), key)

    def owns(self, update: str, path: str) -> bool:
        """Return whether an update trains the parameter at this path; all others stay as they are, bit for bit."""
        return True

    def training_only(self, path: str) -> bool:
        """Return whether only training uses a leaf of the parameters or of the model state, such as a discriminator's.

        Such leaves have no running average, and `init_from` initialises them afresh when the source lacks them.
        """
        return False

    def update_model_state(
        self, model_state: Any, statistics: Any, key: jax.Array, step: jax.Array
    ) -> tuple[Any, Sums]:
        """Return the model state after a step, from the statistics of its last update; and metrics."""
        return model_state, {}

    def training_form(self, params: Any) -> Any:
        """Bring plain parameters, such as published ones, into the form that is trained (weight norm)."""
        return params

    def memory_savings(self) -> list[tuple[str, str, Task]]:
        """Return the same training with less memory, cheapest first.

        Returns:
          (setting, such as "model.x='y'"; what it costs; the changed task) of each.
        """
        return []

    def save_assets(self, run_dir: Path) -> None:  # noqa: B027
        """Put what the model needs besides its parameters (a tokenizer) into the run directory."""
