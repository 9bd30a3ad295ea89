"""What a run takes of its devices, found before anything is allocated; and what would take less."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from moshijax.compiled.report import Report, examine_training
from moshijax.errors import ConfigError, MoshijaxError
from moshijax.train import sharding
from moshijax.train.experiment import ExperimentConfig, MeshConfig
from moshijax.train.state import StatePlan, plan_state
from moshijax.train.steps import compile_step, with_rows
from moshijax.train.task import StepKind

#: Changes that are named when something does not fit.
SHOWN_CHANGES = 3


@dataclass(frozen=True)
class Footprint:
    """What one kind of step of a run takes; memory in bytes per device.

    Attributes:
      kind: of the steps.
      parameters, optimizer, average, other: of the state, which lives throughout.
      batch: of the rows of a device.
      temporary: what the compiled step allocates: gradients, activations, copies in the compute dtype.
      peak: all of it while a step runs; outputs that reuse the memory of inputs count once.
      flops: of a step over the whole batch, on all devices, by part.
      amounts: what a batch holds, by name, as `Task.amounts` counts.
      report: what the compiler made of the step for a device; None for CPU devices, which stand for others.
    """

    kind: StepKind
    parameters: int
    optimizer: int
    average: int
    other: int
    batch: int
    temporary: int
    peak: int
    flops: dict[str, float]
    amounts: dict[str, float]
    report: Report | None


@dataclass(frozen=True)
class Change:
    """Something that would take less memory.

    Attributes:
      setting: such as "model.x='y'".
      cost: what it costs.
      saving: about how many bytes per device it saves.
    """

    setting: str
    cost: str
    saving: float

    def __str__(self) -> str:
        return f"{self.setting} (saves about {self.saving / 1e9:.3g} GB; {self.cost})"


def bytes_per_device(tree: Any) -> int:
    """Add up the bytes per device of abstract arrays with shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def footprints(
    experiment: ExperimentConfig, mesh: Mesh, compiler_options: Mapping[str, Any] | None = None
) -> list[Footprint]:
    """Compile every kind of step of a run for the devices of a mesh, which need not be there.

    Raises:
      ConfigError: an experiment or a mesh that cannot be.
    """
    task, found = experiment.task, []
    device = mesh.devices.flat[0]
    with sharding.context(mesh):
        plan = plan_state(task, experiment, mesh)
        for kind in experiment.step_kinds:
            batch = task.batch_shapes(kind, kind.data)
            step = compile_step(task, experiment, plan, kind, batch, mesh, compiler_options)
            memory = step.run.memory_analysis()
            state = plan.abstract
            found.append(
                Footprint(
                    kind=kind,
                    parameters=bytes_per_device(state.params),
                    optimizer=bytes_per_device(state.opt_states),
                    average=bytes_per_device(state.ema),
                    other=bytes_per_device((state.model_state, state.step, state.nonfinite)),
                    batch=sum(x.size * x.dtype.itemsize for x in batch.values()) // _row_shards(mesh),
                    temporary=memory.temp_size_in_bytes,
                    peak=memory.argument_size_in_bytes
                    + memory.output_size_in_bytes
                    - memory.alias_size_in_bytes
                    + memory.temp_size_in_bytes,
                    flops=step.flops,
                    amounts=task.amounts(kind, batch),
                    report=None
                    if device.platform == "cpu"
                    else examine_training(step.run, device, sum(step.flops.values()) / mesh.size),
                )
            )
    return found


def _row_shards(mesh: Mesh) -> int:
    return mesh.shape["data"] * mesh.shape["fsdp"]


# What would take less ----------------------------------------------------------------------------------------------


def cheaper(experiment: ExperimentConfig, mesh: Mesh, kind: StepKind) -> list[Change]:
    """Find the cheapest changes of a run that save memory in a kind of step, cheapest first, by tracing alone."""
    now = _estimate(experiment, mesh, kind.name)
    found = []
    for setting, cost, changed in _candidates(experiment, mesh, kind):
        try:
            there = mesh if changed.mesh == experiment.mesh else _remesh(changed, mesh)
            saving = now - _estimate(changed, there, kind.name)
        except ConfigError:  # not for this model, mesh or batch
            continue
        if saving > 0.01 * now:
            found.append(Change(setting, cost, saving))
    return found[:SHOWN_CHANGES]


def _remesh(experiment: ExperimentConfig, mesh: Mesh) -> Mesh:
    return sharding.make_mesh(experiment.mesh, list(mesh.devices.flat))


