"""Rotary and sinusoidal position encodings, computed in float32."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from moshijax.annotations import Positive
from moshijax.errors import require

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


@dataclass(frozen=True)
class RopeScaling:
    """How Llama 3.1 slows its rotations down for long contexts (`rope_type` "llama3" of Transformers).

    Rotations of which more than `high` fit into `original_context` positions stay as they are, those of which fewer
    than `low` fit are `factor` times slower, and those between are interpolated.

    Attributes:
      factor: By which the slow rotations are slowed down.
      low: Turns within the original context, see above.
      high: Turns within the original context, more than `low`.
      original_context: Positions of the context that the model was first trained on.
    """

    factor: Positive = 8.0
    low: Positive = 1.0
    high: Positive = 4.0
    original_context: Positive = 8192

    def __post_init__(self) -> None:
        require(self.factor >= 1, f"rope_scaling factor={self.factor!r}: must be 1 or more")
        require(
            self.low < self.high, f"rope_scaling low={self.low!r}, high={self.high!r}: low must be smaller than high"
        )

    def slowed(self, frequency: np.ndarray) -> np.ndarray:
        """Return the frequencies, in radians per position, of a model with this scaling."""
        turns = self.original_context * frequency / (2 * math.pi)
        kept = np.clip((turns - self.low) / (self.high - self.low), 0.0, 1.0)
        return frequency * (kept + (1 - kept) / self.factor)


def rotation(
    positions: Int[Array, "*T"], head_dim: int, max_period: float, scaling: RopeScaling | None = None
) -> tuple[Array, Array]:
    """Cosine and sine of the rotary angles `position * max_period ** (-2 i / head_dim)`.

    Args:
      positions: Of any shape.
      head_dim: Channels of a head.
      max_period: Of the rotations, in positions, over two pi.
      scaling: Of the frequencies; None: none.

    Returns:
      Two float32 arrays `[*T, head_dim / 2]` (RoFormer, arXiv 2104.09864; `modules/rope.py` of `moshi`).
    """
    if scaling is None:
        frequency = jnp.exp(jnp.arange(head_dim // 2, dtype=jnp.float32) * (-2.0 * math.log(max_period) / head_dim))
    else:
        exact = np.power(float(max_period), -2.0 * np.arange(head_dim // 2) / head_dim)
        frequency = jnp.asarray(scaling.slowed(exact), jnp.float32)
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
