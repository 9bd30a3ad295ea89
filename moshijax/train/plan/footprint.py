"""What a run takes of its devices, found before anything is allocated; and what would take less."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from moshijax.errors import ConfigError
from moshijax.train import sharding
from moshijax.train.experiment import ExperimentConfig, MeshConfig
from moshijax.train.state import StatePlan, plan_state
from moshijax.train.steps import compile_step, with_rows

#: Changes that are named when something does not fit.
SHOWN_CHANGES = 3


@dataclass(frozen=True)
class Footprint:
    """One program of a run; memory in bytes per device.

    Attributes:
      parameters, optimizer, average, other: of the state, which lives throughout.
      batch: of the rows of a device.
      temporary: what the compiled step allocates: gradients, activations, copies in the compute dtype.
      peak: all of it while a step runs, without what is written in the place of what was read.
      flops: of a step over the whole batch, on all devices, by part.
      amounts: what a batch holds, by name, as `Task.amounts` counts.
    """

    program: str
    parameters: int
    optimizer: int
    average: int
    other: int
    batch: int
    temporary: int
    peak: int
    flops: dict[str, float]
    amounts: dict[str, float]


@dataclass(frozen=True)
class Change:
    """Something that would take less memory: the setting, what it costs, and about how many bytes per device it
    saves."""

    setting: str
    cost: str
    saving: float

    def __str__(self) -> str:
        return f"{self.setting} (saves about {self.saving / 1e9:.3g} GB; {self.cost})"


def bytes_per_device(tree: Any) -> int:
    """Of abstract arrays with shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def footprints(experiment: ExperimentConfig, mesh: Mesh) -> list[Footprint]:
    """Compile every program of a run for the devices of a mesh, which may be described alone.

    Raises:
      ConfigError: an experiment or a mesh that cannot be.
    """
    task, found = experiment.task, []
    with sharding.context(mesh):
        plan = plan_state(task, experiment, mesh)
        for name in experiment.programs:
            batch = task.batch_shapes(experiment)[name]
            program = compile_step(task, experiment, plan, name, batch, mesh)
            memory = program.run.memory_analysis()
            state = plan.abstract
            found.append(
                Footprint(
                    program=name,
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
                    flops=program.flops,
                    amounts=task.amounts(name, batch),
                )
            )
    return found


def _row_shards(mesh: Mesh) -> int:
    return mesh.shape["data"] * mesh.shape["fsdp"]


# What would take less ----------------------------------------------------------------------------------------------


def cheaper(experiment: ExperimentConfig, mesh: Mesh, program: str) -> list[Change]:
    """The cheapest changes of a run that save memory in a program, cheapest first; found by tracing alone."""
    now = _estimate(experiment, mesh, program)
    found = []
    for setting, cost, changed in _candidates(experiment, mesh, program):
        try:
            saving = now - _estimate(
                changed, mesh if changed.mesh == experiment.mesh else _remesh(changed, mesh), program
            )
        except ConfigError:  # not for this model, mesh or batch
            continue
        if saving > 0.01 * now:
            found.append(Change(setting, cost, saving))
    return found[:SHOWN_CHANGES]


def _remesh(experiment: ExperimentConfig, mesh: Mesh) -> Mesh:
    return sharding.make_mesh(experiment.mesh, list(mesh.devices.flat))


def _candidates(experiment: ExperimentConfig, mesh: Mesh, program: str) -> Iterator[tuple[str, str, ExperimentConfig]]:
    """(setting, cost, experiment), in the order of what they cost."""
    batch = experiment.task.batch_shapes(experiment)[program]
    rows = next(iter(batch.values())).shape[0] // _row_shards(mesh)
    more = next((m for m in range(experiment.microbatches + 1, rows + 1) if rows % m == 0), None)
    replace = dataclasses.replace
    if more is not None:
        yield f"microbatches={more}", "more, smaller products", replace(experiment, microbatches=more)
    if mesh.shape["data"] > 1:
        spread = MeshConfig(data=1, fsdp=_row_shards(mesh), tensor=mesh.shape["tensor"])
        cost = "parameters travel between the devices in every step"
        yield f"mesh.data=1 mesh.fsdp={spread.fsdp}", cost, replace(experiment, mesh=spread)
    for setting, cost, task in experiment.task.lighter():
        yield f"task.{setting}", cost, replace(experiment, task=task)
    if experiment.ema_decay is not None:
        yield "ema_decay=None", "no running average for evaluation and export", replace(experiment, ema_decay=None)
    name = "text_data" if program == "text" else "data"
    data = getattr(experiment, name)
    half = getattr(data, "batch_size", 0) // 2
    if half:
        changed = replace(experiment, **{name: replace(data, batch_size=half)})
        yield f"{name}.batch_size={half}", "another training run: half the batch", changed


def _estimate(experiment: ExperimentConfig, mesh: Mesh, program: str) -> float:
    """Bytes per device of the state, the gradients and what a forward pass keeps for the backward pass."""
    task = experiment.task
    with sharding.context(mesh):
        plan = plan_state(task, experiment, mesh)
        state = bytes_per_device((plan.abstract.params, plan.abstract.opt_states, plan.abstract.ema))
        flat = flatten_dict(plan.abstract.params, sep="/")
        gradients = kept = 0
        for update in task.updates(program):
            owned = {path: flat[path] for path in plan.optimizers[update].paths}
            gradients = max(gradients, bytes_per_device(owned))
            kept = max(kept, _kept(experiment, plan, update, program, owned, mesh))
    return state + gradients + kept


def _kept(
    experiment: ExperimentConfig, plan: StatePlan, update: str, program: str, owned: Mapping[str, Any], mesh: Mesh
) -> float:
    """Bytes that the backward pass of a microbatch reads besides parameters: the residuals of `jax.vjp`."""
    task, shards = experiment.task, _row_shards(mesh)
    batch = {}
    for name, x in task.batch_shapes(experiment)[program].items():
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
    """Whether a device had no memory left."""
    text = str(error)
    return isinstance(error, jax.errors.JaxRuntimeError) and (
        "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower()
    )


def remedies(experiment: ExperimentConfig, mesh: Mesh, programs: Sequence[str]) -> str:
    """The cheapest changes for the program that keeps most, as a clause of a message."""
    most = max(programs, key=lambda program: _estimate(experiment, mesh, program))
    changes = cheaper(experiment, mesh, most)
    if not changes:
        return "no setting saves memory; use more devices or a smaller model"
    return "cheapest changes: " + "; ".join(f"{number}. {change}" for number, change in enumerate(changes, 1))
