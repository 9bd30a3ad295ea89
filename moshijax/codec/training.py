"""The codec in training: variables with their side head, the training forward, and the codebook update."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from moshijax.codec import functions, quantizer_training, weight_norm
from moshijax.codec.config import MimiConfig
from moshijax.codec.mimi import Mimi
from moshijax.codec.quantizer_training import QuantizerTraining, Statistics, row_uniform
from moshijax.nn.projection import linear, uniform

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


SIDES = ("encoder", "decoder")


class Bottleneck(NamedTuple):
    """What lies between encoder and decoder.

    Attributes:
      decoder_input: quantised, or as it was in rows that pass through.
      semantic: the first semantic level, after its output projection (straight-through); the teacher's side of the
        distillation reads it through `teacher_estimate`.
      semantic_latent: the same of the latent itself, unquantised.
      commitment: per row.
      codes: -1 where a level was dropped or has no codebook yet.
      statistics: of the `semantic` and the `acoustic` quantiser, for `update_codebooks`.
    """

    decoder_input: Float[Array, "B T D"]
    semantic: Float[Array, "B T D"]
    semantic_latent: Float[Array, "B T D"]
    commitment: Float[Array, " B"]
    codes: Int[Array, "B Q T"]
    statistics: dict[str, Statistics]


class TrainingOutput(NamedTuple):
    """What the losses need.

    Attributes:
      reconstruction: decoded waveform.
      latent: before quantisation.
      bottleneck: what `quantize` makes of the latent.
    """

    reconstruction: Float[Array, "B N"]
    latent: Float[Array, "B T D"]
    bottleneck: Bottleneck


def init(config: MimiConfig, key: Array, teacher_dim: int | None = None) -> dict[str, Any]:
    """Make new variables for training: those of `functions.init`, and a projection for the teacher.

    The projection, `params['teacher_projection']['kernel'] [F, D]`, is a side head; encoding, decoding and checkpoints
    of the codec alone ignore it.

    Args:
      config: of the codec.
      key: random key.
      teacher_dim: F, width of the teacher's features; None: no teacher.
    """
    codec_key, teacher_key = jax.random.split(key)
    variables = functions.init(config, codec_key)
    if teacher_dim is None:
        return variables
    dim = config.seanet.dimension
    kernel = uniform(dim)(teacher_key, (teacher_dim, dim), jnp.float32)
    return {**variables, "params": {**variables["params"], "teacher_projection": {"kernel": kernel}}}


def normalise_weights(params: dict[str, Any]) -> dict[str, Any]:
    """Put weight norm on the convolutions of both SEANets, where the reference has it in training."""
    return _with_seanets(params, weight_norm.split)


def plain_weights(params: dict[str, Any]) -> dict[str, Any]:
    """Invert `normalise_weights`; parameters without weight norm are returned as they are."""
    return _with_seanets(params, weight_norm.fold)


def _with_seanets(params: dict[str, Any], change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    return {**params, **{side: {**params[side], "seanet": change(params[side]["seanet"])} for side in SIDES}}


def codec_variables(variables: dict[str, Any]) -> dict[str, Any]:
    """Return the codec's own variables as `moshijax.codec` takes them.

    Side head and discriminators are left out, and weight norm is folded.
    """
    params = {name: variables["params"][name] for name in (*SIDES, "quantizer")}
    return {"params": weight_norm.fold(params), "codebooks": {"quantizer": variables["codebooks"]["quantizer"]}}


def teacher_estimate(variables: dict[str, Any], semantic: Float[Array, "B T D"]) -> Float[Array, "B T F"]:
    """Estimate the teacher's features from the semantic level, with the side head."""
    return linear(semantic, variables["params"]["teacher_projection"]["kernel"])


def forward(
    config: MimiConfig,
    settings: QuantizerTraining,
    variables: dict[str, Any],
    waveform: Float[Array, "B N"],
    key: Array,
    rows: Int[Array, " B"] | None = None,
    total_rows: Int[Array, ""] | int | None = None,
) -> TrainingOutput:
    """Encode, quantise, decode, with everything that training needs; pure, differentiable in `variables['params']`.

    Args:
      config: of the codec.
      settings: of codebook training.
      variables: `params` and `codebooks`, training layout, with or without weight norm.
      waveform: N a multiple of `config.frame_size`.
      key: of quantiser dropout, pass-through and samples; the same for all microbatches of a batch.
      rows: numbers of these rows in the whole batch (default 0 .. B - 1).
      total_rows: rows of the whole batch (default B).
    """
    plain = codec_variables(variables)
    latent = nn.apply(lambda mimi: mimi.encoder(waveform), Mimi(config))(plain)
    bottleneck = quantize(config, settings, variables, latent, key, rows, total_rows)
    reconstruction = nn.apply(lambda mimi: mimi.decoder(bottleneck.decoder_input), Mimi(config))(plain)
    return TrainingOutput(reconstruction, latent, bottleneck)


