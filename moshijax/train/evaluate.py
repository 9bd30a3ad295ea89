"""Evaluation inside a run. Evaluators come from outside; the loss on held-out batches is the built-in one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from moshijax.train.experiment import ExperimentConfig
from moshijax.train.feed import fetch
from moshijax.train.run.metrics import MetricSums, PackedSums, pack
from moshijax.train.run.signals import StopVote
from moshijax.train.state import StatePlan
from moshijax.train.steps import LOSS, batch_shardings, compiler_options, with_rows
from moshijax.train.task import Batch, Batches, StepKind


@dataclass(frozen=True)
class Snapshot:
    """What an evaluator sees of a run.

    Attributes:
      step: steps done.
      model_config: of the model.
      params: its parameters; the running average, if one is kept.
      model_state: what is learnt without gradients.
    """

    step: int
    model_config: Any
    params: Any
    model_state: Any


Evaluator = Callable[[Snapshot], Mapping[str, float]]


class Interrupted(Exception):
    """A stop signal arrived during an evaluation; it is repeated on resume."""


class HeldOutLoss:
    """Evaluate the losses on the held-out batches 0, 1, ... of a kind of steps, without gradients."""

    def __init__(
        self,
        experiment: ExperimentConfig,
        plan: StatePlan,
        kind: StepKind,
        batches: Batches,
        mesh: Mesh,
        stop: StopVote | None = None,
    ) -> None:
        self._kind, self._batches, self._count, self._stop = kind, batches, experiment.eval_batches, stop
        first = batches.batch(0)
        self._rows = len(next(iter(first.values())))
        self._where = batch_shardings(first, mesh, 1)

        def held_out_loss(params: Any, model_state: Any, batch: Batch) -> PackedSums:
            parts = experiment.task.held_out_parts(kind, params, model_state, with_rows(batch), jax.random.key(0))
            return pack({LOSS: (parts.loss, 1.0), **parts.sums})

        held_out_loss.__name__ = held_out_loss.__qualname__ = f"{kind.eval_name}_loss"
        replicated = NamedSharding(mesh, PartitionSpec())
        where = plan.shardings
        params = (plan.abstract.ema, where.ema) if plan.abstract.ema else (plan.abstract.params, where.params)
        shardings = (params[1], where.model_state, self._where)
        jitted = jax.jit(held_out_loss, in_shardings=shardings, out_shardings=replicated)
        abstract = {k: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=self._where[k]) for k, x in first.items()}
        lowered = jitted.lower(params[0], plan.abstract.model_state, abstract)
        self._run = lowered.compile(compiler_options(experiment, mesh))

    def __call__(self, snapshot: Snapshot) -> dict[str, float]:
        """Return the means over all batches, named after the kind.

        Raises:
          Interrupted: a signal asked the run to stop.
        """
        sums, name = MetricSums(), self._kind.eval_name
        for n in range(self._count):
            if self._stop is not None and self._stop.now():
                raise Interrupted
            batch = fetch(self._batches, n, self._where, self._rows)
            sums.add(name, self._run(snapshot.params, snapshot.model_state, batch).unpack())
        found = sums.means()
        if self._kind.perplexity:
            found[f"{name}/perplexity"] = float(np.exp(found.get(f"{name}/{LOSS}", np.nan)))
        return found


def held_out_losses(
    experiment: ExperimentConfig, plan: StatePlan, batches: Mapping[str, Batches], mesh: Mesh, stop: StopVote
) -> list[HeldOutLoss]:
    """Compile the losses on the held-out batches of every kind that has any, out of those that a run has opened."""
    return [HeldOutLoss(experiment, plan, k, batches[k.eval_name], mesh, stop) for k in experiment.held_out]
