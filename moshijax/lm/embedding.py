"""Token tables with a zero id, optionally normalised, factored, or read with two ids at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

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

    With `demux` an id holds two: `first + V (second + 1)`, where a second of -1 is none. Both are looked up in the one
    table and go through projections of their own, `out1`, `out2 [Q, D, r]`; published models keep a `low_rank` beside
    them that nothing uses.
    """

    tables: int
    vocab: int
    dim: int
    low_rank: int | None = None
    use_norm: bool = False
    demux: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"
    precision: str | None = "highest"

    def setup(self) -> None:
        dtype = jnp.dtype(self.param_dtype)
        width = self.low_rank or self.dim
        names = ("codebook", "entries", "embed")
        init = nn.with_logical_partitioning(truncated_normal(width), names)
        self.table = self.param("table", init, (self.tables, self.vocab, width), dtype)
        init = nn.with_logical_partitioning(uniform(width), ("codebook", "embed", None))
        if self.low_rank is not None:
            self.projection = self.param("low_rank", init, (self.tables, self.dim, width), dtype)
        if self.demux:
            self.out1 = self.param("out1", init, (self.tables, self.dim, width), dtype)
            self.out2 = self.param("out2", init, (self.tables, self.dim, width), dtype)
        if self.use_norm:
            ones = nn.with_logical_partitioning(nn.initializers.ones, ("codebook", "norm"))
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("codebook", "norm"))
            self.scale = self.param("norm_scale", ones, (self.tables, width), dtype)
            self.bias = self.param("norm_bias", zeros, (self.tables, width), dtype)

    def __call__(self, ids_QN: Int[Array, "Q ..."]) -> Float[Array, "Q ... D"]:
        """Row q of the ids through table q, all tables at once."""
        index = jnp.arange(self.tables).reshape(self.tables, *(1,) * (ids_QN.ndim - 1))
        return self._embed(ids_QN, index, lambda kernel: kernel, "q...r,qdr->q...d")

    def one(self, q: int, ids_N: Int[Array, "..."]) -> Float[Array, "... D"]:
        """Ids through table q alone."""
        return self._embed(ids_N, q, lambda kernel: kernel[q], "...r,dr->...d")

    def _embed(self, ids: Array, index: Any, pick: Callable[[Array], Array], equation: str) -> Array:
        def rows(ids: Array) -> Array:
            found = jnp.asarray(self.table)[index, jnp.maximum(ids, 0)].astype(jnp.dtype(self.dtype))
            if self.use_norm:
                found = normalise(found, "layer_norm", self.scale[index], self.bias[index])
            return found

        def project(x: Array, kernel: Array) -> Array:
            return jnp.einsum(equation, x, pick(kernel).astype(x.dtype), precision=self.precision)

        def only(keep: Array, x: Array) -> Array:
            return jnp.where(keep[..., None], x, jnp.zeros((), x.dtype))

        if not self.demux:
            x = only(ids != ZERO, rows(ids))
            return x if self.low_rank is None else project(x, self.projection)
        # ZERO has a first id that exists and is dropped below.
        first, second = jnp.maximum(ids, 0) % self.vocab, jnp.maximum(ids, 0) // self.vocab - 1
        both = project(rows(first), self.out1) + only(second >= 0, project(rows(second), self.out2))
        return only(ids != ZERO, both)
