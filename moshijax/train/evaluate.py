"""Evaluation inside a run. Evaluators come from outside; the loss on held-out batches is the built-in one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from moshijax.train.experiment import ExperimentConfig
from moshijax.train.feed import fetch
from moshijax.train.run.metrics import Interval
from moshijax.train.run.signals import Agreement
from moshijax.train.state import StatePlan
from moshijax.train.steps import LOSS, batch_shardings, with_rows
from moshijax.train.task import Source, Task


@dataclass(frozen=True)
class Snapshot:
    """What an evaluator sees: steps done, the model's config, and its parameters (the running average, if kept)."""

    step: int
    model_config: Any
    params: Any
    model_state: Any


#: Kinds of held-out batches, as a task names them.
EVAL, EVAL_TEXT = "eval", "eval_text"

Evaluator = Callable[[Snapshot], Mapping[str, float]]


class Interrupted(Exception):
    """An evaluation was left because the run is to stop; it is made anew when the run goes on."""


class HeldOutLoss:
    """Evaluator: losses on held-out batches 0, 1, ..., without gradients; reported under the name of their kind, "eval"
    (the losses of audio steps) or "eval_text" (of text alone, with its perplexity).

    Raises when called:
      Interrupted: a signal asked the run to stop.
    """

    def __init__(
        self,
        task: Task,
        experiment: ExperimentConfig,
        plan: StatePlan,
        kind: str,
        source: Source,
        mesh: Mesh,
        stop: Agreement | None = None,
    ) -> None:
        self._kind, self._source, self._count, self._stop = kind, source, experiment.eval_batches, stop
        first = source.batch(0)
        self._rows = len(next(iter(first.values())))
        self._where = batch_shardings(first, mesh, 1)
        names: list[str] = []

        def held_out_loss(params: Any, model_state: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
            denominators = task.denominators(kind, batch)
            parts = task.loss_parts(kind, params, model_state, with_rows(batch), denominators, jax.random.key(0))
            sums = {LOSS: (parts.loss, 1.0), **parts.sums}
            names[:] = list(sums)
            return jnp.stack([jnp.stack([jnp.asarray(x, jnp.float32) for x in pair]) for pair in sums.values()])

        held_out_loss.__name__ = held_out_loss.__qualname__ = f"{kind}_loss"
        replicated = NamedSharding(mesh, PartitionSpec())
        where = plan.shardings
        params = (plan.abstract.ema, where.ema) if plan.abstract.ema else (plan.abstract.params, where.params)
        shardings = (params[1], where.model_state, self._where)
        jitted = jax.jit(held_out_loss, in_shardings=shardings, out_shardings=replicated)
        abstract = {k: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=self._where[k]) for k, x in first.items()}
        self._run = jitted.lower(params[0], plan.abstract.model_state, abstract).compile()
        self._names = tuple(names)

    def __call__(self, snapshot: Snapshot) -> dict[str, float]:
        interval = Interval()
        for n in range(self._count):
            if self._stop is not None and self._stop.now():
                raise Interrupted
            batch = fetch(self._source, n, self._where, self._rows)
            packed = self._run(snapshot.params, snapshot.model_state, batch)
            pairs = zip(self._names, jax.device_get(packed), strict=True)
            interval.add(self._kind, {name: (float(a), float(b)) for name, (a, b) in pairs})
        found = interval.means()
        if self._kind == EVAL_TEXT:
            found[f"{EVAL_TEXT}/perplexity"] = float(np.exp(found.get(f"{EVAL_TEXT}/{LOSS}", np.nan)))
        return found
