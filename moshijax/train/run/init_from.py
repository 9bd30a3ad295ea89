"""Where the first parameters of a run come from: another run or published weights, through transforms between stages.

A transform is a pure function `(config, params, target, fresh) -> (config, params)`: the config of a language model and
its flat parameters {path: array}, layers and steps stacked, become those of another one. `target` is the model of the
run that starts, `fresh` its newly made parameters. Shapes are checked by the same functions, before anything is
compiled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from moshijax import lm
from moshijax.errors import ConfigError, DataError
from moshijax.lm.config import LMConfig
from moshijax.lm.layouts import MODEL, Stream, StreamLayout
from moshijax.nn.layout import relayout
from moshijax.train import sharding
from moshijax.train.experiment import ExperimentConfig
from moshijax.train.run import run_dir as files
from moshijax.train.run.checkpoint import model_shapes, raise_on_mismatch, read_model
from moshijax.train.state import StatePlan, TrainState, averaged
from moshijax.train.task import Task
from moshijax.weights.source import Record, Source, abstract, open_source, table_of
from moshijax.weights.table import Published, same

Flat = Mapping[str, Any]
Transform = Callable[[LMConfig, Flat, LMConfig, Flat], tuple[LMConfig, dict[str, Any]]]


# Transforms ---------------------------------------------------------------------------------------------------------


def helium_to_moshi(config: LMConfig, params: Flat, target: LMConfig, fresh: Flat) -> tuple[LMConfig, dict[str, Any]]:
    """A model of text alone becomes the temporal transformer of `target`; audio tables and depth transformer are new.

    The initial tokens of the audio rows embed to zero at first (our choice; the paper says nothing), so that sequences
    of text alone have the text logits that they had (arXiv 2410.00037, 4.4).
    """
    if config.layout.n_q:
        raise ConfigError(
            f"helium_to_moshi: that model has {config.layout.n_q} audio rows already; it takes one of text alone"
        )
    new = {path: leaf for path, leaf in fresh.items() if path.startswith(("audio_embedding/", "depth/"))}
    new = _without_initial_tokens(new, target.card, range(target.layout.n_q))
    # Of `target` only what these parameters decide; what the text model has must fit by itself.
    return dataclasses.replace(config, layout=target.layout, card=target.card, depth=target.depth), {**params, **new}


def one_stream_to_two(config: LMConfig, params: Flat, target: LMConfig, fresh: Flat) -> tuple[LMConfig, dict[str, Any]]:
    """A second speaker: its token tables and depth steps are copies of the first one's, codebook by codebook.

    Public code that goes from one stream to two copies likewise (Hibiki, arXiv 2502.03382; nu-dialogue). What has
    nothing to be copied from starts at zero: the initial tokens of the new rows, so that text logits stay as they are
    while the second speaker is absent, and the depth table that joins the last row of one speaker to the first of the
    other.
    """
    _require_speakers("one_stream_to_two", config, 1, target, 2)
    return _with_rows(config, params, target)


def score_user(config: LMConfig, params: Flat, target: LMConfig, fresh: Flat) -> tuple[LMConfig, dict[str, Any]]:
    """Depth steps for the user's rows, copied from the model's: from the released form back to the trained one."""
    if config.layout.dep_q >= target.layout.dep_q:
        raise ConfigError(
            f"score_user: that model has {config.layout.dep_q} depth steps and this one {target.layout.dep_q}; it adds "
            "those of the user's rows"
        )
    return _with_rows(config, params, target)


def release(config: LMConfig, params: Flat, target: LMConfig, fresh: Flat) -> tuple[LMConfig, dict[str, Any]]:
    """Without the depth steps of the user's rows, which a call never runs: 16 to 8 in Moshi, as it was released."""
    if config.layout.dep_q <= target.layout.dep_q:
        raise ConfigError(
            f"release: that model has {config.layout.dep_q} depth steps and this one {target.layout.dep_q}; it removes "
            "those of the user's rows"
        )
    return _with_rows(config, params, target)


