"""Conditions of a call: attributes and vectors that the temporal transformer sees at every position.

A condition is either an attribute with a learnt vector per value or a sequence of vectors that comes from outside, such
as a voice. It is added to every input of the temporal transformer, or read by its cross-attention. Where a condition is
absent a learnt vector replaces it (`conditioners/base.py` of `moshi`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from moshijax.errors import ConfigError
from moshijax.lm.config import Conditioner, LookupConditioner
from moshijax.nn.projection import Kernels, uniform

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

#: The value of an attribute that is absent.
ABSENT = -1


class Vectors(NamedTuple):
    """The value of a `TensorConditioner`: `vectors [B, S, d]` float32; where `mask [B, S]` is false they are absent."""

    vectors: Float[Array, "B S d"]
    mask: Bool[Array, "B S"]


Conditions = Mapping[str, Any]  # name -> value indices [B] of a lookup, or Vectors


def default_length(conditioner: Conditioner) -> int:
    """Return how many positions an absent condition has."""
    return 1 if isinstance(conditioner, LookupConditioner) else conditioner.length or 1


def complete(conditioners: tuple[Conditioner, ...], conditions: Conditions | None, batch: int) -> dict[str, Any]:
    """Return every condition of `batch` rows; those that were not given are absent, shorter ones are filled up.

    Args:
      conditioners: Of the model.
      conditions: Those given; None: none.
      batch: Rows.

    Returns:
      Name -> value indices `[B]` of a lookup, `ABSENT` where it is absent, or `Vectors`.

    Raises:
      ConfigError: a condition that the model does not have, or one of the wrong shape.
    """
    given = dict(conditions or {})
    out: dict[str, Any] = {}
    for c in conditioners:
        value = given.pop(c.name, None)
        if isinstance(c, LookupConditioner):
            out[c.name] = jnp.full((batch,), ABSENT) if value is None else jnp.asarray(value)
            if out[c.name].shape != (batch,):
                raise ConfigError(
                    f"condition {c.name} of shape {out[c.name].shape}: must be one value per row, [{batch}]"
                )
            continue
        length = default_length(c)
        if value is None:
            value = Vectors(jnp.zeros((batch, length, c.dim)), jnp.zeros((batch, length), bool))
        vectors, mask = jnp.asarray(value[0], jnp.float32), jnp.asarray(value[1], bool)
        positions = vectors.shape[1] if vectors.ndim == 3 else 0
        if vectors.shape != (batch, positions, c.dim) or mask.shape != (batch, positions) or not positions:
            raise ConfigError(
                f"condition {c.name} of shapes {vectors.shape}, {mask.shape}: must be [{batch}, S, {c.dim}] and "
                f"[{batch}, S]"
            )
        if c.length is not None:
            if positions > c.length:
                raise ConfigError(
                    f"condition {c.name} has {positions} positions: must be at most {c.length}; shorten it"
                )
            spare = c.length - positions
            vectors, mask = jnp.pad(vectors, ((0, 0), (0, spare), (0, 0))), jnp.pad(mask, ((0, 0), (0, spare)))
        out[c.name] = Vectors(vectors, mask)
    if given:
        known = ", ".join(c.name for c in conditioners) or "none"
        raise ConfigError(f"unknown condition {sorted(given)[0]!r}: the model has {known}")
    return out


def absent(conditions: Conditions) -> dict[str, Any]:
    """Return conditions of the same shapes, all absent."""
    return {
        name: Vectors(*map(jnp.zeros_like, value)) if isinstance(value, Vectors) else jnp.full_like(value, ABSENT)
        for name, value in conditions.items()
    }


class ConditionProjection(Kernels):
    """A condition's vectors in the width of the model, float32; where they are absent, a learnt vector.

    Parameters: `kernel [D, width]`, `absent [D]`, and of a lookup `table [bins + 1, width]`
    (`conditioners/base.py` of `moshi`).

    Attributes:
      width: Of the vectors.
      dim: D, of the model.
      bins: Values of a lookup; None: the vectors are given.
    """

    kernel_axes = ("embed", None)

    width: int
    dim: int
    bins: int | None = None

    def setup(self) -> None:
        partition = nn.with_logical_partitioning
        if self.bins is not None:
            self.table = self.param("table", partition(uniform(1), (None, None)), (self.bins + 1, self.width))
        self.add_kernels(("kernel",), (self.dim, self.width), "float32")
        self.absent = self.param("absent", partition(nn.initializers.normal(0.2), ("embed",)), (self.dim,))

    def __call__(self, value: Int[Array, " B"] | Vectors) -> Float[Array, "B S D"]:
        if self.bins is not None:
            value = Vectors(self.table[jnp.maximum(value, 0)][:, None], (value >= 0)[:, None])
        rows = jnp.einsum("bsw,dw->bsd", value.vectors, self.kernel_of("kernel"), precision="highest")
        return jnp.where(value.mask[..., None], rows, self.absent)


def spec(conditioner: Conditioner, batch: int) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Return the arrays that make a condition of `batch` rows: {suffix of its name: (shape, dtype)}."""
    if isinstance(conditioner, LookupConditioner):
        return {"": ((batch,), np.int32)}
    length = default_length(conditioner)
    return {"": ((batch, length, conditioner.dim), np.float32), "/mask": ((batch, length), np.bool_)}
