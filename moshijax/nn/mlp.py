"""Feed-forward blocks of the transformers: plain with exact GELU, or gated."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp

from moshijax.nn.projection import Linear

if TYPE_CHECKING:
    from jaxtyping import Array, Float

#: Activations by the names that published configs use.
ACTIVATIONS: dict[str, Callable] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "elu": jax.nn.elu,
    "leaky_relu": lambda x: jax.nn.leaky_relu(x, 0.01),
    "mish": jax.nn.mish,
    "softsign": jax.nn.soft_sign,
    "identity": lambda x: x,
}


def hidden_width(feedforward: int, dim: int, gating: str) -> int:
    """Return the width of the hidden layer for a published `dim_feedforward`.

    Plain blocks use it as it is; gated ones `2 ff / 3` rounded down, or `21 dim / 8` when `ff = 4 dim`
    (`modules/gating.py` of `moshi`).
    """
    if gating == "none":
        return feedforward
    return 21 * dim // 8 if feedforward == 4 * dim else 2 * feedforward // 3


class MLP(nn.Module):
    """`down(gelu(up x))`, or `down(act(gate x) * up x)` with a gating activation.

    As in `modules/transformer.py` and `modules/gating.py` of `moshi`, whose `linear_in` holds the rows of `gate`, then
    those of `up`.

    Attributes:
      dim: D, of inputs and outputs.
      hidden_dim: F, see `hidden_width`.
      gating: A name in `ACTIVATIONS`, or "none" for the plain block.
      use_bias: All maps have a bias.
      initializer: Of the maps, a name in `projection.INITIALIZERS`.
      dtype: In which it computes.
      param_dtype: Of new parameters.
      precision: Of all products.
    """

    dim: int
    hidden_dim: int
    gating: str = "none"
    use_bias: bool = False
    initializer: str = "truncated_normal"
    dtype: str = "float32"
    param_dtype: str = "float32"
    precision: str | None = "highest"

    def setup(self) -> None:
        settings = dict(
            use_bias=self.use_bias,
            initializer=self.initializer,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            precision=self.precision,
        )
        if self.gating != "none":
            self.gate = Linear(self.dim, self.hidden_dim, ("mlp_rows", "embed_columns"), **settings)
        self.up = Linear(self.dim, self.hidden_dim, ("mlp_rows", "embed_columns"), **settings)
        self.down = Linear(self.hidden_dim, self.dim, ("embed", "mlp"), **settings)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        if self.gating == "none":
            return self.down(ACTIVATIONS["gelu"](self.up(x)))
        return self.down(ACTIVATIONS[self.gating](self.gate(x)) * self.up(x))