def _candidates(
    experiment: ExperimentConfig, mesh: Mesh, kind: StepKind
) -> Iterator[tuple[str, str, ExperimentConfig]]:
    """Yield (setting, cost, experiment), in the order of what they cost."""
    task, replace = experiment.task, dataclasses.replace
    rows = next(iter(task.batch_shapes(kind, kind.data).values())).shape[0] // _row_shards(mesh)
    more = next((m for m in range(experiment.microbatches + 1, rows + 1) if rows % m == 0), None)
    if more is not None:
        yield f"microbatches={more}", "more, smaller products", replace(experiment, microbatches=more)
    if mesh.shape["data"] > 1:
        spread = MeshConfig(data=1, fsdp=_row_shards(mesh), tensor=mesh.shape["tensor"])
        cost = "parameters travel between the devices in every step"
        yield f"mesh.data=1 mesh.fsdp={spread.fsdp}", cost, replace(experiment, mesh=spread)
    for setting, cost, lighter in task.memory_savings():
        yield f"task.{setting}", cost, replace(experiment, task=lighter)
    if experiment.ema_decay is not None:
        yield "ema_decay=None", "no running average for evaluation and export", replace(experiment, ema_decay=None)
    half, settings = getattr(kind.data, "batch_size", 0) // 2, getattr(task, kind.name, None)
    if half and settings is not None:
        changed = replace(task, **{kind.name: replace(settings, data=replace(kind.data, batch_size=half))})
        cost = "another training run: half the batch"
        yield f"task.{kind.name}.data.batch_size={half}", cost, replace(experiment, task=changed)


def _estimate(experiment: ExperimentConfig, mesh: Mesh, name: str) -> float:
    """Estimate the bytes per device of the state, the gradients and what a forward pass keeps for the backward pass."""
    kind = next(kind for kind in experiment.step_kinds if kind.name == name)
    with sharding.context(mesh):
        plan = plan_state(experiment.task, experiment, mesh)
        state = bytes_per_device((plan.abstract.params, plan.abstract.opt_states, plan.abstract.ema))
        flat = flatten_dict(plan.abstract.params, sep="/")
        gradients = kept = 0
        for update in kind.updates:
            owned = {path: flat[path] for path in plan.optimizers[update.name].paths}
            gradients = max(gradients, bytes_per_device(owned))
            kept = max(kept, _kept(experiment, plan, kind, update.name, owned, mesh))
    return state + gradients + kept


def _kept(
    experiment: ExperimentConfig, plan: StatePlan, kind: StepKind, update: str, owned: Mapping[str, Any], mesh: Mesh
) -> float:
    """Count the bytes that the backward pass of a microbatch reads besides parameters: the residuals of `jax.vjp`."""
    task, shards = experiment.task, _row_shards(mesh)
    batch = {}
    for name, x in task.batch_shapes(kind, kind.data).items():
        if x.shape[0] % (experiment.microbatches * shards):
            raise ConfigError(f"{x.shape[0]} rows do not divide by {experiment.microbatches} x {shards}")
        batch[name] = jax.ShapeDtypeStruct((x.shape[0] // experiment.microbatches, *x.shape[1:]), x.dtype)
    rest = {p: x for p, x in flatten_dict(plan.abstract.params, sep="/").items() if p not in owned}

    def residuals(owned: Any, rest: Any, model_state: Any, batch: Any, key: Any) -> Any:
        def loss(owned: Any) -> jax.Array:
            params = unflatten_dict({**rest, **owned}, sep="/")
            denominators = task.denominators(update, batch)
            return task.loss_parts(update, params, model_state, with_rows(batch), denominators, key).loss

        return jax.tree.leaves(jax.vjp(loss, owned)[1])

    key = jax.eval_shape(jax.random.key, 0)
    leaves = jax.eval_shape(residuals, owned, rest, plan.abstract.model_state, batch, key)
    parameters = {(x.shape, x.dtype) for x in (*owned.values(), *rest.values())}
    activations = [x for x in leaves if (x.shape, x.dtype) not in parameters]
    return sum(x.size * x.dtype.itemsize for x in activations) / shards


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that a device had no memory left."""
    text = str(error)
    return isinstance(error, jax.errors.JaxRuntimeError) and (
        "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower()
    )


@contextlib.contextmanager
def explain_out_of_memory(experiment: ExperimentConfig, mesh: Mesh) -> Iterator[None]:
    """Say what to change when a device has no memory left.

    Raises:
      MoshijaxError: in place of jax's error, with the cheapest changes.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        changes = remedies(experiment, mesh, experiment.step_kinds)
        raise MoshijaxError(f"a device has no memory left ({str(error).splitlines()[0]}); {changes}") from error


def remedies(experiment: ExperimentConfig, mesh: Mesh, kinds: Sequence[StepKind]) -> str:
    """Name the cheapest changes for the kind of step that keeps most, as a clause of a message."""
    most = max(kinds, key=lambda kind: _estimate(experiment, mesh, kind.name))
    changes = cheaper(experiment, mesh, most)
    if not changes:
        return "no setting saves memory; use more devices or a smaller model"
    return "cheapest changes: " + "; ".join(f"{number}. {change}" for number, change in enumerate(changes, 1))
