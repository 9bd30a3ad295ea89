"""The codec as pure functions: whole files of any length, and frame by frame.

Whole-file functions run a few compiled programs, one per listed number of frames (`FRAMES_PER_CALL`): shorter input is
padded on the right (the codec is causal, so nothing before the padding changes) and longer input goes through in pieces
with the streaming state, in bounded memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from moshijax.codec import seanet
from moshijax.codec.config import MimiConfig
from moshijax.codec.mimi import Decoder, Encoder, Mimi, num_frames
from moshijax.errors import ConfigError, DataError
from moshijax.nn.conv import CausalConv, TransposedConv, rows_from_kernel, rows_from_transposed_kernel
from moshijax.nn.streaming import whole_blocks
from moshijax.nn.vq import materialise
from moshijax.tokens import ZERO

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

#: The only sequence lengths, in frames, that whole-file functions compile for; longer input runs in pieces of the last.
FRAMES_PER_CALL = (4, 16, 32, 64, 125)
#: Convolution kernels of at least this many values become matrices in the inference layout.
MATRIX_KERNEL = 1 << 20


def init(config: MimiConfig, key: Array) -> dict[str, Any]:
    """Make new variables, ready to train.

    Returns:
      `{'params': ..., 'codebooks': {'quantizer': {'semantic' | 'acoustic': {'embedding_sum' [Q, V, C],
      'cluster_usage' [Q, V], 'initialized' [Q] bool}}}}`. `params` is what gradients train. Codebooks start at
      zero; training fills them by k-means (`moshijax.codec.quantizer_training`).
    """
    return nn.meta.unbox(_init(config, key))


@partial(jax.jit, static_argnames="config")
def _init(config, key):
    return Mimi(config).init(key, jnp.zeros((1, config.frame_size), jnp.float32))


def inference_layout(config: MimiConfig, params: dict[str, Any]) -> dict[str, Any]:
    """Arrange the variables of a codec so that it runs fast; every function here takes either form.

    Convert once, outside jit. Codebooks become tables with their norms. Large kernels, which act at low rates, become
    `[out, in]` matrices, so that a single frame reads them at memory speed.
    """
    learnt = dict(params["params"])
    for side, chain in (("encoder", seanet.encoder(config.seanet)), ("decoder", seanet.decoder(config.seanet))):
        parts = dict(learnt[side]["seanet"])
        for i, layer in enumerate(chain.parts):
            parts = _with_matrix(parts, f"parts_{i}", layer)
        learnt[side] = {**learnt[side], "seanet": parts}
    if config.resample_stride > 1:
        learnt["encoder"] = _with_matrix(learnt["encoder"], "downsample", Encoder(config).stages()["downsample"])
    quantizer = params["codebooks"]["quantizer"]
    codebooks = {name: book if "table_0" in book else materialise(book) for name, book in quantizer.items()}
    return {"params": learnt, "codebooks": {"quantizer": codebooks}}


def _with_matrix(tree: dict[str, Any], name: str, layer: Any) -> dict[str, Any]:
    """`tree` with the kernel of layer `name` as a matrix, if it is a large convolution that is not one already."""
    convert = {CausalConv: rows_from_kernel, TransposedConv: rows_from_transposed_kernel}.get(type(layer))
    entry = tree.get(name, {})
    if convert is None or "kernel" not in entry or entry["kernel"].size < MATRIX_KERNEL:
        return tree
    rest = {leaf: value for leaf, value in entry.items() if leaf != "kernel"}
    return {**tree, name: {**rest, "kernel_rows": jnp.asarray(convert(entry["kernel"]))}}


def encode(
    config: MimiConfig,
    params: dict[str, Any],
    waveform: Float[Array, "B N"],
    num_codebooks: int | None = None,
    lengths_B: Int[Array, " B"] | None = None,
) -> Int[Array, "B Q T"]:
    """Encode whole recordings to codes.

    Args:
      config: of the codec.
      params: its variables, in either layout.
      waveform: float samples in [-1, 1] at `config.sample_rate`, of any length. The last frame is completed with
        zeros: T = ceil(N / frame_size); no samples give no frames.
      num_codebooks: Q, 1 to `config.num_codebooks` (the default).
      lengths_B: samples of each row that count; what follows is ignored, and its frames hold `ZERO` (-1). A row's
        codes equal those of the row by itself.

    Returns:
      int32 codes, one column per frame.

    Raises:
      ConfigError: `waveform` is not float `[B, N]`, `num_codebooks` is out of range, or lengths do not fit.
    """
    count = config.num_codebooks if num_codebooks is None else num_codebooks
    if not 1 <= count <= config.num_codebooks:
        raise ConfigError(f"num_codebooks {count} must be 1 to {config.num_codebooks}, what the codec has")
    waveform = _checked_waveform(waveform)
    if lengths_B is not None:
        if jnp.shape(lengths_B) != waveform.shape[:1]:
            raise ConfigError(f"lengths_B {jnp.shape(lengths_B)} must have one entry per row of {waveform.shape}")
        xp = _numpy_of(waveform, lengths_B)
        lengths_B = xp.asarray(lengths_B)
        waveform = xp.where(xp.arange(waveform.shape[1]) < lengths_B[:, None], waveform, np.float32(0))
    frames = num_frames(config, waveform.shape[1])
    if frames == 0:
        return jnp.zeros((waveform.shape[0], count, 0), jnp.int32)
    codes = _joined((_quantize(config, params, z, count) for z in _encode_pieces(config, params, waveform)), 2, frames)
    if lengths_B is not None:
        row_frames = -(-lengths_B // config.frame_size)
        xp = _numpy_of(codes, row_frames)
        codes = xp.where(xp.arange(frames) < row_frames[:, None, None], codes, np.int32(ZERO))
    return jax.device_put(codes)


def encode_latent(config: MimiConfig, params: dict[str, Any], waveform: Float[Array, "B N"]) -> Float[Array, "B T D"]:
    """Encode whole recordings to latents at the frame rate, before quantisation.

    Args:
      config: of the codec.
      params: its variables, in either layout.
      waveform: as in `encode`; T = ceil(N / frame_size).
    """
    waveform = _checked_waveform(waveform)
    frames = num_frames(config, waveform.shape[1])
    if frames == 0:
        return jnp.zeros((waveform.shape[0], 0, config.seanet.dimension), jnp.float32)
    return jax.device_put(_joined(_encode_pieces(config, params, waveform), 1, frames))


def decode(config: MimiConfig, params: dict[str, Any], codes: Int[Array, "B Q T"]) -> Float[Array, "B N"]:
    """Decode codes to waveforms, which are not clipped to [-1, 1].

    Args:
      config: of the codec.
      params: its variables, in either layout.
      codes: of the first Q codebooks, 1 to `config.num_codebooks`; a code of `ZERO` (-1) adds nothing.

    Returns:
      float32 samples, N = T * frame_size.

    Raises:
      ConfigError: the number of rows is not 1 to `config.num_codebooks`, or `codes` is not `[B, Q, T]` of
        integers.
      DataError: a code is not below `config.bins` (checked unless traced).
    """
    codes = _checked_codes(config, codes)
    frames = codes.shape[2]
    if frames == 0:
        return jnp.zeros((codes.shape[0], 0), jnp.float32)
    pieces = (_dequantize(config, params, piece) for piece in _pieces(codes, 2))
    return jax.device_put(_joined(_decode_pieces(config, params, pieces, frames), 1, frames * config.frame_size))


def decode_latent(config: MimiConfig, params: dict[str, Any], latent: Float[Array, "B T D"]) -> Float[Array, "B N"]:
    """Decode latents at the frame rate, quantised or not, to waveforms of T * frame_size samples."""
    frames = latent.shape[1]
    if frames == 0:
        return jnp.zeros((latent.shape[0], 0), jnp.float32)
    pieces = _pieces(latent, 1)
    return jax.device_put(_joined(_decode_pieces(config, params, pieces, frames), 1, frames * config.frame_size))


def init_encoder_state(config: MimiConfig, batch_size: int) -> dict[str, Any]:
    """Return the state of `batch_size` rows that have heard nothing yet."""
    return {"encoder": Encoder(config).init_state(batch_size)}


def init_decoder_state(config: MimiConfig, batch_size: int) -> dict[str, Any]:
    """Return the state of `batch_size` rows that have said nothing yet."""
    return {"decoder": Decoder(config).init_state(batch_size)}


def reset_state(config: MimiConfig, state: dict[str, Any], rows: Bool[Array, " B"]) -> dict[str, Any]:
    """Return the state with the rows that are true at their start.

    Args:
      config: of the codec.
      state: of the encoder, of the decoder, or both in one dict.
      rows: which rows to reset.
    """
    sides = {"encoder": Encoder(config), "decoder": Decoder(config)}
    return {side: sides[side].reset(part, rows) for side, part in state.items()}


@partial(jax.jit, static_argnames=("config", "num_codebooks"))
def encode_step(
    config: MimiConfig,
    params: dict[str, Any],
    state: dict[str, Any],
    pcm: Float[Array, "B N"],
    active: Bool[Array, " B"] | None = None,
    num_codebooks: int | None = None,
) -> tuple[dict[str, Any], Int[Array, "B Q T"]]:
    """Encode one or more frames, without look-ahead; compiled once per shape.

    Args:
      config: of the codec.
      params: its variables, in either layout.
      state: of the encoder, as `init_encoder_state` returns it.
      pcm: float samples in [-1, 1]; N is a multiple of `config.frame_size`.
      active: rows that are false keep their state, and their codes are meaningless.
      num_codebooks: Q, 1 to `config.num_codebooks` (the default).

    Returns:
      The state, and int32 codes, one column per frame.

    Raises:
      ConfigError: N is not a positive multiple of the frame size, or `num_codebooks` is out of range.
    """
    whole_blocks(pcm.shape[1], config.frame_size, "encode_step")
    method = Mimi.encode_step
    new, codes = Mimi(config).apply(params, state["encoder"], pcm, active, num_codebooks, method=method)
    return {"encoder": new}, codes


@partial(jax.jit, static_argnames=("config",))
def decode_step(
    config: MimiConfig,
    params: dict[str, Any],
    state: dict[str, Any],
    codes: Int[Array, "B Q T"],
    active: Bool[Array, " B"] | None = None,
) -> tuple[dict[str, Any], Float[Array, "B N"]]:
    """Decode one or more columns of codes; compiled once per shape.

    Args:
      config: of the codec.
      params: its variables, in either layout.
      state: of the decoder, as `init_decoder_state` returns it.
      codes: int32, as in `decode`.
      active: rows that are false keep their state, and their samples are meaningless.

    Returns:
      The state, and float32 samples, N = T * frame_size.
    """
    new, pcm = Mimi(config).apply(params, state["decoder"], codes, active, method=Mimi.decode_step)
    return {"decoder": new}, pcm


# Pieces of whole recordings.


def _listed(frames: int) -> list[int]:
    """Listed lengths that together hold `frames` frames: as many of the largest as needed, then one that fits."""
    largest = FRAMES_PER_CALL[-1]
    rest = frames % largest
    return [largest] * (frames // largest) + ([next(n for n in FRAMES_PER_CALL if n >= rest)] if rest else [])


# Cutting, padding and joining happen in numpy unless traced: in jax, every new length would compile them once.


def _numpy_of(*arrays: Array) -> Any:
    return jnp if any(isinstance(array, jax.core.Tracer) for array in arrays) else np


def _pieces(x: Array, axis: int, unit: int = 1) -> Iterator[Array]:
    """`x` cut along `axis` into listed lengths, in frames of `unit` steps; the last one is padded with zeros."""
    xp, at = _numpy_of(x), 0
    x = xp.asarray(x)
    for frames in _listed(-(-x.shape[axis] // unit)):
        piece = x[(slice(None),) * axis + (slice(at, at + frames * unit),)]
        missing = frames * unit - piece.shape[axis]
        widths = [(0, missing if i == axis else 0) for i in range(x.ndim)]
        yield xp.pad(piece, widths) if missing else piece
        at += frames * unit


def _joined(pieces: Iterator[Array], axis: int, length: int) -> Array:
    """The pieces one after the other, cut to `length`."""
    pieces = [piece if isinstance(piece, jax.core.Tracer) else np.asarray(piece) for piece in pieces]
    return _numpy_of(*pieces).concatenate(pieces, axis)[(slice(None),) * axis + (slice(length),)]


def _encode_pieces(config: MimiConfig, params: dict[str, Any], waveform: Array) -> Iterator[Array]:
    """Latents of a waveform, piece by piece."""
    config, pieces = replace(config, ring="exact"), _pieces(waveform, 1, config.frame_size)
    if num_frames(config, waveform.shape[1]) <= FRAMES_PER_CALL[-1]:
        yield _encode_whole(config, params, next(pieces))
        return
    state = init_encoder_state(config, waveform.shape[0])["encoder"]
    for piece in pieces:
        state, latent = _encode_piece(config, params, state, piece)
        yield latent


def _decode_pieces(
    config: MimiConfig, params: dict[str, Any], latents: Iterator[Array], frames: int
) -> Iterator[Array]:
    """Samples of `frames` frames of latents, piece by piece."""
    config, state = replace(config, ring="exact"), None
    for latent in latents:
        if frames <= FRAMES_PER_CALL[-1]:
            yield _decode_whole(config, params, latent)
            return
        if state is None:
            state = init_decoder_state(config, latent.shape[0])["decoder"]
        state, pcm = _decode_piece(config, params, state, latent)
        yield pcm


@partial(jax.jit, static_argnames="config")
def _encode_whole(config, params, waveform):
    return Mimi(config).apply(params, waveform, method=Mimi.encode_latent)


@partial(jax.jit, static_argnames="config", donate_argnums=2)
def _encode_piece(config, params, state, waveform):
    return Mimi(config).apply(params, state, waveform, method=Mimi.encode_latent_step)


@partial(jax.jit, static_argnames=("config", "num_codebooks"))
def _quantize(config, params, latent, num_codebooks):
    return Mimi(config).apply(params, latent, num_codebooks, method=Mimi.quantize)


@partial(jax.jit, static_argnames="config")
def _decode_whole(config, params, latent):
    return Mimi(config).apply(params, latent, method=Mimi.decode_latent)


@partial(jax.jit, static_argnames="config", donate_argnums=2)
def _decode_piece(config, params, state, latent):
    return Mimi(config).apply(params, state, latent, method=Mimi.decode_latent_step)


@partial(jax.jit, static_argnames="config")
def _dequantize(config, params, codes):
    return Mimi(config).apply(params, codes, method=Mimi.dequantize)


def _checked_waveform(waveform: Array) -> Array:
    shape, dtype = jnp.shape(waveform), jnp.result_type(waveform)
    if len(shape) != 2 or not jnp.issubdtype(dtype, jnp.floating):
        raise ConfigError(
            f"waveform is {dtype} {shape}, must be float [B, N] in [-1, 1]; add a batch axis, scale integers"
        )
    return _numpy_of(waveform).asarray(waveform, np.float32)


def _checked_codes(config: MimiConfig, codes: Array) -> Array:
    shape, dtype = jnp.shape(codes), jnp.result_type(codes)
    if len(shape) != 3 or not jnp.issubdtype(dtype, jnp.integer):
        raise ConfigError(f"codes are {dtype} {shape}, must be integers [B, Q, T]")
    if not 1 <= shape[1] <= config.num_codebooks:
        raise ConfigError(f"codes have {shape[1]} rows, must have 1 to {config.num_codebooks}, what the codec has")
    codes = _numpy_of(codes).asarray(codes, np.int32)
    if isinstance(codes, np.ndarray) and codes.size and (largest := int(codes.max())) >= config.bins:
        raise DataError(
            f"code {largest} is not below {config.bins}, the entries of a codebook; use codes of this codec"
        )
    return codes
