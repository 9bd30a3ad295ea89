"""Arrays of 8-bit integers with float32 scales: kernels, with one scale per output, and keys and values of a ring.

Symmetric: the largest magnitude of a row of the last axis becomes 127, so zero stays zero and an error is at most half
a scale. A product reads the integers and is scaled when it is done; nothing as large as the array is ever made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int8

LARGEST = 127
#: Names of parameters that are kernels of linear maps.
KERNELS = ("kernel", "head")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Quantised:
    """An array `integers * scale[..., None]`.

    Attributes:
      integers: In -127 to 127; of type int8, or of any in which a program was given them.
      scale: One for all values of the last axis.
    """

    integers: Int8[Array, "*A N"]
    scale: Float[Array, "*A"]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array that it stands for."""
        return self.integers.shape

    @property
    def dtype(self) -> Any:
        """The type of the array that it stands for."""
        return self.scale.dtype


def quantise(x: Float[Array, "*A N"]) -> Quantised:
    """Return the nearest array of integers and scales; rows of zeros have scale 0."""
    x = jnp.asarray(x).astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=-1) / LARGEST
    scaled = x / jnp.where(scale > 0, scale, 1.0)[..., None]
    return Quantised(jnp.clip(jnp.round(scaled), -LARGEST, LARGEST).astype(jnp.int8), scale)


def dequantise(x: Quantised) -> Float[Array, "*A N"]:
    """Return the float32 array that `x` stands for."""
    return x.integers.astype(jnp.float32) * x.scale[..., None]


def factors(x: Array | Quantised) -> tuple[Array, Array | None]:
    """Return the values to multiply by, and the scale that the products lack; None: none."""
    return (x.integers, x.scale) if isinstance(x, Quantised) else (x, None)


def quantise_kernels(params: Mapping[str, Any], kept: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return parameters in which the kernels of linear maps, leaves named as in `KERNELS`, are `Quantised`.

    Args:
      params: In the inference layout. What is quantised already stays as it is.
      kept: Modules whose names begin with one of these stay as they are, such as convolutions.
    """

    def converted(name: str, child: Any) -> Any:
        if isinstance(child, Mapping):
            return child if kept and name.startswith(kept) else quantise_kernels(child, kept)
        return quantise(child) if name in KERNELS and not isinstance(child, Quantised) else child

    return {name: converted(name, child) for name, child in params.items()}


def dequantise_kernels(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters without quantised ones."""
    is_quantised = lambda leaf: isinstance(leaf, Quantised)  # noqa: E731
    return jax.tree.map(lambda leaf: dequantise(leaf) if is_quantised(leaf) else leaf, params, is_leaf=is_quantised)


def from_fields(params: Mapping[str, Any]) -> Any:
    """Return a nested dict in which `Quantised` arrays are dicts of their fields with those arrays again."""
    if set(params) == {"integers", "scale"}:
        return Quantised(params["integers"], params["scale"])
    return {name: from_fields(child) if isinstance(child, Mapping) else child for name, child in params.items()}
