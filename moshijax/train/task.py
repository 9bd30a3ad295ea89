"""What the trainer asks of a model; the trainer itself knows none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import jax

    from moshijax.train.experiment import ExperimentConfig

    Batch = Mapping[str, jax.Array]
    # name -> (numerator, denominator), both summed over microbatches and over the steps of a log interval.
    Sums = dict[str, tuple[jax.Array, jax.Array]]


class LossParts(NamedTuple):
    """What one microbatch gives: `loss` [] float32 is its share of the loss of the whole batch, so that shares add up;
    `sums` are metrics; `statistics` is what `update_model_state` needs, added up over the microbatches."""

    loss: jax.Array
    sums: Sums
    statistics: Any


class Source(Protocol):
    """Batches by number; `batch(n)` is a function of the data, the seed and n alone."""

    identity: Mapping[str, str]  # name of each part of the data -> sha256 of what it holds
    skipped: Mapping[str, str]  # items that this process found unusable so far -> reason

    def batch(self, n: int, rows: slice = slice(None)) -> Mapping[str, Any]:
        """Numpy arrays of the whole (global) batch, or of some of its rows; the same shapes for every n."""
        ...


class Task(Protocol):
    """A model with its losses, as pure functions. A task is a frozen config of its own."""

    kind: str  # "lm" or "codec"; recorded with the checkpoint
    parts: tuple[str, ...]  # modules whose arithmetic is reported apart

    def model_config(self) -> Any:
        """Frozen config of the model, recorded with the checkpoint."""
        ...

    def sources(self, experiment: ExperimentConfig) -> dict[str, Source]:
        """Sources of the batches: those of "audio", "text", "eval" and "eval_text" that the experiment uses.

        Raises:
          ConfigError: the task cannot use one of them.
        """
        ...

    def batch_shapes(self, experiment: ExperimentConfig) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
        """Shapes and types of the batches of `sources`, by the same names, from the config alone."""
        ...

    def lighter(self) -> list[tuple[str, str, Task]]:
        """The same training with less memory: (setting, such as "model.x='y'", what it costs, the task), cheapest
        first."""
        ...

    def save_assets(self, experiment: ExperimentConfig, run_dir: Path) -> None:
        """Put what the model needs besides its parameters (a tokenizer) into the run directory."""
        ...

    def amounts(self, program: str, batch: Batch) -> dict[str, float]:
        """What a batch holds, by name ("frames", "audio_seconds"); reported per second."""
        ...

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """Parameters, boxed with logical axis names, and the state that is learnt without gradients (or {})."""
        ...

    def training_form(self, params: Any) -> Any:
        """Plain parameters, such as published ones, in the form that is trained (weight norm)."""
        ...

    def updates(self, program: str) -> tuple[str, ...]:
        """The updates of one step of a program, in order: each has a loss, an optimiser and parameters of its own and
        sees what the ones before it changed. The last has the program's name; most programs have no other."""
        ...

    def owns(self, update: str, path: str) -> bool:
        """Whether `update` trains the parameter at this path; all others stay as they are, bit for bit."""
        ...

    def auxiliary(self, path: str) -> bool:
        """Whether a leaf of the parameters or of the model state serves training alone (a discriminator): it has no
        running average, and a run that starts from another one's model makes it new if it is not there."""
        ...

    def denominators(self, update: str, batch: Batch) -> dict[str, jax.Array]:
        """Sums of loss weights over the whole batch, from its targets alone."""
        ...

    def loss_parts(
        self, update: str, params: Any, model_state: Any, batch: Batch, denominators: Mapping[str, jax.Array], key: Any
    ) -> LossParts:
        """Loss of a microbatch; the update is "eval" or "eval_text" on held-out batches, and there the loss of the
        second is that of a token, in nats and unweighted. `batch["row"]` [B] holds the row numbers in the whole batch:
        randomness that is drawn per row from `key` and these is the same for every number of microbatches. `key` is the
        same for all updates of a step."""
        ...

    def update_model_state(
        self, model_state: Any, statistics: Any, key: jax.Array, step: jax.Array
    ) -> tuple[Any, Sums]:
        """The state after this step, from the statistics of its last update; and metrics."""
        ...