def delays(config: LMConfig, params: Flat, target: LMConfig, fresh: Flat) -> tuple[LMConfig, dict[str, Any]]:
    """The delays of `target`; no parameter changes. Moshi goes from 2 frames to 1 after pre-training."""
    layout = _with_delays(config.layout, target.layout.delays, "delays")
    return dataclasses.replace(config, layout=layout), dict(params)


def recognition(config: LMConfig, params: Flat, target: LMConfig, fresh: Flat) -> tuple[LMConfig, dict[str, Any]]:
    """A model that hears and writes: the audio rows are given and the depth transformer goes."""
    if target.layout.dep_q or not config.layout.n_q:
        raise ConfigError(
            f"recognition: that model has {config.layout.n_q} audio rows and this one {target.layout.dep_q} depth "
            "steps; it takes a model with audio to one without depth transformer"
        )
    return _with_rows(config, params, target)


TRANSFORMS: dict[str, Transform] = {
    function.__name__: function
    for function in (helium_to_moshi, one_stream_to_two, score_user, release, delays, recognition)
}


def _require_speakers(name: str, config: LMConfig, before: int, target: LMConfig, after: int) -> None:
    found = [len({s.speaker for s in c.layout.streams if s.kind == "audio"}) for c in (config, target)]
    if found != [before, after]:
        raise ConfigError(
            f"{name}: that model has {found[0]} speakers with audio and this one {found[1]}; it goes from {before} to "
            f"{after}"
        )


def _with_delays(layout: StreamLayout, delays: Sequence[int], name: str) -> StreamLayout:
    if len(delays) != layout.num_streams:
        raise ConfigError(
            f"{name}: that model has {layout.num_streams} rows and this one {len(delays)}; join rows first"
        )
    streams = [dataclasses.replace(s, delay=d) for s, d in zip(layout.streams, delays, strict=True)]
    return StreamLayout(tuple(streams))


def _origins(source: Sequence[Stream], target: Sequence[Stream]) -> list[int]:
    """For every audio row of `target` the row of `source` it comes from: the same, else the model's of its codebook."""

    def find(stream: Stream) -> int:
        for speaker in (stream.speaker, MODEL):
            for row, other in enumerate(source):
                if (other.speaker, other.codebook) == (speaker, stream.codebook):
                    return row
        raise ConfigError(
            f"the row of {stream.speaker}, codebook {stream.codebook}, has no counterpart in a model of "
            f"{len(source)} audio rows; use as many codebooks as it has"
        )

    return [find(stream) for stream in target]


def _with_rows(config: LMConfig, params: Flat, target: LMConfig) -> tuple[LMConfig, dict[str, Any]]:
    """The parameters for the audio rows and depth steps of `target`, row by row from where they come; delays stay."""
    source, wanted = config.layout.streams[1:], target.layout.streams[1:]
    rows = _origins(source, wanted)
    layout = _with_delays(
        target.layout, (config.layout.delays[0], *(source[row].delay for row in rows)), "the transform"
    )
    found = {path: leaf for path, leaf in params.items() if not path.startswith("depth/")}
    copied = [row for row, old in enumerate(rows) if source[old].speaker != wanted[row].speaker]
    alone = len({s.speaker for s in wanted}) == 1  # then a row was renamed, not copied
    for path in [path for path in found if path.startswith("audio_embedding/")]:
        found[path] = jnp.take(found[path], jnp.asarray(rows), axis=0)
    found = _without_initial_tokens(found, config.card, [] if alone else copied)
    depth = None
    if target.layout.dep_q:
        if config.depth is None or target.depth is None:
            raise ConfigError("that model has no depth transformer, from which depth steps could come")
        before, after = config.layout.dep_q, target.layout.dep_q
        steps = _origins(source[:before], wanted[:after])
        depth = dataclasses.replace(config.depth, schedule=target.depth.schedule, hidden_dims=target.depth.hidden_dims)
        found |= _depth_steps(config, params, steps, before, depth)
    return dataclasses.replace(config, layout=layout, depth=depth), found


