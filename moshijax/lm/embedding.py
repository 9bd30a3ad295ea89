"""Token tables with a zero id, optionally normalised or factored."""

from __future__ import annotations

from typing import TYPE_CHECKING

import flax.linen as nn
import jax.numpy as jnp

from moshijax.lm.tokens import ZERO
from moshijax.nn.norms import normalise
from moshijax.nn.projection import truncated_normal, uniform

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


class TokenTables(nn.Module):
    """Q token tables of one size. `table [Q, V, r]`, and with `low_rank = r` a `low_rank [Q, D, r]` projection.

    `ZERO` embeds to exact zeros (before the bias-free projection). Ids are otherwise used as they are: check them
    before (`models/lm_utils.py` of `moshi`).
    """

    tables: int
    vocab: int
    dim: int
    low_rank: int | None = None
    use_norm: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"
    precision: str | None = "highest"

    def setup(self) -> None:
        dtype = jnp.dtype(self.param_dtype)
        width = self.low_rank or self.dim
        names = ("codebook", "entries", "embed")
        init = nn.with_logical_partitioning(truncated_normal(width), names)
        self.table = self.param("table", init, (self.tables, self.vocab, width), dtype)
        if self.low_rank is not None:
            init = nn.with_logical_partitioning(uniform(self.low_rank), ("codebook", "embed", None))
            self.projection = self.param("low_rank", init, (self.tables, self.dim, width), dtype)
        if self.use_norm:
            ones = nn.with_logical_partitioning(nn.initializers.ones, ("codebook", "norm"))
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("codebook", "norm"))
            self.scale = self.param("norm_scale", ones, (self.tables, width), dtype)
            self.bias = self.param("norm_bias", zeros, (self.tables, width), dtype)

    def __call__(self, ids_QN: Int[Array, "Q ..."]) -> Float[Array, "Q ... D"]:
        """Row q of the ids through table q, all tables at once."""
        lead = (self.tables,) + (1,) * (ids_QN.ndim - 1)
        rows = self.table[jnp.arange(self.tables).reshape(lead), jnp.maximum(ids_QN, 0)]
        rows = rows.astype(jnp.dtype(self.dtype))
        if self.use_norm:
            rows = normalise(rows, "layer_norm", self.scale.reshape(*lead, -1), self.bias.reshape(*lead, -1))
        rows = jnp.where((ids_QN == ZERO)[..., None], jnp.zeros((), rows.dtype), rows)
        if self.low_rank is not None:
            rows = jnp.einsum("q...r,qdr->q...d", rows, self.projection.astype(rows.dtype), precision=self.precision)
        return rows

    def one(self, q: int, ids_N: Int[Array, "..."]) -> Float[Array, "... D"]:
        """Ids through table q alone."""
        rows = self.table[q, jnp.maximum(ids_N, 0)].astype(jnp.dtype(self.dtype))
        if self.use_norm:
            rows = normalise(rows, "layer_norm", self.scale[q], self.bias[q])
        rows = jnp.where((ids_N == ZERO)[..., None], jnp.zeros((), rows.dtype), rows)
        if self.low_rank is not None:
            rows = jnp.einsum("...r,dr->...d", rows, self.projection[q].astype(rows.dtype), precision=self.precision)
        return rows
