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

    def batch(self, n: int) -> Mapping[str, Any]:
        """Numpy arrays of the whole (global) batch, rows first; the same shapes for every n."""
        ...


class Task(Protocol):
    """A model with its losses, as pure functions. A task is a frozen config of its own."""

    kind: str  # "lm" or "codec"; recorded with the checkpoint

    def model_config(self) -> Any:
        """Frozen config of the model, recorded with the checkpoint."""
        ...

    def sources(self, experiment: ExperimentConfig) -> dict[str, Source]:
        """Sources of the batches: "audio", and "text" and "eval" where the experiment uses them."""
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

    def owns(self, program: str, path: str) -> bool:
        """Whether steps of `program` train the parameter at this path; all others stay as they are, bit for bit."""
        ...

    def denominators(self, program: str, batch: Batch) -> dict[str, jax.Array]:
        """Sums of loss weights over the whole batch, from its targets alone."""
        ...

    def loss_parts(
        self, program: str, params: Any, model_state: Any, batch: Batch, denominators: Mapping[str, jax.Array], key: Any
    ) -> LossParts:
        """Loss of a microbatch. `batch["row"]` [B] holds the row numbers in the whole batch: randomness that is drawn
        per row from `key` and these is the same for every number of microbatches."""
        ...

    def update_model_state(
        self, model_state: Any, statistics: Any, key: jax.Array, step: jax.Array
    ) -> tuple[Any, Sums]:
        """The state after this step, and metrics of the update."""
        ...
