"""The speech adapter: features of the encoder, several at a time, to embeddings of the text model.

LLaMA-Omni (arXiv 2409.06666, 2.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from moshijax.annotations import Size
from moshijax.errors import ConfigError
from moshijax.nn.functions import parameter_functions
from moshijax.nn.projection import Linear

if TYPE_CHECKING:
    from jaxtyping import Array, Float

Params = dict[str, Any]


@dataclass(frozen=True)
class AdapterConfig:
    """An adapter.

    Attributes:
      input_dim: E, width of the features.
      output_dim: D, width of the embeddings.
      hidden_dim: Width between its two maps; the published code has 2048 everywhere.
      stacked: Features that become one embedding.
      dtype: In which it computes.
      param_dtype: Of new parameters.
    """

    input_dim: Size
    output_dim: Size
    hidden_dim: Size = 2048
    stacked: Size = 5
    dtype: str = "float32"
    param_dtype: str = "float32"


class Adapter(nn.Module):
    """Features `[B, T, E]` to embeddings `[B, T // stacked, D]`; features that fill no group are left out."""

    config: AdapterConfig

    def setup(self) -> None:
        c = self.config
        types = dict(use_bias=True, dtype=c.dtype, param_dtype=c.param_dtype)
        self.linear1 = Linear(c.stacked * c.input_dim, c.hidden_dim, ("mlp_rows", "embed_columns"), **types)
        self.linear2 = Linear(c.hidden_dim, c.output_dim, ("embed", "mlp"), **types)

    def __call__(self, features: Float[Array, "B T E"]) -> Float[Array, "B R D"]:
        c = self.config
        rows = features.shape[1] // c.stacked
        if not rows or features.shape[2] != c.input_dim:
            raise ConfigError(
                f"features of shape {tuple(features.shape)}: must be [B, T, {c.input_dim}] with {c.stacked} frames or "
                "more; use the encoder that the adapter was trained with"
            )
        grouped = features[:, : rows * c.stacked].reshape(features.shape[0], rows, -1)
        return self.linear2(jax.nn.relu(self.linear1(grouped)))


def init_boxed(config: AdapterConfig, key: Array) -> Params:
    """Return new parameters, each boxed with its logical axis names (for sharding)."""
    return Adapter(config).init(key, jnp.zeros((1, config.stacked, config.input_dim), jnp.float32))["params"]


init, abstract = parameter_functions(init_boxed)


def adapt(config: AdapterConfig, params: Params, features: Float[Array, "B T E"]) -> Float[Array, "B R D"]:
    """Return the embeddings of features, `T // stacked` of them.

    Raises:
      ConfigError: Features of another width, or fewer than one embedding needs.
    """
    return Adapter(config).apply({"params": params}, features)
