"""Token tables with a zero id, optionally normalised, factored, or read with two ids at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp

from moshijax.nn import lora
from moshijax.nn.lora import Place
from moshijax.nn.norms import normalise
from moshijax.nn.projection import truncated_normal, uniform
from moshijax.tokens import ZERO

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


class TokenTables(nn.Module):
    """Q token tables of one size. `table [Q, V, r]`, and with `low_rank = r` a `low_rank [Q, D, r]` projection.

    `ZERO` embeds to exact zeros (before the bias-free projection). Ids are otherwise used as they are: check them
    before (`models/lm_utils.py` of `moshi`).

    With `demux` an id holds two: `first + V (second + 1)`, where a second of -1 is none. Both are looked up in the one
    table and go through projections of their own, `out1`, `out2 [Q, D, r]`; published models keep a `low_rank` beside
    them that nothing uses. Projections at a `place` with a low-rank update have one.
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
    place: Place = Place()

    def setup(self) -> None:
        dtype = jnp.dtype(self.param_dtype)
        width = self.low_rank or self.dim
        names = ("codebook", "entries", "embed")
        init = nn.with_logical_partitioning(truncated_normal(width), names)
        self.table = self.param("table", init, (self.tables, self.vocab, width), dtype)
        init = nn.with_logical_partitioning(uniform(width), ("codebook", "embed", None))
        kernels = ("low_rank",) * (self.low_rank is not None) + ("out1", "out2") * self.demux
        self.kernels = {name: self.param(name, init, (self.tables, self.dim, width), dtype) for name in kernels}
        self.pairs = {name: self._pair(name, width) for name in kernels}
        if self.use_norm:
            ones = nn.with_logical_partitioning(nn.initializers.ones, ("codebook", "norm"))
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("codebook", "norm"))
            self.scale = self.param("norm_scale", ones, (self.tables, width), dtype)
            self.bias = self.param("norm_bias", zeros, (self.tables, width), dtype)

    def _pair(self, name: str, width: int) -> tuple[Array, Array] | None:
        """The low-rank update of a projection."""
        update, lead = (self.place / name).update, (("codebook", self.tables),)
        if update is None:
            return None
        a = lora.down(self, update, width, None, self.param_dtype, lead, f"{name}_lora_a")
        return a, lora.up(self, update, self.dim, "embed", self.param_dtype, lead, f"{name}_lora_b")

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

        def project(x: Array, name: str) -> Array:
            kernel = pick(self.kernels[name]).astype(x.dtype)
            if self.pairs[name] is not None:
                a, b = (pick(part).astype(x.dtype) for part in self.pairs[name])
                kernel = kernel + lora.product(self.place.lora, a, b, self.precision)
            return jnp.einsum(equation, x, kernel, precision=self.precision)

        def only(keep: Array, x: Array) -> Array:
            return jnp.where(keep[..., None], x, jnp.zeros((), x.dtype))

        if not self.demux:
            x = only(ids != ZERO, rows(ids))
            return x if self.low_rank is None else project(x, "low_rank")
        # ZERO has a first id that exists and is dropped below.
        first, second = jnp.maximum(ids, 0) % self.vocab, jnp.maximum(ids, 0) // self.vocab - 1
        both = project(rows(first), "out1") + only(second >= 0, project(rows(second), "out2"))
        return only(ids != ZERO, both)
