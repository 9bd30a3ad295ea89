"""The training step of a kind, from a state and a batch to the next state and packed metrics."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from moshijax.errors import ConfigError
from moshijax.nn.causal_attention import plain_attention
from moshijax.train import sharding
from moshijax.train.experiment import ExperimentConfig
from moshijax.train.optimizer import OptimizerConfig, group_of, learning_rate
from moshijax.train.plan.flops import training_flops
from moshijax.train.run.metrics import PackedSums, pack
from moshijax.train.state import StatePlan, TrainState, averaged
from moshijax.train.task import Batch, LossParts, StepKind, Sums, Task

LOSS, GRAD_NORM, RATE, NONFINITE = "loss", "grad_norm", "learning_rate", "nonfinite"

Shapes = Mapping[str, np.ndarray | jax.ShapeDtypeStruct]  # a batch, or one of these shapes
StepFunction = Callable[[TrainState, Batch], tuple[TrainState, PackedSums]]


def step_key(seed: int, kind: str, step: jax.Array) -> jax.Array:
    """Return the random key of one step: a function of the seed, the kind of step and the global step."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), zlib.crc32(kind.encode())), step)


def split_rows(batch: Mapping[str, jax.Array], count: int) -> dict[str, jax.Array]:
    """Split [B, ...] into [count, B / count, ...]; row i goes to part i % count, so that devices keep their rows."""
    return {k: jnp.moveaxis(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 1, 0) for k, x in batch.items()}


