"""Causal attention over whole sequences, one interface over three implementations with equal results.

`xla` runs everywhere and is what exported programs hold; `cudnn` is `jax.nn.dot_product_attention` on NVIDIA GPUs;
`splash` is the Pallas kernel for TPUs (`jax.experimental.pallas.ops.tpu.splash_attention`). A query sees itself and
the `context - 1` positions before it, of its own segment where there are segments.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp

from moshijax.errors import ConfigError

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

#: "auto": what suits the devices that the program is traced for.
IMPLEMENTATIONS = ("auto", "xla", "cudnn", "splash")

#: Whole sequences longer than this are attended in pieces, so that no `T x T` array is made.
FULL_ATTENTION_LIMIT = 2048
#: Bound on the scores held at once when attending in pieces, in values.
SCORE_BUDGET = 1 << 26
#: Splash attention works in blocks that are multiples of this; shorter sequences take the plain path.
SPLASH_BLOCK = 128

_plain: ContextVar[bool] = ContextVar("plain_attention", default=False)


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Trace with `xla` whatever the configs say: exported programs are portable, and FLOPs are counted on this form."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def platform() -> str:
    """Kind of the devices that are traced for ("cpu", "gpu", "tpu"): those of the mesh, else the default ones."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def choose(implementation: str, where: str, dtype: str, head_dim: int, segments: bool) -> str:
    """Which implementation runs on a platform.

    Args:
      implementation: of `IMPLEMENTATIONS`.
      where: what `platform` says.
      dtype: of queries, keys and values. Under "auto" float32 stays with `xla`: kernels multiply in lower precision.
      segments: whether positions are kept apart by segment, which cuDNN cannot.

    Raises:
      ConfigError: an implementation was named that cannot do it.
    """
    if _plain.get():
        return "xla"
    half = dtype in ("bfloat16", "float16")
    if implementation == "auto":
        if where == "gpu" and half and not segments and head_dim % 8 == 0 and head_dim <= 128 and _ampere():
            return "cudnn"
        return "splash" if where == "tpu" and dtype == "bfloat16" else "xla"
    if implementation == "cudnn":
        if segments:
            raise ConfigError(
                "attention_implementation='cudnn' knows no document masks; use 'auto', or let documents see each other"
            )
        if where != "gpu":
            raise ConfigError(f"attention_implementation='cudnn' needs an NVIDIA GPU, not {where}; use 'auto'")
    return implementation


def _ampere() -> bool:
    """Whether cuDNN's fused attention runs on the GPUs here, by their compute capability."""
    capability = getattr(jax.devices()[0], "compute_capability", None)
    return capability is None or float(capability) >= 8.0


def causal_attention(
    q_BTGRC: Float[Array, "B T G R C"],
    k_BTGC: Float[Array, "B T G C"],
    v_BTGC: Float[Array, "B T G C"],
    context: int | None,
    precision: str | None,
    implementation: str = "auto",
    segments_BT: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T G R C"]:
    """Softmax attention of every position to those before it.

    Args:
      q_BTGRC: queries; R of them share a key/value head.
      context: positions that a query sees, itself included; None: all.
      precision: of the products, where the implementation is `xla`.
      segments_BT: positions see each other only if their numbers are equal.

    Raises:
      ConfigError: see `choose`.
    """
    T, C = q_BTGRC.shape[1], q_BTGRC.shape[-1]
    chosen = choose(implementation, platform(), q_BTGRC.dtype.name, C, segments_BT is not None)
    if chosen == "cudnn":
        return dot_product(q_BTGRC, k_BTGC, v_BTGC, context)
    if chosen == "splash" and T >= SPLASH_BLOCK:
        return splash(q_BTGRC, k_BTGC, v_BTGC, context, segments_BT, interpret=platform() != "tpu")
    return attend_sequence(q_BTGRC, k_BTGC, v_BTGC, context, precision, segments_BT)


# XLA ----------------------------------------------------------------------------------------------------------------


def attend(
    q_BTGRC: Array, k_BGSC: Array, v_BGSC: Array, mask: Bool[Array, "..."] | None, precision: str | None
) -> Float[Array, "B T G R C"]:
    """Softmax attention in float32; `mask` broadcasts to `[B, G, R, T, S]`, false = not attended."""
    scores = jnp.einsum("btgrc,bgsc->bgrts", q_BTGRC, k_BGSC, precision=precision, preferred_element_type=jnp.float32)
    scores = scores / math.sqrt(q_BTGRC.shape[-1])
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BGSC.dtype)
    return jnp.einsum("bgrts,bgsc->btgrc", weights, v_BGSC, precision=precision)


