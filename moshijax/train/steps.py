"""The training step of a program, from a state and a batch to the next state and packed metrics."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from moshijax.errors import ConfigError
from moshijax.train import sharding
from moshijax.train.experiment import ExperimentConfig
from moshijax.train.flops import count_flops
from moshijax.train.optimizer import learning_rate
from moshijax.train.state import StatePlan, TrainState
from moshijax.train.task import LossParts, Task

LOSS, GRAD_NORM, RATE, NONFINITE = "loss", "grad_norm", "learning_rate", "nonfinite"


def program_key(seed: int, program: str, step: jax.Array) -> jax.Array:
    """Random key of one step: a function of the seed, the program and the global step."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), zlib.crc32(program.encode())), step)


def split_rows(batch: Mapping[str, jax.Array], count: int) -> dict[str, jax.Array]:
    """[B, ...] -> [count, B / count, ...]; row i goes to part i % count, so that every device keeps its rows."""
    return {k: jnp.moveaxis(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 1, 0) for k, x in batch.items()}


def with_rows(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    rows = next(iter(batch.values())).shape[0]
    return {**batch, "row": jnp.arange(rows, dtype=jnp.int32)}


def loss_and_gradients(
    task: Task,
    program: str,
    owned: Any,
    merge: Callable[[Any], Any],
    model_state: Any,
    batch: Any,
    key: Any,
    count: int,
) -> tuple[LossParts, Any]:
    """Loss parts and gradients of the whole batch with respect to `owned`, over `count` microbatches.

    Denominators come from the whole batch, so that the result does not depend on `count` beyond rounding.
    """
    denominators = task.denominators(program, batch)

    def loss(owned: Any, rows: Mapping[str, jax.Array]) -> tuple[jax.Array, LossParts]:
        parts = task.loss_parts(program, merge(owned), model_state, rows, denominators, key)
        return parts.loss, parts

    gradient = jax.grad(loss, has_aux=True)
    if count == 1:
        grads, parts = gradient(owned, with_rows(batch))
        return parts, grads
    split = split_rows(with_rows(batch), count)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(gradient, owned, {k: x[0] for k, x in split.items()}),
    )

    def accumulate(total: Any, rows: Mapping[str, jax.Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradient(owned, rows)), None

    (grads, parts), _ = jax.lax.scan(accumulate, zeros, split)
    return parts, grads


@dataclass
class Program:
    """One compiled training step.

    Attributes:
      run: (state, batch) -> (state, packed metrics [M, 2]); the state is donated.
      names: of the packed metrics, in order.
      flops: of one step: three times the contractions of the forward pass.
      memory_bytes: temporary memory of the compiled step, per device; 0 if unknown.
    """

    name: str
    run: Callable[[TrainState, Any], tuple[TrainState, jax.Array]]
    names: tuple[str, ...]
    flops: float
    memory_bytes: int

    def unpack(self, packed: jax.Array) -> dict[str, tuple[float, float]]:
        """Metric name -> (numerator, denominator); waits for the step."""
        return {name: (float(a), float(b)) for name, (a, b) in zip(self.names, jax.device_get(packed), strict=True)}


def make_step(task: Task, experiment: ExperimentConfig, plan: StatePlan, program: str) -> tuple[Any, list[str]]:
    """The pure step function of a program, and the list that its trace fills with the metric names."""
    optimizer, config = plan.optimizers[program], experiment.program_optimizers[program]
    names: list[str] = []

    def step(state: TrainState, batch: Mapping[str, jax.Array]) -> tuple[TrainState, jax.Array]:
        key = program_key(experiment.seed, program, state.step)
        loss_key, update_key = jax.random.split(key)
        flat = flatten_dict(state.params, sep="/")
        owned = {path: flat[path] for path in optimizer.paths}

        def merge(owned: Mapping[str, jax.Array]) -> Any:
            return unflatten_dict({**flat, **owned}, sep="/")

        parts, grads = loss_and_gradients(
            task, program, owned, merge, state.model_state, batch, loss_key, experiment.microbatches
        )
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(parts.loss) & jnp.isfinite(grad_norm)

        def keep(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

        old_opt_state = state.opt_states[program]
        updates, opt_state = optimizer.transform.update(grads, old_opt_state, owned, step=state.step)
        owned = keep(optax.apply_updates(owned, updates), owned)
        params = merge(owned)
        model_state, update_sums = task.update_model_state(state.model_state, parts.statistics, update_key, state.step)
        ema = state.ema
        if experiment.ema_decay is not None:
            decay = experiment.ema_decay
            ema = keep(jax.tree.map(lambda a, p: decay * a + (1 - decay) * p.astype(a.dtype), ema, params), ema)
        nonfinite = jnp.where(finite, 0, state.nonfinite + 1)
        rate = learning_rate(config, state.step, experiment.steps)
        sums = {LOSS: (parts.loss, 1.0), GRAD_NORM: (grad_norm, 1.0), RATE: (rate, 1.0), NONFINITE: (nonfinite, 1.0)}
        sums |= parts.sums | update_sums
        names[:] = list(sums)
        new = TrainState(
            step=state.step + 1,
            params=params,
            model_state=keep(model_state, state.model_state),
            opt_states={**state.opt_states, program: keep(opt_state, old_opt_state)},
            ema=ema,
            nonfinite=nonfinite,
        )
        packed = jnp.stack([jnp.stack([jnp.asarray(x, jnp.float32) for x in pair]) for pair in sums.values()])
        return new, packed

    return step, names


def batch_shardings(batch: Mapping[str, np.ndarray], mesh: Mesh, microbatches: int) -> dict[str, NamedSharding]:
    """Shardings of a batch over the mesh.

    Raises:
      ConfigError: the rows do not divide by the microbatches, or those of a microbatch not by the devices.
    """
    found = {}
    for name, array in batch.items():
        rows = array.shape[0]
        if rows % microbatches:
            raise ConfigError(f"batch of {rows} rows does not divide by microbatches = {microbatches}; change one")
        sharding.batch_sharding(name, (rows // microbatches, *array.shape[1:]), mesh)
        found[name] = sharding.batch_sharding(name, array.shape, mesh)
    return found


def lower_step(
    task: Task, experiment: ExperimentConfig, plan: StatePlan, program: str, batch: Mapping[str, np.ndarray], mesh: Mesh
) -> tuple[jax.stages.Lowered, tuple[str, ...]]:
    """The lowered step of a program for batches of the shapes of `batch`, and the names of its metrics.

    Call it inside `sharding.context(mesh)`.
    """
    where = batch_shardings(batch, mesh, experiment.microbatches)
    abstract = {k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where[k]) for k, x in batch.items()}
    step, names = make_step(task, experiment, plan, program)
    replicated = NamedSharding(mesh, PartitionSpec())
    jitted = jax.jit(
        step, in_shardings=(plan.shardings, where), out_shardings=(plan.shardings, replicated), donate_argnums=0
    )
    lowered = jitted.lower(plan.abstract, abstract)
    return lowered, tuple(names)


def compile_step(
    task: Task, experiment: ExperimentConfig, plan: StatePlan, program: str, batch: Mapping[str, np.ndarray], mesh: Mesh
) -> Program:
    """`lower_step`, compiled: the program never compiles again."""
    lowered, names = lower_step(task, experiment, plan, program, batch, mesh)
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    return Program(
        name=program,
        run=compiled,
        names=names,
        flops=3 * forward_flops(task, program, plan, batch),
        memory_bytes=getattr(memory, "temp_size_in_bytes", 0) or 0,
    )


def forward_flops(task: Task, program: str, plan: StatePlan, batch: Mapping[str, np.ndarray]) -> float:
    """FLOPs of the contractions of one forward pass over a whole batch."""

    def forward(params: Any, model_state: Any, batch: Any) -> jax.Array:
        key = jax.random.key(0)
        denominators = task.denominators(program, batch)
        return task.loss_parts(program, params, model_state, with_rows(batch), denominators, key).loss

    return count_flops(forward, plan.abstract.params, plan.abstract.model_state, dict(batch))