def with_rows(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Add the numbers of the rows, [B] int32, as "row"."""
    rows = next(iter(batch.values())).shape[0]
    return {**batch, "row": jnp.arange(rows, dtype=jnp.int32)}


def loss_and_gradients(
    task: Task,
    update: str,
    owned: Any,
    merge: Callable[[Any], Any],
    model_state: Any,
    batch: Batch,
    key: jax.Array,
    count: int,
) -> tuple[LossParts, Any]:
    """Differentiate the loss of an update over the whole batch, in `count` microbatches.

    Denominators come from the whole batch, so that the result does not depend on `count` beyond rounding.

    Args:
      task: whose loss it is.
      update: its name.
      owned: what to differentiate with respect to.
      merge: makes all parameters of `owned`.
      model_state: what is learnt without gradients.
      batch: the whole of it.
      key: random key of the step.
      count: microbatches; the rows must divide by it.

    Returns:
      Loss parts, and gradients like `owned`.
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


class Applied(NamedTuple):
    """What the updates of one step give.

    Attributes:
      params: all parameters after them, {path: array}.
      opt_states: of each update, as it was before and after.
      sums: metrics.
      statistics: of the last update, for `Task.update_model_state`.
      finite: [] bool, whether all losses and gradients were.
    """

    params: dict[str, jax.Array]
    opt_states: dict[str, tuple[Any, Any]]
    sums: Sums
    statistics: Any
    finite: jax.Array


def apply_updates(
    task: Task,
    experiment: ExperimentConfig,
    plan: StatePlan,
    kind: StepKind,
    state: TrainState,
    batch: Batch,
    key: jax.Array,
) -> Applied:
    """Make the updates of one step, one after the other; each sees the parameters that the ones before it changed."""
    flat = flatten_dict(state.params, sep="/")
    opt_states: dict[str, tuple[Any, Any]] = {}
    sums: Sums = {}
    finite, parts = jnp.array(True), None
    for update in kind.updates:
        name, config, optimizer = update.name, experiment.optimizer_of(update), plan.optimizers[update.name]
        before = _on_device(state.opt_states[name], optimizer.on_host)
        owned = {path: flat[path] for path in optimizer.paths}

        def merge(owned: Mapping[str, jax.Array], flat: Mapping[str, jax.Array] = flat) -> Any:
            return unflatten_dict({**flat, **owned}, sep="/")

        parts, grads = loss_and_gradients(
            task, name, owned, merge, state.model_state, batch, key, experiment.microbatches
        )
        grad_norm = optax.tree.norm(grads)
        finite &= jnp.isfinite(parts.loss) & jnp.isfinite(grad_norm)
        changes, after = optimizer.transform.update(grads, before, owned, step=state.step)
        opt_states[name] = before, after
        flat = {**flat, **optax.apply_updates(owned, changes)}
        rate = learning_rate(config, state.step, experiment.steps)
        own = {LOSS: (parts.loss, 1.0), GRAD_NORM: (grad_norm, 1.0), RATE: (rate, 1.0), **parts.sums}
        own |= _of_groups(config, grads, rate)
        sums |= own if update is kind.updates[-1] else {f"{name}/{metric}": pair for metric, pair in own.items()}
    return Applied(flat, opt_states, sums, parts.statistics, finite)


def make_step(task: Task, experiment: ExperimentConfig, plan: StatePlan, kind: StepKind) -> StepFunction:
    """Make the pure function of one step of a kind; a step that is not finite changes nothing but the counters."""

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, PackedSums]:
        loss_key, update_key = jax.random.split(step_key(experiment.seed, kind.name, state.step))
        new = apply_updates(task, experiment, plan, kind, state, batch, loss_key)

        def keep(after: Any, before: Any) -> Any:
            """Select what the step changed; where one of its updates was not finite, nothing."""
            return jax.tree.map(lambda a, b: jnp.where(new.finite, a, b), after, before)

        # Only those of this step's updates; the others pass through, wherever they are.
        flat = flatten_dict(state.params, sep="/")
        changed = [path for update in kind.updates for path in plan.optimizers[update.name].paths]
        params = unflatten_dict({**flat, **{path: keep(new.params[path], flat[path]) for path in changed}}, sep="/")
        opt_states = {name: keep(after, before) for name, (before, after) in new.opt_states.items()}
        model_state, more = task.update_model_state(state.model_state, new.statistics, update_key, state.step)
        ema = state.ema
        if experiment.ema_decay is not None:
            decay, now = experiment.ema_decay, averaged(task, params)
            ema = keep(jax.tree.map(lambda a, p: decay * a + (1 - decay) * p.astype(a.dtype), ema, now), ema)
        nonfinite = jnp.where(new.finite, 0, state.nonfinite + 1)
        after = TrainState(
            step=state.step + 1,
            params=params,
            model_state=keep(model_state, state.model_state),
            opt_states={**state.opt_states, **opt_states},
            ema=ema,
            nonfinite=nonfinite,
        )
        return after, pack({**new.sums, NONFINITE: (nonfinite, 1.0), **more})

    step.__name__ = step.__qualname__ = f"{kind.name}_step"
    return step


def _of_groups(config: OptimizerConfig, grads: Mapping[str, jax.Array], rate: jax.Array) -> Sums:
    """Return gradient norm and learning rate of every parameter group, where there are several."""
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


def batch_shardings(batch: Shapes, mesh: Mesh, microbatches: int) -> dict[str, NamedSharding]:
    """Lay out batches of these shapes over the mesh.

    Raises:
      ConfigError: the rows do not divide by the microbatches and the devices that share a microbatch.
    """
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    found = {}
    for name, array in batch.items():
        rows = array.shape[0]
        if rows % (microbatches * devices):
            fewer = [count for count in range(1, microbatches) if rows % (count * devices) == 0]
            remedy = f"microbatches={fewer[-1]}, or " if fewer else ""
            raise ConfigError(
                f"a batch of {rows} rows does not divide by microbatches = {microbatches} times {devices} devices "
                f"(mesh data x fsdp); use {remedy}a batch size that is a multiple of {microbatches * devices}"
            )
        found[name] = sharding.batch_sharding(name, array.shape, mesh)
    return found


@dataclass(frozen=True)
class CompiledStep:
    """One compiled kind of step.

    Attributes:
      kind: which it is.
      run: (state, batch) -> (state, packed metrics); the state is donated.
      flops: of one step by part, see `step_flops`.
      memory_bytes: temporary memory of the compiled step, per device; 0 if unknown.
    """

    kind: StepKind
    run: jax.stages.Compiled
    flops: dict[str, float]
    memory_bytes: int

    def __str__(self) -> str:
        flops, memory = sum(self.flops.values()) / 1e9, self.memory_bytes / 1e6
        return f"{self.kind.name} step: {flops:.3g} GFLOP, {memory:.0f} MB of temporary memory"


