"""Vector quantisers: one codebook, residual, and the split residual quantiser of Mimi.

Codebooks are no parameters: they are moving averages that no gradient reaches, so they live in a Linen collection of
their own, `codebooks`, which the modules only read. A quantiser with Q levels finds there either

* `embedding_sum [Q, V, C]` and `cluster_usage [Q, V]` (training; what is published). The table of a level is
  `embedding_sum / max(cluster_usage, 1e-5)`; or
* `table_q [V, C]` and `half_norm_q [V]` per level (inference layout, from `materialise`).

Sources: arXiv 2410.00037 section 3.3.3; upstream `moshi/quantization/core_vq.py`, `vq.py`.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from moshijax.errors import ConfigError
from moshijax.nn.projection import Linear, linear

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

HIGHEST = jax.lax.Precision.HIGHEST
USAGE_FLOOR = 1e-5


def codebook_tables(codebook: dict[str, Array]) -> Float[Array, "Q V C"]:
    """Centroids from sums and usage; a code that was never used keeps a zero sum, hence a zero vector."""
    return codebook["embedding_sum"] / jnp.maximum(codebook["cluster_usage"], USAGE_FLOOR)[..., None]


def half_squared_norm(table: Float[Array, "V C"]) -> Float[Array, " V"]:
    return 0.5 * jnp.sum(jnp.square(table), axis=-1)


def materialise(codebook: dict[str, Array]) -> dict[str, Array]:
    """The inference layout of one quantiser's codebook: one table and its half squared norms per level."""
    out = {}
    for q, table in enumerate(codebook_tables(codebook)):
        out[f"table_{q}"], out[f"half_norm_{q}"] = table, half_squared_norm(table)
    return out


def nearest(x: Float[Array, "... C"], table: Float[Array, "V C"], half_norm: Float[Array, " V"]) -> Int[Array, "..."]:
    """Index of the row of `table` nearest to each vector (Euclidean), the first one on ties; int32."""
    return jnp.argmin(half_norm - linear(x, table), axis=-1).astype(jnp.int32)


def lookup(codes: Int[Array, "..."], table: Float[Array, "V C"]) -> Float[Array, "... C"]:
    """Rows of `table`; a negative code gives the zero vector."""
    return jnp.where((codes >= 0)[..., None], jnp.take(table, jnp.maximum(codes, 0), axis=0, mode="clip"), 0.0)


