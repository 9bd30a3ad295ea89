"""Linear maps with published `[out, in]` kernels, one per layer or one per depth step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float

#: Up to this many rows a matrix-vector product per row beats a matrix product on CPU.
MATVEC_ROWS = 4


def truncated_normal(fan_in: int) -> Callable:
    """Normal with std `1 / sqrt(fan_in)`, cut at three std (`models/lm_utils.py` of `moshi`)."""
    return nn.initializers.truncated_normal(1.0 / math.sqrt(fan_in), lower=-3.0, upper=3.0)


def uniform(fan_in: int) -> Callable:
    """Uniform in `+- 1 / sqrt(fan_in)`, what PyTorch gives a linear layer that nobody initialises."""
    bound = 1.0 / math.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


INITIALIZERS = {"truncated_normal": truncated_normal, "uniform": uniform}


def linear(
    x: Float[Array, "... I"], kernel: Float[Array, "O I"], precision: str | None = "highest"
) -> Float[Array, "... O"]:
    """`x @ kernel.T`; for a few rows as matrix-vector products, which read each weight once at full bandwidth."""
    lead = x.shape[:-1]
    rows = x.reshape(-1, x.shape[-1])
    if rows.shape[0] == 1:
        out = jnp.dot(kernel, rows[0], precision=precision)[None]
    elif rows.shape[0] <= MATVEC_ROWS:
        out = jax.lax.platform_dependent(
            rows,
            kernel,
            cpu=lambda r, w: jnp.stack([jnp.dot(w, row, precision=precision) for row in r]),
            default=lambda r, w: jnp.einsum("mk,nk->mn", r, w, precision=precision),
        )
    else:
        out = jnp.einsum("mk,nk->mn", rows, kernel, precision=precision)
    return out.reshape(*lead, kernel.shape[0])


class Linear(nn.Module):
    """`y = x W^T (+ b)`; parameters `kernel [out, in]` and `bias [out]`, axes named for the sharding table."""

    features_in: int
    features_out: int
    axes: tuple[str | None, str | None] = (None, None)
    use_bias: bool = False
    init: str = "truncated_normal"
    dtype: str = "float32"
    param_dtype: str = "float32"
    precision: str | None = "highest"

    def setup(self) -> None:
        dtype = jnp.dtype(self.param_dtype)
        init = nn.with_logical_partitioning(INITIALIZERS[self.init](self.features_in), self.axes)
        self.kernel = self.param("kernel", init, (self.features_out, self.features_in), dtype)
        if self.use_bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[:1])
            self.bias = self.param("bias", zeros, (self.features_out,), dtype)

    def __call__(self, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
        dtype = jnp.dtype(self.dtype)
        y = linear(x.astype(dtype), self.kernel.astype(dtype), self.precision)
        return y + self.bias.astype(dtype) if self.use_bias else y
