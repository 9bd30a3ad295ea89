"""Rotary and sinusoidal position encodings, computed in float32."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


def rotation(positions: Int[Array, "*T"], head_dim: int, max_period: float) -> tuple[Array, Array]:
    """Cosine and sine of the rotary angles `position * max_period ** (-2 i / head_dim)`.

    Returns two float32 arrays `[*T, head_dim / 2]` (RoFormer, arXiv 2104.09864; `modules/rope.py` of `moshi`).
    """
    frequency = jnp.exp(jnp.arange(head_dim // 2, dtype=jnp.float32) * (-2.0 * math.log(max_period) / head_dim))
    angle = positions.astype(jnp.float32)[..., None] * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: Float[Array, "... C"], cos: Array, sin: Array, *, interleaved: bool) -> Float[Array, "... C"]:
    """Rotate pairs of channels: `(2i, 2i+1)` when interleaved, `(i, i + C/2)` otherwise.

    `cos` and `sin` broadcast against `[..., C/2]`. The rotation runs in float32; the result has the dtype of `x`.
    """
    half = x.shape[-1] // 2
    wide = x.astype(jnp.float32)
    if interleaved:
        pairs = wide.reshape(*wide.shape[:-1], half, 2)
        re, im = pairs[..., 0], pairs[..., 1]
    else:
        re, im = wide[..., :half], wide[..., half:]
    rotated = re * cos - im * sin, re * sin + im * cos
    if interleaved:
        out = jnp.stack(rotated, axis=-1).reshape(wide.shape)
    else:
        out = jnp.concatenate(rotated, axis=-1)
    return out.astype(x.dtype)


def sinusoid(positions: Int[Array, "*T"], dim: int, max_period: float) -> Float[Array, "*T dim"]:
    """Additive position embedding, cosine half then sine half, angles `position / max_period ** (i / (dim/2 - 1))`.

    Float32 (`modules/transformer.py` of `moshi`). `dim` is even and at least 4.
    """
    half = dim // 2
    exponent = jnp.arange(half, dtype=jnp.float32) / (half - 1)
    angle = positions.astype(jnp.float32)[..., None] / jnp.float32(max_period) ** exponent
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