class ResidualVQ(nn.Module):
    """`levels` codebooks, each quantising what the earlier ones left; bias-free projections around them.

    Attributes:
      dim: width D of input and output.
      code_dim: width C of the codes.
      bins: entries V per codebook.
      levels: Q.
    """

    dim: int
    code_dim: int
    bins: int
    levels: int

    def setup(self):
        self.input_proj = Linear(self.dim, self.code_dim, initializer="uniform")
        self.output_proj = Linear(self.code_dim, self.dim, initializer="uniform")
        if not self.has_variable("codebooks", "table_0"):
            shape = (self.levels, self.bins, self.code_dim)
            self.embedding_sum = self.variable("codebooks", "embedding_sum", jnp.zeros, shape, jnp.float32)
            self.cluster_usage = self.variable("codebooks", "cluster_usage", jnp.zeros, shape[:2], jnp.float32)
            self.initialized = self.variable("codebooks", "initialized", jnp.zeros, (self.levels,), bool)

    def tables(self, levels: int) -> list[tuple[Array, Array]]:
        """`(table, half squared norms)` of the first `levels` levels."""
        if self.has_variable("codebooks", "table_0"):
            get = self.get_variable
            return [(get("codebooks", f"table_{q}"), get("codebooks", f"half_norm_{q}")) for q in range(levels)]
        codebook = {"embedding_sum": self.embedding_sum.value, "cluster_usage": self.cluster_usage.value}
        tables = codebook_tables(jax.tree.map(lambda leaf: leaf[:levels], codebook))
        return [(table, half_squared_norm(table)) for table in tables]

    def encode(self, x: Float[Array, "B T D"], levels: int | None = None) -> Int[Array, "B Q T"]:
        """Codes of the first `levels` levels (default all)."""
        residual, codes = self.input_proj(x), []
        for table, half_norm in self.tables(self.levels if levels is None else levels):
            codes.append(nearest(residual, table, half_norm))
            residual = residual - lookup(codes[-1], table)
        return jnp.stack(codes, axis=1)

    def decode(self, codes: Int[Array, "B Q T"]) -> Float[Array, "B T D"]:
        """Sum of the coded vectors, projected; as many levels as `codes` has rows."""
        rows = zip(jnp.moveaxis(codes, 1, 0), self.tables(codes.shape[1]), strict=True)
        return self.output_proj(sum(lookup(row, table) for row, (table, _) in rows))

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Quantised with all levels; the gradient passes straight through the codebooks."""
        z = self.input_proj(x)
        residual = jax.lax.stop_gradient(z)
        for table, half_norm in self.tables(self.levels):
            residual = residual - lookup(nearest(residual, table, half_norm), table)
        return self.output_proj(z - residual)


class SplitResidualVQ(nn.Module):
    """A semantic and an acoustic `ResidualVQ` side by side: both see the same input, their outputs are added.

    As a streaming layer it has no memory: step equals call.

    Attributes:
      dim: width D of input and output.
      code_dim: width C of the codes.
      bins: entries V per codebook.
      num_codebooks: levels of both together.
      semantic_codebooks: levels of the semantic part.
    """

    dim: int
    code_dim: int
    bins: int
    num_codebooks: int
    semantic_codebooks: int = 1

    block_size = 1
    output_ratio = Fraction(1)
    receptive_field = 1

    def setup(self):
        shape = (self.dim, self.code_dim, self.bins)
        self.semantic = ResidualVQ(*shape, self.semantic_codebooks)
        self.acoustic = ResidualVQ(*shape, self.num_codebooks - self.semantic_codebooks)

    def encode(self, x: Float[Array, "B T D"], num_codebooks: int | None = None) -> Int[Array, "B Q T"]:
        """Codes, semantic first.

        Raises:
          ConfigError: `num_codebooks` is not in 1 .. the number of codebooks.
        """
        count = self.num_codebooks if num_codebooks is None else num_codebooks
        if not 1 <= count <= self.num_codebooks:
            raise ConfigError(f"num_codebooks {count} must be 1 to {self.num_codebooks}, what the codec has")
        codes = self.semantic.encode(x, min(count, self.semantic_codebooks))
        if count > self.semantic_codebooks:
            codes = jnp.concatenate([codes, self.acoustic.encode(x, count - self.semantic_codebooks)], axis=1)
        return codes

    def decode(self, codes: Int[Array, "B Q T"]) -> Float[Array, "B T D"]:
        """The quantised latent, from as many levels as `codes` has rows (at least 1)."""
        if not 1 <= codes.shape[1] <= self.num_codebooks:
            rows = codes.shape[1]
            raise ConfigError(f"codes have {rows} rows, must have 1 to {self.num_codebooks}, what the codec has")
        x = self.semantic.decode(codes[:, : self.semantic_codebooks])
        if codes.shape[1] > self.semantic_codebooks:
            x = x + self.acoustic.decode(codes[:, self.semantic_codebooks :])
        return x

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Quantised with all levels; the gradient passes straight through the codebooks."""
        return self.semantic(x) + self.acoustic(x)

    def step(self, state: Any, x: Array, active: Array | None = None) -> tuple[Any, Array]:
        return state, self(x)

    @nn.nowrap
    def init_state(self, batch_size: int) -> Any:
        return ()

    @nn.nowrap
    def reset(self, state: Any, rows: Array) -> Any:
        return state
