"""Where the first state of a run comes from: its own last checkpoint, or another run or published weights.

What is not of the run itself goes through transforms between stages, those of `moshijax.lm.transforms`; shapes are
checked by the same functions, before anything is compiled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from moshijax import lm
from moshijax.data.encoder import codec_sha256
from moshijax.errors import ConfigError, DataError
from moshijax.lm.config import LMConfig
from moshijax.lm.transforms import Flat, check_rows, with_updates
from moshijax.nn.layout import relayout
from moshijax.nn.lora import is_update
from moshijax.nn.transformer import TransformerConfig
from moshijax.train import sharding
from moshijax.train.experiment import ExperimentConfig
from moshijax.train.run.checkpoint import Checkpointer, raise_on_mismatch
from moshijax.train.state import StatePlan, TrainState, averaged
from moshijax.train.task import Task
from moshijax.weights.families import FAMILIES
from moshijax.weights.families.family import Family
from moshijax.weights.opening import open_model
from moshijax.weights.run import is_run, model_shapes, read_model
from moshijax.weights.run_files import read_meanings


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
    family = FAMILIES.get(task.kind)
    if family is None:
        raise DataError(
            f"init_from {path}: no weights of kind {task.kind!r} can be read; this version knows {', '.join(FAMILIES)}"
        )
    if not family.transforms:
        if names:
            raise ConfigError(f"init_transforms {names}: there are none for {family.title}; omit them in this recipe")
        return _plain_start(path, family, task, plan)
    unknown = [name for name in names if name not in family.transforms]
    if unknown:
        raise ConfigError(f"init_transforms names {unknown[0]!r}; there are {', '.join(family.transforms)}")
    return _transformed_start(path, family, names, task, plan, mesh)


#: Of a state, what a model has learnt: with gradients, and without.
_PARTS = ("params", "model_state")
_SAME_MEANING = {
    "tokenizer": "train with the one there, or give the weights this one's vocabulary by `moshijax weights retokenize`",
    "codec": "prepare the data with the one there",
    "units": "prepare the data with the centroids that it was trained on",
}


def check_meanings(path: str, meanings: Mapping[str, str]) -> None:
    """Check that tokens of the data are the words and sounds that they are to the weights at `path`.

    Weights that come without a tokenizer or codec are not compared with it.

    Args:
      path: what `init_from` names.
      meanings: of the data, as `RunIdentity.meanings` returns them.

    Raises:
      DataError: the weights have another tokenizer or codec.
    """
    for name, there in (meanings_at(Path(path)) if meanings else {}).items():
        here = meanings.get(name, there)
        if here != there:
            raise DataError(
                f"init_from {path} has a {name} with the sha256 {there[:12]}..., the data of this run one with "
                f"{here[:12]}...: its tokens mean something else; {_SAME_MEANING[name]}"
            )


def meanings_at(path: Path) -> dict[str, str]:
    """Return what the tokens of the weights at a path mean: "tokenizer" and "codec" -> sha256, those that are known."""
    if is_run(path):
        return read_meanings(path)
    model, found = open_model(path), {}
    if model.tokenizer is not None:
        found["tokenizer"] = hashlib.sha256(Path(model.tokenizer).read_bytes()).hexdigest()
    if model.codec is not None:
        found["codec"] = codec_sha256(*model.codec.load())
    return found


def first_state(
    experiment: ExperimentConfig,
    plan: StatePlan,
    checkpointer: Checkpointer,
    start_from: Callable[[TrainState], TrainState] | None,
) -> tuple[int, TrainState, dict[str, Any]]:
    """Return the steps done, the state, and what was saved beside it: of the last checkpoint that can be read.

    Without any it is a new state, through `start_from`.
    """
    found = checkpointer.restore_newest(plan.abstract)
    if found is not None:
        return found
    state = plan.create(experiment.seed)
    return (
        0,
        state if start_from is None else start_from(state),
        {"interval": None, "evaluated": 0, "lines": 0, "faults": []},
    )


def _check_family(path: str, found: Family, wanted: Family) -> None:
    if found.kind != wanted.kind:
        raise DataError(f"{path} is {found.title} and this recipe trains {wanted.title}; give the weights of one")


def _transformed_start(
    path: str, family: Family, names: Sequence[str], task: Task, plan: StatePlan, mesh: Mesh
) -> Callable[[TrainState], TrainState]:
    """Return the start from a language model, through transforms; every process reads what its devices hold."""
    transforms = [family.transforms[name] for name in names]
    config: LMConfig = task.model_config()
    if is_run(path):
        trained = model_shapes(path)
        _check_family(path, trained.family, family)
        source, shapes = trained.config, trained.variables["params"]

        def read(where: Any) -> Any:
            return read_model(path, shardings=where).variables["params"]  # the running average, where the run keeps one

    else:
        opened = open_model(path, family.kind)
        types = config.temporal
        source = opened.config.with_dtype(types.dtype, types.param_dtype, types.precision)
        shapes = family.abstract(source, stacked=True)

        def read(where: Any) -> Any:
            return opened.parameters(source, stacked=True, shardings=where).tree()

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
    remedy = (
        f"use a model of the same sizes, and name in init_transforms what lies between ({', '.join(family.transforms)})"
    )
    raise_on_mismatch(Path(path), {"params": fresh}, {"params": found}, remedy)
    check_rows(path, result[-1].layout, config.layout, names)
    _check_stack(path, result[-1].temporal, config.temporal)
    own = sharding.shardings_of(jax.eval_shape(lambda key: lm.init_boxed(source, key), jax.random.key(0)), mesh)

    kinds = [{name: (leaf.shape, leaf.dtype) for name, leaf in tree.items()} for tree in (there, fresh)]

    def start(state: TrainState) -> TrainState:
        params = flatten_dict(read(own), sep="/")
        put = flatten_dict(plan.shardings.params, sep="/")
        if transforms or kinds[0] != kinds[1]:
            params = jax.jit(typed, out_shardings=put)(params, flatten_dict(state.params, sep="/"))
        return _with(state, task, unflatten_dict({name: params[name] for name in put}, sep="/"), state.model_state)

    return start


def _check_stack(path: str, there: TransformerConfig, here: TransformerConfig) -> None:
    """Check what parameters mean and their shapes do not show."""
    for name in ("num_heads", "kv_repeat", "gating", "norm", "positional_embedding", "max_period", "rope_scaling"):
        if getattr(there, name) != getattr(here, name):
            raise ConfigError(
                f"init_from {path} has temporal.{name}={getattr(there, name)!r}, this recipe {getattr(here, name)!r}: "
                "its weights mean something else there; use the same"
            )


def _relayout(params: Flat, scan_layers: bool) -> dict[str, Any]:
    return flatten_dict(relayout(unflatten_dict(params, sep="/"), scan_layers), sep="/")


def _with(state: TrainState, task: Task, params: Any, model_state: Any) -> TrainState:
    ema = jax.tree.map(jnp.copy, averaged(task, params)) if state.ema else {}
    return state.replace(params=params, model_state=model_state, ema=ema)


def _plain_start(path: str, family: Family, task: Task, plan: StatePlan) -> Callable[[TrainState], TrainState]:
    """Return the start from a run with all that it has learnt, or from published weights.

    What only training uses stays newly initialised where nothing there fits, and so do low-rank updates of weights that
    come without any, and modules that are not published, such as the head that estimates a teacher.
    """
    from_run = is_run(path)
    if from_run:
        shapes = model_shapes(path).variables

        def read() -> Any:
            return read_model(path).variables

    else:
        model = open_model(path)
        _check_family(path, model.family, family)
        shapes = dict(zip(_PARTS, family.to_training(family.abstract(model.config, stacked=True)), strict=True))

        def read() -> Any:
            return dict(zip(_PARTS, family.to_training(model.parameters(stacked=True).tree()), strict=True))

    def put(variables: Any, own: Mapping[str, Any]) -> dict[str, Any]:
        variables = {**variables, "params": task.training_form(variables["params"])}
        return {part: _completed(variables.get(part, {}), own[part], task, whole=from_run) for part in _PARTS}

    fresh = {part: getattr(plan.abstract, part) for part in _PARTS}
    raise_on_mismatch(Path(path), fresh, jax.eval_shape(put, shapes, fresh))

    def start(state: TrainState) -> TrainState:
        own = {part: getattr(state, part) for part in _PARTS}
        found = put(read(), own)
        typed = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), found, own)
        placed = (jax.device_put(typed[part], getattr(plan.shardings, part)) for part in _PARTS)
        return _with(state, task, *placed)

    return start


def _completed(there: Any, own: Any, task: Task, whole: bool) -> Any:
    """Return what is there, with what stays newly initialised of `own`; a `whole` source has all modules."""
    modules = own if whole else there
    there, own = flatten_dict(there, sep="/"), flatten_dict(own, sep="/")
    without_updates = not any(map(is_update, there))

    def is_fresh(name: str) -> bool:
        fits = name in own and name in there and own[name].shape == there[name].shape
        unpublished = name in own and name.partition("/")[0] not in modules
        return task.training_only(name) and not fits or without_updates and is_update(name) or unpublished

    kept = {name: leaf for name, leaf in there.items() if not is_fresh(name)}
    return unflatten_dict({**kept, **{name: leaf for name, leaf in own.items() if is_fresh(name)}}, sep="/")
