"""Layer norm and RMS norm, the kinds that published configs name; always computed in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float

#: kind -> (has mean and bias, epsilon). The epsilon is inside the square root.
NORM_KINDS: dict[str, tuple[bool, float]] = {
    "layer_norm": (True, 1e-5),
    "layer_norm_f32": (True, 1e-8),
    "rms_norm": (False, 1e-5),
    "rms_norm_f32": (False, 1e-8),
    "rms_norm_1e-6": (False, 1e-6),
}


class Norm(nn.Module):
    """Normalise the last axis. Parameters: `scale [D]`, and `bias [D]` for the layer norms.

    The result has the dtype of the input (`modules/transformer.py` of `moshi`).
    """

    dim: int
    kind: str = "layer_norm"
    param_dtype: str = "float32"

    def setup(self) -> None:
        self.scale = self.param(
            "scale",
            nn.with_logical_partitioning(nn.initializers.ones, ("norm",)),
            (self.dim,),
            jnp.dtype(self.param_dtype),
        )
        if NORM_KINDS[self.kind][0]:
            self.bias = self.param(
                "bias",
                nn.with_logical_partitioning(nn.initializers.zeros, ("norm",)),
                (self.dim,),
                jnp.dtype(self.param_dtype),
            )

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        return normalise(x, self.kind, self.scale, self.bias if NORM_KINDS[self.kind][0] else None)


def normalise(x: Float[Array, "... D"], kind: str, scale: Array, bias: Array | None = None) -> Float[Array, "... D"]:
    """Apply norm `kind` with parameters that broadcast against `x`."""
    centred, epsilon = NORM_KINDS[kind]
    wide = x.astype(jnp.float32)
    if centred:
        wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + epsilon)
    wide = wide * scale.astype(jnp.float32)
    if bias is not None:
        wide = wide + bias.astype(jnp.float32)
    return wide.astype(x.dtype)