def lower_step(
    task: Task, experiment: ExperimentConfig, plan: StatePlan, kind: StepKind, batch: Shapes, mesh: Mesh
) -> jax.stages.Lowered:
    """Lower the step of a kind for batches of the shapes of `batch`; call it inside `sharding.context(mesh)`."""
    where = batch_shardings(batch, mesh, experiment.microbatches)
    abstract = {k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where[k]) for k, x in batch.items()}
    replicated = NamedSharding(mesh, PartitionSpec())
    jitted = jax.jit(
        make_step(task, experiment, plan, kind),
        in_shardings=(plan.shardings, where),
        out_shardings=(plan.shardings, replicated),
        donate_argnums=0,
    )
    return jitted.lower(plan.abstract, abstract)


def compiler_options(experiment: ExperimentConfig, mesh: Mesh) -> dict[str, bool]:
    """Return the options that the programs of a run are compiled with, see `ExperimentConfig.deterministic`.

    The one option excludes operations whose result depends on the order of threads, and the choice of kernels by
    measurement, which may be another one after a restart.
    """
    on_gpus = mesh.devices.flat[0].platform == "gpu"
    return {"xla_gpu_deterministic_ops": True} if experiment.deterministic and on_gpus else {}


def compile_step(
    task: Task,
    experiment: ExperimentConfig,
    plan: StatePlan,
    kind: StepKind,
    batch: Shapes,
    mesh: Mesh,
    more_options: Mapping[str, Any] | None = None,
) -> CompiledStep:
    """Compile the step of a kind; the result never compiles again. Call it inside `sharding.context(mesh)`.

    `more_options` are those of the compiler beside `compiler_options`.
    """
    lowered = lower_step(task, experiment, plan, kind, batch, mesh)
    compiled = lowered.compile(compiler_options(experiment, mesh) | dict(more_options or {}))
    memory = compiled.memory_analysis()
    temporary = getattr(memory, "temp_size_in_bytes", 0) or 0
    return CompiledStep(kind, compiled, step_flops(task, kind, plan, batch), temporary)


def compile_steps(
    experiment: ExperimentConfig, plan: StatePlan, batches: Mapping[str, Shapes], mesh: Mesh
) -> dict[str, CompiledStep]:
    """Compile the step of every kind of a run, for a batch of each; call it inside `sharding.context(mesh)`."""
    kinds = experiment.step_kinds
    return {k.name: compile_step(experiment.task, experiment, plan, k, batches[k.name], mesh) for k in kinds}


def step_flops(task: Task, kind: StepKind, plan: StatePlan, batch: Shapes) -> dict[str, float]:
    """Count the FLOPs of the losses of one step over a whole batch and of their gradients, by part of the model.

    See `training_flops`. Attention counts in its plain form, whatever runs.
    """
    found: dict[str, float] = {}
    flat = flatten_dict(plan.abstract.params, sep="/")
    for update in kind.updates:
        owned = {path: flat.pop(path) for path in plan.optimizers[update.name].paths}
        rest, flat = dict(flat), {**flat, **owned}

        def loss(owned: Any, rest: Any, model_state: Any, batch: Batch, key: jax.Array, name: str = update.name) -> Any:
            params = unflatten_dict({**rest, **owned}, sep="/")
            denominators = task.denominators(name, batch)
            return task.loss_parts(name, params, model_state, with_rows(batch), denominators, key).loss

        arguments = rest, plan.abstract.model_state, dict(batch), jax.eval_shape(jax.random.key, 0)
        with plain_attention():
            counted = training_flops(loss, owned, *arguments, parts=task.parts)
        found = {part: found.get(part, 0.0) + counted.get(part, 0.0) for part in {**found, **counted}}
    return found