def _depth_steps(
    config: LMConfig, params: Flat, steps: Sequence[int], before: int, depth: lm.DepthConfig
) -> dict[str, Any]:
    """Parameters of a depth transformer whose step k is the old step `steps[k]`."""
    after = len(steps)
    old = config.depth
    attention = _weights(old.step_weights(before), depth.step_weights(after), steps)
    inputs = _weights(old.input_weights(before), depth.input_weights(after), steps)
    tables = [step if step < before - 1 else None for step in steps[: after - 1]]
    out = {}
    for path, leaf in params.items():
        if not path.startswith("depth/"):
            continue
        name = path.removeprefix("depth/")
        if name.startswith("inputs/"):
            leaf = jnp.take(leaf, jnp.asarray(inputs), axis=0)
        elif name.startswith("layers/") and "/steps/" in name:
            leaf = jnp.take(leaf, jnp.asarray(attention), axis=1)
        elif name.startswith(("heads/", "output_norm/")):
            leaf = jnp.take(leaf, jnp.asarray(steps), axis=0)
        elif name.startswith("audio_embedding/"):
            zero = jnp.zeros((1, *leaf.shape[1:]), leaf.dtype)
            leaf = jnp.concatenate([leaf, zero])[jnp.asarray([before - 1 if t is None else t for t in tables])]
        out[path] = leaf
    return out


def _weights(old: Sequence[int], new: Sequence[int], steps: Sequence[int]) -> list[int]:
    """For every distinct weight of the new steps the old weight that it comes from."""
    found = []
    for weight in range(max(new) + 1):
        origins = {old[steps[k]] for k, w in enumerate(new) if w == weight}
        if len(origins) > 1:
            raise ConfigError(
                f"depth steps that share weight {weight} come from steps with weights {sorted(origins)} of their own; "
                "use a schedule that keeps them apart"
            )
        found.append(origins.pop())
    return found


def _without_initial_tokens(params: Flat, card: int, rows: Iterable[int]) -> dict[str, Any]:
    """The same, with zeros for the initial token (id `card`) of some rows of the audio tables."""
    rows, path, found = list(rows), "audio_embedding/table", dict(params)
    if rows and path in found:
        found[path] = jnp.asarray(found[path]).at[jnp.asarray(rows), card].set(0)
    return found


# Where a run starts -------------------------------------------------------------------------------------------------


