"""Low-rank updates of linear maps: `y = W x + scaling B (A x)`, beside weights that may stay as they are.

LoRA (arXiv 2106.09685; `modules/lora.py` of `moshi`). A map with an update has two parameters more, `lora_a [rank, in]`
and `lora_b [out, rank]`, split over devices as the columns and the rows of its kernel are.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from moshijax.annotations import Factor, Size
from moshijax.errors import ConfigError

if TYPE_CHECKING:
    from jaxtyping import Array, Float

Lead = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class LoRA:
    """Which linear maps have an update, and of what kind.

    `rank`: of every product; `scaling`: its factor, which is not divided by the rank. `modules`: shell patterns of the
    paths of maps, without the numbers of layers and steps: "*" is every map without a bias, "temporal/*" those of a
    stack, "*/attention/*", "text_head". The two halves of a gated block are one map, ".../mlp/up".
    `param_dtype`: type of the pairs, None: that of the weights.
    """

    rank: Size = 128
    scaling: Factor = 2.0
    modules: tuple[str, ...] = ("*",)
    param_dtype: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "modules", tuple(self.modules))
        if not isinstance(self.rank, int) or self.rank < 1:
            raise ConfigError(f"lora rank={self.rank!r}: must be a positive whole number")
        if not self.modules:
            raise ConfigError('lora modules=(): name the maps that have an update, ("*",) for all')
        if self.param_dtype not in (None, "float32", "bfloat16", "float16"):
            raise ConfigError(f"lora param_dtype={self.param_dtype!r}: use None, float32, bfloat16 or float16")


@dataclass(frozen=True)
class Place:
    """Where a module is in the model, which decides whether its maps have an update."""

    lora: LoRA | None = None
    path: str = ""

    def __truediv__(self, name: str) -> Place:
        return Place(self.lora, f"{self.path}/{name}" if self.path else name)

    @property
    def update(self) -> LoRA | None:
        """What a linear map here has."""
        if self.lora is None or not any(fnmatchcase(self.path, pattern) for pattern in self.lora.modules):
            return None
        return self.lora


def down(
    module: nn.Module,
    lora: LoRA,
    features_in: int,
    axis: str | None,
    dtype: str,
    lead: Lead = (),
    name: str = "lora_a",
    used: tuple[int, ...] | None = None,
) -> Float[Array, "*L r I"]:
    """Parameter `lora_a [*lead, rank, in]` of a module, uniform in `+- 1 / sqrt(in)`.

    Args:
      axis: logical axis of the columns.
      dtype: where `lora` has none.
      lead: logical axis and size of every axis before these two.
      used: columns in use per entry of the leading axis, where they differ: the rest is zero and stays zero.
    """
    inputs = jnp.asarray(used or (features_in,))

    def init(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        value = jax.random.uniform(key, shape, dtype, -1.0, 1.0) / jnp.sqrt(inputs)[:, None, None].astype(dtype)
        return jnp.where(jnp.arange(features_in) < inputs[:, None, None], value, 0).reshape(shape)

    return _parameter(module, name, init, (lora.rank, features_in), (None, axis), lora, dtype, lead)


def up(
    module: nn.Module,
    lora: LoRA,
    features_out: int,
    axis: str | None,
    dtype: str,
    lead: Lead = (),
    name: str = "lora_b",
) -> Float[Array, "*L O r"]:
    """Parameter `lora_b [*lead, out, rank]` of a module: zero, so that a new update does nothing. As `down`."""
    return _parameter(module, name, nn.initializers.zeros, (features_out, lora.rank), (axis, None), lora, dtype, lead)


def _parameter(module: nn.Module, name: str, init: Any, shape: tuple, axes: tuple, lora: LoRA, dtype: str, lead: Lead):
    axes, shape = (*(axis for axis, _ in lead), *axes), (*(size for _, size in lead), *shape)
    return module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.dtype(lora.param_dtype or dtype))


def product(
    lora: LoRA, a: Float[Array, "*L r I"], b: Float[Array, "*L O r"], precision: str | None
) -> Float[Array, "*L O I"]:
    """`scaling B A`: for kernels so small that the sum with it is best used as one."""
    return lora.scaling * jnp.einsum("...or,...ri->...oi", b, a, precision=precision)
