"""Transforms between the stages of training: pure functions from the parameters of one language model to another's.

A transform is a function `(config, params, target, fresh) -> (config, params)`: the config of a language model and its
flat parameters {path: array}, layers and steps stacked, become those of another model. `target` is the config of the
model that is wanted, `fresh` its newly initialised parameters. Traced with shapes alone, the same functions check that
everything fits before anything is compiled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from moshijax.errors import ConfigError
from moshijax.lm.config import DepthConfig, LMConfig
from moshijax.lm.layouts import MODEL, Stream, StreamLayout
from moshijax.lm.model import abstract
from moshijax.nn.layout import unstack_layers
from moshijax.nn.lora import is_update

Flat = Mapping[str, Any]
Transform = Callable[[LMConfig, Flat, LMConfig, Flat], tuple[LMConfig, dict[str, Any]]]


def helium_to_moshi(config: LMConfig, params: Flat, target: LMConfig, fresh: Flat) -> tuple[LMConfig, dict[str, Any]]:
    """Make a text model the temporal transformer of `target`, with new audio tables and a new depth transformer.

    The initial tokens of the audio rows embed to zero at first (our choice; the paper says nothing), so that sequences
    of text alone have the text logits that they had (arXiv 2410.00037, 4.4).

    Raises:
      ConfigError: the model has audio rows already.
    """
    if config.layout.n_q:
        raise ConfigError(
            f"helium_to_moshi: that model has {config.layout.n_q} audio rows already; it takes a text-only model"
        )
    new = {path: leaf for path, leaf in fresh.items() if path.startswith(("audio_embedding/", "depth/"))}
    new = _without_initial_tokens(new, target.card, range(target.layout.n_q))
    # Of `target` only what these parameters decide; what the text model has must fit by itself.
    return dataclasses.replace(config, layout=target.layout, card=target.card, depth=target.depth), {**params, **new}


def one_stream_to_two(config: LMConfig, params: Flat, target: LMConfig, fresh: Flat) -> tuple[LMConfig, dict[str, Any]]:
    """Add a second speaker, whose token tables and depth steps are copies of the first one's, codebook by codebook.

    Public code that goes from one stream to two copies likewise (Hibiki, arXiv 2502.03382; nu-dialogue). What has
    nothing to be copied from starts at zero: the initial tokens of the new rows, so that text logits stay as they are
    while the second speaker is absent, and the depth table that joins the last row of one speaker to the first of the
    other.
    """
    _require_speakers("one_stream_to_two", config, 1, target, 2)
    return _with_rows(config, params, target)


def score_user(config: LMConfig, params: Flat, target: LMConfig, fresh: Flat) -> tuple[LMConfig, dict[str, Any]]:
    """Add depth steps for the user's rows, copied from the model's: from the released form back to the trained one.

    Raises:
      ConfigError: the model has no fewer depth steps than `target`.
    """
    if config.layout.dep_q >= target.layout.dep_q:
        raise ConfigError(
            f"score_user: that model has {config.layout.dep_q} depth steps and this one {target.layout.dep_q}; it adds "
            "those of the user's rows"
        )
    return _with_rows(config, params, target)


def release(config: LMConfig, params: Flat, target: LMConfig, fresh: Flat) -> tuple[LMConfig, dict[str, Any]]:
    """Remove the depth steps of the user's rows, which a call never runs: 16 to 8 in Moshi, as it was released.

    Raises:
      ConfigError: the model has no more depth steps than `target`.
    """
    if config.layout.dep_q <= target.layout.dep_q:
        raise ConfigError(
            f"release: that model has {config.layout.dep_q} depth steps and this one {target.layout.dep_q}; it removes "
            "those of the user's rows"
        )
    return _with_rows(config, params, target)


def delays(config: LMConfig, params: Flat, target: LMConfig, fresh: Flat) -> tuple[LMConfig, dict[str, Any]]:
    """Take over the delays of `target`; no parameter changes. Moshi goes from 2 frames to 1 after pre-training."""
    layout = _with_delays(config.layout, target.layout.delays, "delays")
    return dataclasses.replace(config, layout=layout), dict(params)


def recognition(config: LMConfig, params: Flat, target: LMConfig, fresh: Flat) -> tuple[LMConfig, dict[str, Any]]:
    """Make a model that hears and writes: all audio rows are given, and the depth transformer is removed.

    Raises:
      ConfigError: the model has no audio, or `target` has depth steps.
    """
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
            raise ConfigError("that model has no depth transformer from which to take depth steps")
        before, after = config.layout.dep_q, target.layout.dep_q
        steps = _origins(source[:before], wanted[:after])
        depth = dataclasses.replace(config.depth, schedule=target.depth.schedule, hidden_dims=target.depth.hidden_dims)
        found |= _depth_steps(config, params, steps, before, depth)
    return dataclasses.replace(config, layout=layout, depth=depth), found


def _depth_steps(
    config: LMConfig, params: Flat, steps: Sequence[int], before: int, depth: DepthConfig
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


def with_updates(config: LMConfig, params: Flat, target: LMConfig, fresh: Flat) -> tuple[LMConfig, dict[str, Any]]:
    """Add newly initialised low-rank updates to weights that have none; their products are zero at first."""
    new = {path: leaf for path, leaf in fresh.items() if is_update(path)}
    return dataclasses.replace(config, lora=target.lora), {**params, **new}


def for_calls(config: LMConfig, params: Mapping[str, Any]) -> tuple[LMConfig, dict[str, Any]]:
    """Leave out the depth steps of rows that are only scored: a call is given their codes and never runs them.

    Args:
      config: of any model.
      params: its parameters, in either layout.

    Returns:
      The config, and the parameters in the inference layout; the steps that stay are the first ones, and so are the
      entries of every array.
    """
    layout, depth = config.layout, config.depth
    params, steps = unstack_layers(params), len(layout.model_rows) - 1
    if depth is None or steps == layout.dep_q:
        return config, params
    used = set(depth.step_weights(steps)[:steps])
    if used != set(range(len(used))):  # later steps use earlier weights: nothing can be cut off
        return config, params
    streams = tuple(dataclasses.replace(s, scored=s.scored and not s.given) for s in layout.streams)
    if steps:
        schedule, dims = depth.schedule and depth.schedule[:steps], depth.hidden_dims and depth.hidden_dims[: len(used)]
        stack = dataclasses.replace(depth.transformer, hidden_dim=max(dims)) if dims else depth.transformer
        depth = dataclasses.replace(depth, transformer=stack, schedule=schedule, hidden_dims=dims)
    config = dataclasses.replace(config, layout=StreamLayout(streams), depth=depth if steps else None)

    def first(wanted: Any, there: Any) -> Any:
        if isinstance(wanted, Mapping):
            return {name: first(spec, there[name]) for name, spec in wanted.items() if name in there}
        return there if there.shape == wanted.shape else there[tuple(map(slice, wanted.shape[: there.ndim]))]

    return config, first(abstract(config, stacked=False), params)


def check_rows(path: str, there: StreamLayout, here: StreamLayout, names: Sequence[str]) -> None:
    """Check that two models agree in the meaning and the delays of their rows, whatever is generated or scored.

    Args:
      path: of the first model, for the message.
      there: its rows after the transforms.
      here: the rows that are wanted.
      names: the transforms that were applied.

    Raises:
      ConfigError: they differ.
    """

    def rows(layout: StreamLayout) -> list[tuple[Any, ...]]:
        return [(s.kind, s.codebook, s.delay) for s in layout.streams]

    if rows(there) != rows(here):
        after = f" after {', '.join(names)}" if names else ""
        raise ConfigError(
            f"the model of {path}{after} has delays {there.delays}, this recipe {here.delays}: say how one becomes the "
            f"other in init_transforms ({', '.join(TRANSFORMS)})"
        )