def starting_point(
    experiment: ExperimentConfig, task: Task, plan: StatePlan, mesh: Mesh
) -> Callable[[TrainState], TrainState]:
    """Check what `init_from` and `init_transforms` name; the function that puts those parameters into a new state.

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
            raise ConfigError(
                f"init_transforms {names} are for language models; leave them out of a {task.kind} recipe"
            )
        return _codec_start(path, task, plan)
    unknown = [name for name in names if name not in TRANSFORMS]
    if unknown:
        raise ConfigError(f"init_transforms names {unknown[0]!r}; there are {', '.join(TRANSFORMS)}")
    transforms = [TRANSFORMS[name] for name in names]
    config: LMConfig = task.model_config()
    if (Path(path) / files.CHECKPOINTS).is_dir():
        kind, source, tree = model_shapes(path)
        if kind != "lm":
            raise DataError(f"{path} is a {kind} and this recipe trains a language model; give the run of one")
        shapes = tree["params"]

        def read(where: Any) -> Any:
            return read_model(path, shardings=where)[2]["params"]  # the running average, where the run keeps one

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
            here, params = _with_updates(here, params, config, fresh)
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
    _check_rows(path, result[-1].layout, config.layout, names)
    own = sharding.shardings_of(jax.eval_shape(lambda key: lm.init_boxed(source, key), jax.random.key(0)), mesh)

    kinds = [{name: (leaf.shape, leaf.dtype) for name, leaf in tree.items()} for tree in (there, fresh)]

    def start(state: TrainState) -> TrainState:
        params = flatten_dict(read(own), sep="/")
        put = flatten_dict(plan.shardings.params, sep="/")
        if transforms or kinds[0] != kinds[1]:
            params = jax.jit(typed, out_shardings=put)(params, flatten_dict(state.params, sep="/"))
        return _with(state, task, unflatten_dict({name: params[name] for name in put}, sep="/"), state.model_state)

    return start


def _with_updates(config: LMConfig, params: Flat, target: LMConfig, fresh: Flat) -> tuple[LMConfig, dict[str, Any]]:
    """Low-rank updates, new, beside weights that have none: they begin as nothing."""
    new = {path: leaf for path, leaf in fresh.items() if path.rpartition("/")[2].endswith(("lora_a", "lora_b"))}
    return dataclasses.replace(config, lora=target.lora), {**params, **new}


def _relayout(params: Flat, scan_layers: bool) -> dict[str, Any]:
    return flatten_dict(relayout(unflatten_dict(params, sep="/"), scan_layers), sep="/")


def released(source: Source) -> Source:
    """A language model in its released form: without the depth steps of the rows that are only given to it.

    Raises:
      ConfigError: it has none, or an adapter that is not merged.
    """
    config: LMConfig = source.config
    if source.adapter is not None:
        raise ConfigError(f"{source.where} has an adapter, which has steps of its own: merge it first")
    layout = StreamLayout(tuple(dataclasses.replace(s, scored=s.scored and s.generated) for s in config.layout.streams))
    depth = config.depth
    if depth is not None and depth.schedule is not None:
        schedule = depth.schedule[: layout.dep_q]
        widths = depth.hidden_dims and depth.hidden_dims[: max(schedule) + 1]
        depth = dataclasses.replace(depth, schedule=schedule, hidden_dims=widths)
    target = dataclasses.replace(config, layout=layout, depth=depth)
    params = flatten_dict(source.leaves(stacked=True).tree(), sep="/")
    flat = release(config, params, target, {})[1]
    table = same(abstract("lm", target))
    published = Published(table_of("lm", target), flat)
    record = Record("run")  # what it said of itself is no longer so
    return dataclasses.replace(
        source, config=target, tensors=published, record=record, table=table, stored=Published(table, flat)
    )


def _check_rows(path: str, there: StreamLayout, here: StreamLayout, names: Sequence[str]) -> None:
    """Rows may be generated or scored otherwise, but they must mean the same and lie at the same delays."""

    def rows(layout: StreamLayout) -> list[tuple[Any, ...]]:
        return [(s.kind, s.codebook, s.delay) for s in layout.streams]

    if rows(there) != rows(here):
        after = f" after {', '.join(names)}" if names else ""
        raise ConfigError(
            f"the model of {path}{after} has delays {there.delays}, this recipe {here.delays}: say how one becomes the "
            f"other in init_transforms ({', '.join(TRANSFORMS)})"
        )


def _with(state: TrainState, task: Task, params: Any, model_state: Any) -> TrainState:
    ema = jax.tree.map(jnp.copy, averaged(task, params)) if state.ema else {}
    return state.replace(params=params, model_state=model_state, ema=ema)


def _codec_start(path: str, task: Task, plan: StatePlan) -> Callable[[TrainState], TrainState]:
    """Of a codec: a run with its codebooks, or published weights; what is auxiliary stays fresh where none fits."""
    if (Path(path) / files.CHECKPOINTS).is_dir():
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
    """Its parameters in the form that this task trains, with weight norm or without, whatever that run had."""
    _, _, model, _ = read_model(path)
    model, found = {**model, "params": task.training_form(model["params"])}, {}
    for kind, tree in model.items():
        own, there = flatten_dict(getattr(state, kind), sep="/"), flatten_dict(tree, sep="/")
        for name in filter(task.auxiliary, {*own, *there}):
            fits = name in own and name in there and own[name].shape == there[name].shape
            there[name] = there[name] if fits else own.get(name)
        found[kind] = unflatten_dict({name: leaf for name, leaf in there.items() if leaf is not None}, sep="/")
    raise_on_mismatch(Path(path), {kind: getattr(state, kind) for kind in model}, found)
    return tuple(jax.device_put(found[kind], getattr(plan.shardings, kind)) for kind in ("params", "model_state"))
