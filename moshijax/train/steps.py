"""The training step of a program, from a state and a batch to the next state and packed metrics."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from moshijax.errors import ConfigError
from moshijax.nn.causal_attention import plain_attention
from moshijax.train import sharding
from moshijax.train.experiment import ExperimentConfig, OptimizerConfig
from moshijax.train.optimizer import group_of, learning_rate
from moshijax.train.plan.flops import training_flops
from moshijax.train.state import StatePlan, TrainState, averaged
from moshijax.train.task import LossParts, Task

if TYPE_CHECKING:
    from moshijax.train.task import Sums

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
    update: str,
    owned: Any,
    merge: Callable[[Any], Any],
    model_state: Any,
    batch: Any,
    key: Any,
    count: int,
) -> tuple[LossParts, Any]:
    """Loss parts and gradients of an update over the whole batch with respect to `owned`, in `count` microbatches.

    Denominators come from the whole batch, so that the result does not depend on `count` beyond rounding.
    """
    denominators = task.denominators(update, batch)

    def loss(owned: Any, rows: Mapping[str, jax.Array]) -> tuple[jax.Array, LossParts]:
        parts = task.loss_parts(update, merge(owned), model_state, rows, denominators, key)
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
      flops: of one step by part, see `step_flops`.
      memory_bytes: temporary memory of the compiled step, per device; 0 if unknown.
    """

    name: str
    run: Callable[[TrainState, Any], tuple[TrainState, jax.Array]]
    names: tuple[str, ...]
    flops: dict[str, float]
    memory_bytes: int

    def unpack(self, packed: jax.Array) -> dict[str, tuple[float, float]]:
        """Metric name -> (numerator, denominator); waits for the step."""
        return {name: (float(a), float(b)) for name, (a, b) in zip(self.names, jax.device_get(packed), strict=True)}


def make_step(task: Task, experiment: ExperimentConfig, plan: StatePlan, program: str) -> tuple[Any, list[str]]:
    """The pure step function of a program, and the list that its trace fills with the metric names."""
    updates = task.updates(program)
    names: list[str] = []

    def step(state: TrainState, batch: Mapping[str, jax.Array]) -> tuple[TrainState, jax.Array]:
        key = program_key(experiment.seed, program, state.step)
        loss_key, update_key = jax.random.split(key)
        old = flatten_dict(state.params, sep="/")
        flat, opt_states, sums, finite = dict(old), {}, {}, jnp.array(True)
        # Only those of this step's updates; the others pass through, wherever they are.
        before = {name: _on_device(state.opt_states[name], plan.optimizers[name].on_host) for name in updates}

        def keep(new: Any, old: Any) -> Any:
            """What a step changed, unless one of its updates was not finite: then nothing."""
            return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

        for update in updates:
            optimizer = plan.optimizers[update]
            owned = {path: flat[path] for path in optimizer.paths}

            def merge(owned: Mapping[str, jax.Array], flat: Mapping[str, jax.Array] = flat) -> Any:
                return unflatten_dict({**flat, **owned}, sep="/")

            parts, grads = loss_and_gradients(
                task, update, owned, merge, state.model_state, batch, loss_key, experiment.microbatches
            )
            grad_norm = optax.tree.norm(grads)
            finite &= jnp.isfinite(parts.loss) & jnp.isfinite(grad_norm)
            changes, opt_states[update] = optimizer.transform.update(grads, before[update], owned, step=state.step)
            flat = {**flat, **optax.apply_updates(owned, changes)}
            rate = learning_rate(experiment.optimizer_of(update), state.step, experiment.steps)
            own = {LOSS: (parts.loss, 1.0), GRAD_NORM: (grad_norm, 1.0), RATE: (rate, 1.0), **parts.sums}
            own |= _of_groups(experiment.optimizer_of(update), grads, rate)
            sums |= own if update == program else {f"{update}/{name}": pair for name, pair in own.items()}
        changed = [path for update in updates for path in plan.optimizers[update].paths]
        params = unflatten_dict({**old, **{path: keep(flat[path], old[path]) for path in changed}}, sep="/")
        model_state, update_sums = task.update_model_state(state.model_state, parts.statistics, update_key, state.step)
        ema = state.ema
        if experiment.ema_decay is not None:
            decay, new = experiment.ema_decay, averaged(task, params)
            ema = keep(jax.tree.map(lambda a, p: decay * a + (1 - decay) * p.astype(a.dtype), ema, new), ema)
        nonfinite = jnp.where(finite, 0, state.nonfinite + 1)
        sums |= {NONFINITE: (nonfinite, 1.0), **update_sums}
        names[:] = list(sums)
        new = TrainState(
            step=state.step + 1,
            params=params,
            model_state=keep(model_state, state.model_state),
            opt_states={**state.opt_states, **{name: keep(new, before[name]) for name, new in opt_states.items()}},
            ema=ema,
            nonfinite=nonfinite,
        )
        packed = jnp.stack([jnp.stack([jnp.asarray(x, jnp.float32) for x in pair]) for pair in sums.values()])
        return new, packed

    return step, names


def _of_groups(config: OptimizerConfig, grads: Mapping[str, jax.Array], rate: jax.Array) -> Sums:
    """Gradient norm and learning rate of every parameter group, where there are several."""
    members: dict[str, dict[str, jax.Array]] = {}
    groups = {path: group_of(config, path) for path in grads}
    for path, group in groups.items():
        members.setdefault(group.name, {})[path] = grads[path]
    scales = {group.name: group.learning_rate_scale for group in groups.values()}
    found: Sums = {}
    for name, leaves in members.items() if len(members) > 1 else ():
        found[f"{GRAD_NORM}/{name}"] = (optax.tree.norm(leaves), 1.0)
        found[f"{RATE}/{name}"] = (scales[name] * rate, 1.0)
    return found


def _on_device(tree: Any, on_host: bool) -> Any:
    return jax.tree.map(lambda leaf: jax.device_put(leaf, jax.memory.Space.Device), tree) if on_host else tree


def batch_shardings(
    batch: Mapping[str, np.ndarray | jax.ShapeDtypeStruct], mesh: Mesh, microbatches: int
) -> dict[str, NamedSharding]:
    """Shardings of a batch, or of one that has these shapes, over the mesh.

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
    step.__name__ = step.__qualname__ = f"{program}_step"
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
        flops=step_flops(task, program, plan, batch),
        memory_bytes=getattr(memory, "temp_size_in_bytes", 0) or 0,
    )


def step_flops(task: Task, program: str, plan: StatePlan, batch: Mapping[str, Any]) -> dict[str, float]:
    """FLOPs of the losses of one step over a whole batch and of their gradients, by part of the model: see
    `training_flops`. Attention counts in its plain form, whatever runs."""
    found: dict[str, float] = {}
    flat = flatten_dict(plan.abstract.params, sep="/")
    for update in task.updates(program):
        owned = {path: flat.pop(path) for path in plan.optimizers[update].paths}
        rest, flat = dict(flat), {**flat, **owned}

        def loss(owned: Any, rest: Any, model_state: Any, batch: Any, key: Any, update: str = update) -> jax.Array:
            params = unflatten_dict({**rest, **owned}, sep="/")
            denominators = task.denominators(update, batch)
            return task.loss_parts(update, params, model_state, with_rows(batch), denominators, key).loss

        arguments = rest, plan.abstract.model_state, dict(batch), jax.eval_shape(jax.random.key, 0)
        with plain_attention():
            counted = training_flops(loss, owned, *arguments, parts=task.parts)
        found = {part: found.get(part, 0.0) + counted.get(part, 0.0) for part in {**found, **counted}}
    return found
