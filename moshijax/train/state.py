"""Everything a training run carries from step to step, as one pytree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from moshijax.errors import ConfigError
from moshijax.train import sharding
from moshijax.train.experiment import ExperimentConfig
from moshijax.train.optimizer import check_groups, make_optimizer, trainable
from moshijax.train.task import Task


@flax.struct.dataclass
class TrainState:
    """State of a run.

    Attributes:
      step: [] int32, steps done; also the number of the next step.
      params: parameters, unboxed; of discriminators too, where there are any.
      model_state: what is learnt without gradients, such as codebooks; {} where there is none.
      opt_states: name of an update -> optimiser state over the parameters that it owns.
      ema: running average of `params` without those that only training uses, or {}.
      nonfinite: [] int32, non-finite steps in a row up to now.
    """

    step: jax.Array
    params: Any
    model_state: Any
    opt_states: dict[str, Any]
    ema: Any
    nonfinite: jax.Array


@dataclass(frozen=True)
class Optimizer:
    """Optimiser of one update.

    Attributes:
      paths: flat paths of the parameters that it owns.
      transform: over a flat dict of these.
      on_host: its moments are in host memory between steps.
    """

    paths: tuple[str, ...]
    transform: optax.GradientTransformationExtraArgs
    on_host: bool = False


def make_optimizers(task: Task, experiment: ExperimentConfig) -> dict[str, Optimizer]:
    """Make one optimiser per update.

    Raises:
      ConfigError: a parameter group matches nothing, or an update trains nothing.
    """
    boxed, _ = jax.eval_shape(task.init, jax.eval_shape(jax.random.key, 0))
    everything = list(flatten_dict(sharding.unboxed(boxed), sep="/"))
    found = {}
    for update in (update for kind in experiment.step_kinds for update in kind.updates):
        config = experiment.optimizer_of(update)
        check_groups(config, everything)
        paths = [path for path in everything if task.owns(update.name, path)]
        if not paths:
            raise ConfigError(
                f"the update {update.name!r} trains no parameter of this model; set the share of its steps to 0, or "
                "give the model such parameters"
            )
        owned = trainable(config, paths)
        if not owned:
            raise ConfigError(f"every parameter of the update {update.name!r} is frozen; leave one group free")
        transform = make_optimizer(config, owned, experiment.steps)
        found[update.name] = Optimizer(owned, transform, config.moments_memory == "host")
    return found


def make_init(
    task: Task, experiment: ExperimentConfig, optimizers: Mapping[str, Optimizer]
) -> Callable[[jax.Array], TrainState]:
    """Return a function key -> TrainState whose parameters are boxed with logical axis names."""

    def init(key: jax.Array) -> TrainState:
        boxed, model_state = task.init(key)
        params = sharding.unboxed(boxed)
        flat = flatten_dict(params, sep="/")
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=boxed,
            model_state=model_state,
            opt_states={name: o.transform.init({p: flat[p] for p in o.paths}) for name, o in optimizers.items()},
            ema=jax.tree.map(jnp.array, averaged(task, params)) if experiment.ema_decay is not None else {},
            nonfinite=jnp.zeros((), jnp.int32),
        )

    return init


def averaged(task: Task, params: Any) -> Any:
    """Return the part of a parameter tree that has a running average: all but what only training uses."""
    flat = flatten_dict(params, sep="/")
    return unflatten_dict({path: leaf for path, leaf in flat.items() if not task.training_only(path)}, sep="/")


def state_shardings(task: Task, abstract: TrainState, mesh: Mesh, optimizers: Mapping[str, Optimizer]) -> TrainState:
    """Lay out a boxed abstract state: parameters by the rule table, optimiser states and average like them.

    Raises:
      ConfigError: the config wants moments in host memory, and the devices have no pinned host memory.
    """
    params = sharding.shardings_of(abstract.params, mesh)
    flat = flatten_dict(params, sep="/")
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    opt_states = sharding.like_parameters(abstract.opt_states, flat, mesh)
    for name, optimizer in optimizers.items():
        if optimizer.on_host:
            opt_states[name] = sharding.in_host_memory(abstract.opt_states[name], opt_states[name])
    return TrainState(
        step=replicated,
        params=params,
        model_state=sharding.shardings_of(abstract.model_state, mesh),
        opt_states=opt_states,
        ema=averaged(task, params) if abstract.ema else {},
        nonfinite=replicated,
    )


@dataclass(frozen=True)
class StatePlan:
    """How the state of a run looks before anything is allocated.

    Attributes:
      init: key -> state with boxed parameters.
      abstract: the state as jax.ShapeDtypeStruct with shardings, unboxed.
      optimizers: by update.
    """

    init: Callable[[jax.Array], TrainState]
    abstract: TrainState
    optimizers: dict[str, Optimizer]

    @property
    def shardings(self) -> TrainState:
        """Where every leaf of the state lives."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract)

    def create(self, seed: int) -> TrainState:
        """Make a new state where it will live; no copy on the host."""

        def init_state(key: jax.Array) -> TrainState:
            return sharding.unboxed(self.init(key))

        return jax.jit(init_state, out_shardings=self.shardings)(jax.random.key(seed))


def plan_state(task: Task, experiment: ExperimentConfig, mesh: Mesh) -> StatePlan:
    """Plan the state of a run: shapes and shardings, checked against the mesh.

    Raises:
      ConfigError: see `make_optimizers` and `moshijax.train.sharding.spec_of`.
    """
    optimizers = make_optimizers(task, experiment)
    init = make_init(task, experiment, optimizers)
    boxed = jax.eval_shape(init, jax.eval_shape(jax.random.key, 0))
    abstract = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        sharding.unboxed(boxed),
        state_shardings(task, boxed, mesh, optimizers),
    )
    return StatePlan(init, abstract, optimizers)