def window_mask(query: Int[Array, "*A T"], key: Int[Array, "*A S"], context: int | None) -> Bool[Array, "*A T S"]:
    """True where a query may see a key: `0 <= query - key < context` and `key >= 0`, on absolute positions."""
    distance = query[..., :, None] - key[..., None, :]
    mask = (distance >= 0) & (key[..., None, :] >= 0)
    return mask & (distance < context) if context is not None else mask


def _same_segment(query_BT: Array, key_BS: Array) -> Array:
    """[B, 1, 1, T, S]."""
    return (query_BT[:, :, None] == key_BS[:, None, :])[:, None, None]


def attend_sequence(
    q_BTGRC: Array,
    k_BTGC: Array,
    v_BTGC: Array,
    context: int | None,
    precision: str | None,
    segments_BT: Array | None = None,
) -> Float[Array, "B T G R C"]:
    """`causal_attention` in plain XLA, in pieces of bounded size when the sequence is long."""
    B, T, G, R, _ = q_BTGRC.shape
    k_BGTC, v_BGTC = (jnp.swapaxes(x, 1, 2) for x in (k_BTGC, v_BTGC))
    windowed = context is not None and T > 2 * context
    if T <= FULL_ATTENTION_LIMIT and not (windowed and T > 512):
        position = jnp.arange(T)
        mask = window_mask(position, position, context)
        if segments_BT is not None:
            mask = mask & _same_segment(segments_BT, segments_BT)
        return attend(q_BTGRC, k_BGTC, v_BGTC, mask, precision)

    chunk = max(context, 64) if windowed else 256
    pieces = -(-T // chunk)
    pad = pieces * chunk - T
    q = jnp.pad(q_BTGRC, ((0, 0), (0, pad)) + ((0, 0),) * 3).reshape(B, pieces, chunk, *q_BTGRC.shape[2:])
    q = jnp.moveaxis(q, 1, 0)
    segments = None if segments_BT is None else jnp.pad(segments_BT, ((0, 0), (chunk, pad + chunk)), mode="edge")
    if windowed:  # piece i sees pieces i - 1 and i only
        span = 2 * chunk

        def spans(x_BGTC: Array) -> Array:
            padded = jnp.pad(x_BGTC, ((0, 0), (0, 0), (chunk, pad), (0, 0)))
            halves = padded.reshape(B, G, pieces + 1, chunk, -1)
            return jnp.moveaxis(jnp.concatenate([halves[:, :, :-1], halves[:, :, 1:]], axis=3), 2, 0)

        keys, values = spans(k_BGTC), spans(v_BGTC)
    else:
        span, keys, values = T, None, None

    @jax.checkpoint
    def piece(inputs):
        i, q_i, k_i, v_i = inputs
        query = i * chunk + jnp.arange(chunk)
        key = (i - 1) * chunk + jnp.arange(span) if windowed else jnp.arange(T)
        mask = window_mask(query, key, context)
        if segments is not None:  # position p stands at p + chunk
            own = jax.lax.dynamic_slice_in_dim(segments, (i + 1) * chunk, chunk, axis=1)
            seen = jax.lax.dynamic_slice_in_dim(segments, i * chunk if windowed else chunk, span, axis=1)
            mask = mask & _same_segment(own, seen)
        if not windowed:
            k_i, v_i = k_BGTC, v_BGTC
        return attend(q_i, k_i, v_i, mask, precision)

    at_once = max(1, min(pieces, SCORE_BUDGET // (B * G * R * chunk * span)))
    out = jax.lax.map(piece, (jnp.arange(pieces), q, keys, values), batch_size=at_once)
    return jnp.moveaxis(out, 0, 1).reshape(B, pieces * chunk, *out.shape[3:])[:, :T]


# cuDNN --------------------------------------------------------------------------------------------------------------


def dot_product(
    q_BTGRC: Array, k_BTGC: Array, v_BTGC: Array, context: int | None, implementation: str = "cudnn"
) -> Float[Array, "B T G R C"]:
    """`causal_attention` by `jax.nn.dot_product_attention`."""
    B, T, G, R, C = q_BTGRC.shape
    y = jax.nn.dot_product_attention(
        q_BTGRC.reshape(B, T, G * R, C),
        k_BTGC,
        v_BTGC,
        is_causal=True,
        local_window_size=None if context is None or context >= T else (context - 1, 0),
        implementation=implementation,
    )
    return y.reshape(q_BTGRC.shape)


# Splash -------------------------------------------------------------------------------------------------------------


def _splash_block(T: int) -> int:
    """The largest block that fills up a sequence by no more than a sixteenth, else the smallest."""
    return next((b for b in (512, 256) if -(-T // b) * b - T <= T // 16), SPLASH_BLOCK)


def splash(
    q_BTGRC: Array,
    k_BTGC: Array,
    v_BTGC: Array,
    context: int | None,
    segments_BT: Array | None = None,
    interpret: bool = False,
) -> Float[Array, "B T G R C"]:
    """`causal_attention` by splash attention; every device of the mesh runs the kernel on its own rows and heads.

    The sequence is filled up to whole blocks: what comes after a query changes nothing.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as kernels

    B, T, G, R, C = q_BTGRC.shape
    block = _splash_block(T)
    length = -(-T // block) * block
    sizes = kernels.BlockSizes(**{name: block for name in _SPLASH_BLOCKS})
    shape = (length, length)
    mask = kernels.CausalMask(shape) if context is None else kernels.LocalMask(shape, (context - 1, 0), 0)

    def attend_rows(q_BHTC: Array, k_BGTC: Array, v_BGTC: Array, segments_BT: Array | None) -> Array:
        kernel = kernels.make_splash_mha(
            kernels.MultiHeadMask([mask] * q_BHTC.shape[1]),
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )

        def row(q: Array, k: Array, v: Array, segments: Array | None) -> Array:
            ids = None if segments is None else kernels.SegmentIds(segments, segments)
            return kernel(q, k, v, segment_ids=ids)

        return jax.vmap(row)(q_BHTC, k_BGTC, v_BGTC, segments_BT)

    fill = partial(_fill, length=length)
    scale = 1 / math.sqrt(C)
    q = (q_BTGRC.astype(jnp.float32) * scale).astype(q_BTGRC.dtype).reshape(B, T, G * R, C)
    arrays = [fill(jnp.swapaxes(x, 1, 2), axis=2) for x in (q, k_BTGC, v_BTGC)]
    segments = None if segments_BT is None else fill(segments_BT, axis=1)
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.size > 1:
        heads = nn.logical_to_mesh_axes(("batch", "heads", None, None))
        rows = nn.logical_to_mesh_axes(("batch", None))
        specs = (heads, heads, heads, None if segments is None else rows)
        # The masks inside the kernel are built again on every device, which the check of replication cannot follow.
        attend_rows = jax.shard_map(attend_rows, in_specs=specs, out_specs=heads, check_vma=False)
    y_BHTC = attend_rows(*arrays, segments)
    return jnp.swapaxes(y_BHTC, 1, 2)[:, :T].reshape(q_BTGRC.shape)


_SPLASH_BLOCKS = (
    "block_q",
    "block_kv",
    "block_kv_compute",
    "block_q_dkv",
    "block_kv_dkv",
    "block_kv_dkv_compute",
    "block_q_dq",
    "block_kv_dq",
)


def _fill(x: Array, length: int, axis: int) -> Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, length - x.shape[axis])
    return jnp.pad(x, widths)