def quantize(
    config: MimiConfig,
    settings: QuantizerTraining,
    variables: dict[str, Any],
    latent: Float[Array, "B T D"],
    key: Array,
    rows: Int[Array, " B"] | None = None,
    total_rows: Int[Array, ""] | int | None = None,
) -> Bottleneck:
    """Run the middle of `forward`, from the latent to what the decoder gets.

    Args:
      config: of the codec.
      settings: of codebook training.
      variables: as in `forward`.
      latent: before quantisation.
      key: as in `forward`.
      rows: as in `forward`.
      total_rows: as in `forward`.
    """
    rows = jnp.arange(latent.shape[0]) if rows is None else rows
    total_rows = latent.shape[0] if total_rows is None else total_rows
    variables = codec_variables(variables)
    codebooks = variables["codebooks"]["quantizer"]
    run = partial(_quantize, settings=settings, codebooks=codebooks, key=key, rows=rows, total_rows=total_rows)
    return nn.apply(lambda mimi: run(mimi, latent), Mimi(config))(variables)


def _quantize(mimi: Mimi, latent, settings, codebooks, key, rows, total_rows) -> Bottleneck:
    level_key, *keys = jax.random.split(key, 5)
    results, projected = {}, {}
    for name, pass_key, sample_key in (("semantic", keys[0], keys[1]), ("acoustic", keys[2], keys[3])):
        part = getattr(mimi.quantizer, name)
        levels: Any = part.levels
        if name == "acoustic" and settings.dropout:
            levels = jax.random.randint(level_key, (), 1, part.levels + 1)
        passes = row_uniform(pass_key, rows) >= settings.quantization_rate
        z = part.input_proj(latent)
        result = quantizer_training.quantize(settings, codebooks[name], z, levels, passes, sample_key, rows, total_rows)
        results[name], projected[name] = result, part.output_proj(result.values)
        if name == "semantic":  # the teacher always sees codes, whatever the decoder sees
            semantic, semantic_latent = part.output_proj(result.first), part.output_proj(z)
    active = {name: result.active_levels for name, result in results.items()}
    weighted = sum(active[name] * result.commitment for name, result in results.items())
    return Bottleneck(
        decoder_input=projected["semantic"] + projected["acoustic"],
        semantic=semantic,
        semantic_latent=semantic_latent,
        commitment=weighted / jnp.maximum(sum(active.values()), 1.0),
        codes=jnp.concatenate([results["semantic"].codes, results["acoustic"].codes], axis=1),
        statistics={name: result.statistics for name, result in results.items()},
    )


def _kept(old: dict[str, Array], new: dict[str, Array]) -> dict[str, Array]:
    """The levels of `old` that are initialised, and those of `new` for the others."""
    keep = old["initialized"]
    return {key: jnp.where(keep.reshape(-1, *[1] * (new[key].ndim - 1)), old[key], new[key]) for key in new}


def update_codebooks(
    settings: QuantizerTraining,
    codebooks: dict[str, Any],
    statistics: dict[str, Statistics],
    key: Array,
    step: Int[Array, ""] | int,
) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return the codebooks after a step, from the statistics of the whole batch.

    Returns:
      Codebooks of the same structure, and metrics per level over all levels, semantic first: `replaced [Q]`,
      `usage_entropy [Q]`.
    """
    new, metrics = {}, []
    for i, name in enumerate(("semantic", "acoustic")):
        book, values = quantizer_training.update(
            settings, codebooks["quantizer"][name], statistics[name], jax.random.fold_in(key, i), step
        )
        new[name] = _kept(codebooks["quantizer"][name], book) if name in settings.fixed else book
        metrics.append(values)
    return {"quantizer": new}, {name: jnp.concatenate([m[name] for m in metrics]) for name in metrics[0]}
