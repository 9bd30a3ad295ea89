"""Where the first parameters of a run come from: another run or published weights, through transforms between stages.

The transforms are those of `moshijax.lm.transforms`; shapes are checked by the same functions, before anything is
compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from moshijax import lm
from moshijax.errors import ConfigError, DataError
from moshijax.lm.config import LMConfig
from moshijax.lm.transforms import TRANSFORMS, Flat, check_rows, with_updates
from moshijax.nn.layout import relayout
from moshijax.train import sharding
from moshijax.train.experiment import ExperimentConfig
from moshijax.train.run.checkpoint import raise_on_mismatch
from moshijax.train.state import StatePlan, TrainState, averaged
from moshijax.train.task import Task
from moshijax.weights.run import is_run, model_shapes, read_model
from moshijax.weights.source import abstract, open_source


def starting_point(
    experiment: ExperimentConfig, task: Task, plan: StatePlan, mesh: Mesh
) -> Callable[[TrainState], TrainState]:
    """Check what `init_from` and `init_transforms` name; return a function that puts it into a new state.

    Nothing is read but names and shapes, so that what does not fit is found before anything is compiled.

    Raises:
      ConfigError: a transform that does not apply.
      DataError: nothing usable is there, or leaves are missing, unexpected or of other shapes; all are listed.
    """
    path, names = experiment.init_from, experiment.init_transforms
    if path is None:
        return lambda state: state
    if task.kind != "lm":
        if names:
            raise ConfigError(f"init_transforms {names} are for language models; omit them in a {task.kind} recipe")
        return _codec_start(path, task, plan)
    unknown = [name for name in names if name not in TRANSFORMS]
    if unknown:
        raise ConfigError(f"init_transforms names {unknown[0]!r}; there are {', '.join(TRANSFORMS)}")
    transforms = [TRANSFORMS[name] for name in names]
    config: LMConfig = task.model_config()
    if is_run(path):
        trained = model_shapes(path)
        if trained.kind != "lm":
            raise DataError(f"{path} is a {trained.kind} and this recipe trains a language model; give the run of one")
        source, shapes = trained.config, trained.variables["params"]

        def read(where: Any) -> Any:
            return read_model(path, shardings=where).variables["params"]  # the running average, where the run keeps one

    else:
        opened = open_source(path, "lm")
        types = config.temporal
        source = opened.config.with_dtype(types.dtype, types.param_dtype, types.precision)
        shapes = abstract("lm", source, stacked=True)

        def read(where: Any) -> Any:
            return opened.leaves(source, stacked=True, shardings=where).tree()

    def changed(params: Flat, fresh: Flat) -> tuple[LMConfig, dict[str, Any]]:
        here, params, fresh = source, _relayout(params, True), _relayout(fresh, True)
        for transform in transforms:
            here, params = transform(here, params, config, fresh)
        if here.lora is None and config.lora is not None:
            here, params = with_updates(here, params, config, fresh)
        return here, _relayout(params, config.scan_layers)

    def typed(params: Flat, fresh: Flat) -> dict[str, Any]:
        made = changed(params, fresh)[1]
        return {name: jnp.asarray(made[name], leaf.dtype) for name, leaf in fresh.items()}

    there, fresh = flatten_dict(shapes, sep="/"), flatten_dict(plan.abstract.params, sep="/")
    result: list[LMConfig] = []

    def shape_of(params: Flat, fresh: Flat) -> dict[str, Any]:
        here, params = changed(params, fresh)
        result.append(here)
        return params

    found = jax.eval_shape(shape_of, there, fresh)
    remedy = f"use a model of the same sizes, and name in init_transforms what lies between ({', '.join(TRANSFORMS)})"
    raise_on_mismatch(Path(path), {"params": fresh}, {"params": found}, remedy)
    check_rows(path, result[-1].layout, config.layout, names)
    own = sharding.shardings_of(jax.eval_shape(lambda key: lm.init_boxed(source, key), jax.random.key(0)), mesh)

    kinds = [{name: (leaf.shape, leaf.dtype) for name, leaf in tree.items()} for tree in (there, fresh)]

    def start(state: TrainState) -> TrainState:
        params = flatten_dict(read(own), sep="/")
        put = flatten_dict(plan.shardings.params, sep="/")
        if transforms or kinds[0] != kinds[1]:
            params = jax.jit(typed, out_shardings=put)(params, flatten_dict(state.params, sep="/"))
        return _with(state, task, unflatten_dict({name: params[name] for name in put}, sep="/"), state.model_state)

    return start


def _relayout(params: Flat, scan_layers: bool) -> dict[str, Any]:
    return flatten_dict(relayout(unflatten_dict(params, sep="/"), scan_layers), sep="/")


def _with(state: TrainState, task: Task, params: Any, model_state: Any) -> TrainState:
    ema = jax.tree.map(jnp.copy, averaged(task, params)) if state.ema else {}
    return state.replace(params=params, model_state=model_state, ema=ema)


def _codec_start(path: str, task: Task, plan: StatePlan) -> Callable[[TrainState], TrainState]:
    """Return the start of a codec: from a run with its codebooks, or from published weights.

    What only training uses stays fresh where nothing there fits.
    """
    if is_run(path):
        return lambda state: _with(state, task, *_of_codec_run(path, state, task, plan))
    source = open_source(path)
    shapes = abstract(source.kind, source.config, stacked=True)
    if source.kind != task.kind:
        raise DataError(f"{path} is a {source.kind} and this recipe trains a {task.kind}; give the weights of one")
    shapes = {**shapes, "params": jax.eval_shape(task.training_form, shapes["params"])}
    fresh = plan.abstract
    own = {name: leaf for name, leaf in fresh.params.items() if name in shapes["params"]}
    codebooks = {name: leaf for name, leaf in fresh.model_state.items() if name in shapes["codebooks"]}
    raise_on_mismatch(Path(path), {"params": own, "codebooks": codebooks}, shapes)

    def start(state: TrainState) -> TrainState:
        found = source.leaves(task.model_config()).tree()
        params = {**state.params, **task.training_form(found["params"])}
        model_state = {**state.model_state, **found["codebooks"]}
        put = (jax.device_put(params, plan.shardings.params), jax.device_put(model_state, plan.shardings.model_state))
        return _with(state, task, *put)

    return start


def _of_codec_run(path: str, state: TrainState, task: Task, plan: StatePlan) -> tuple[Any, Any]:
    """Read the parameters of a run in the form that this task trains, with weight norm or without."""
    model = read_model(path).variables
    model, found = {**model, "params": task.training_form(model["params"])}, {}
    for kind, tree in model.items():
        own, there = flatten_dict(getattr(state, kind), sep="/"), flatten_dict(tree, sep="/")
        for name in filter(task.training_only, {*own, *there}):
            fits = name in own and name in there and own[name].shape == there[name].shape
            there[name] = there[name] if fits else own.get(name)
        found[kind] = unflatten_dict({name: leaf for name, leaf in there.items() if leaf is not None}, sep="/")
    raise_on_mismatch(Path(path), {kind: getattr(state, kind) for kind in model}, found)
    return tuple(jax.device_put(found[kind], getattr(plan.shardings, kind)) for kind in ("params", "model_state"))
