"""Token tables with a zero id, optionally normalised, factored, or read with two ids at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp

from moshijax.nn.norms import normalise
from moshijax.nn.projection import Kernels, contract, truncated_normal
from moshijax.tokens import ZERO

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


class TokenTables(Kernels):
    """Q token tables of one size: parameter `table [Q, V, D]`, or `[Q, V, r]` and a projection `low_rank [Q, D, r]`.

    `ZERO` embeds to exact zeros (before the bias-free projection). Ids are otherwise used as they are: check them
    before (`models/lm_utils.py` of `moshi`).

    With `demux` an id holds two: `first + V (second + 1)`, where a second of -1 is none. Both are looked up in the one
    table and go through projections of their own, `out1`, `out2 [Q, D, r]`; published models keep a `low_rank` beside
    them that nothing uses.

    Attributes:
      tables: Q.
      vocab: V, ids of a table.
      dim: D, width of the embeddings.
      low_rank: r; None: rows are as wide as the embeddings.
      use_norm: Rows are normalised (layer norm, parameters `norm_scale`, `norm_bias [Q, r]`) before the projection.
      demux: Ids hold two.
      dtype: Of the embeddings.
      param_dtype: Of new parameters.
      precision: Of the projections.
    """

    kernel_axes = ("codebook", "embed", None)

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
        names = ("low_rank",) * (self.low_rank is not None) + ("out1", "out2") * self.demux
        self.add_kernels(names, (self.tables, self.dim, width), self.param_dtype)
        if self.use_norm:
            ones = nn.with_logical_partitioning(nn.initializers.ones, ("codebook", "norm"))
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("codebook", "norm"))
            self.scale = self.param("norm_scale", ones, (self.tables, width), dtype)
            self.bias = self.param("norm_bias", zeros, (self.tables, width), dtype)

    def __call__(self, ids_QN: Int[Array, "Q ..."]) -> Float[Array, "Q ... D"]:
        """Embed row q of the ids by table q, all tables at once."""
        index = jnp.arange(self.tables).reshape(self.tables, *(1,) * (ids_QN.ndim - 1))
        # Every device looks up the columns that it holds of the tables, for all rows that share them: only ids travel.
        axes = (None, "rows", *(None,) * (ids_QN.ndim - 2))
        found = self._embed(nn.with_logical_constraint(ids_QN, axes), index, None)
        return nn.with_logical_constraint(found, (*axes, "embed"))

    def one(self, q: int, ids_N: Int[Array, "..."]) -> Float[Array, "... D"]:
        """Embed ids by table q alone."""
        return self._embed(ids_N, q, q)

    def _embed(self, ids: Array, index: Any, q: int | None) -> Array:
        """Embed ids by the tables at `index`, and project by all kernels or the one of table `q`."""

        def rows(ids: Array) -> Array:
            found = jnp.asarray(self.table)[index, jnp.maximum(ids, 0)].astype(jnp.dtype(self.dtype))
            if self.use_norm:
                found = normalise(found, "layer_norm", self.scale[index], self.bias[index])
            return found

        def project(x: Array, name: str) -> Array:
            equation, lead = ("qnr,qdr->qnd", x.shape[:1]) if q is None else ("nr,dr->nd", ())
            flat = x.reshape(*lead, -1, x.shape[-1])
            return contract(equation, flat, self.kernel_of(name, q), self.precision).reshape(*x.shape[:-1], self.dim)

        def only(keep: Array, x: Array) -> Array:
            return jnp.where(keep[..., None], x, jnp.zeros((), x.dtype))

        if not self.demux:
            x = only(ids != ZERO, rows(ids))
            return x if self.low_rank is None else project(x, "low_rank")
        # ZERO has a first id that exists and is dropped below.
        first, second = jnp.maximum(ids, 0) % self.vocab, jnp.maximum(ids, 0) // self.vocab - 1
        both = project(rows(first), "out1") + only(second >= 0, project(rows(second), "out2"))
        return only(ids != ZERO, both)
