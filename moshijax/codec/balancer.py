"""The loss balancer: weights of losses are shares of the gradient that reaches the decoder's output.

Losses of one waveform differ in scale by orders of magnitude, and their scales move during training. The balancer
divides the gradient of each by a running average of its norm, so that a weight says how much of the whole gradient
comes from a loss, whatever its units. Sources: arXiv 2210.13438 section 3.4; audiocraft `losses/balancer.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from moshijax.errors import ConfigError

if TYPE_CHECKING:
    from jaxtyping import Array, Float

EPSILON = 1e-12


@dataclass(frozen=True)
class Balancer:
    """Settings of the balancer.

    Attributes:
      total_norm: norm of the whole gradient of one row at the decoder's output, if all losses point the same way.
      decay: of the running averages of the norms, which are corrected for their start.
    """

    total_norm: float = 1.0
    decay: float = 0.999

    def __post_init__(self):
        if not self.total_norm > 0 or not 0 <= self.decay < 1:
            raise ConfigError(f"balancer total_norm {self.total_norm} must be positive and decay {self.decay} below 1")


class Balanced(NamedTuple):
    """What `balance` returns.

    Attributes:
      gradient: of one row's weighted losses with respect to its output.
      rows: the losses themselves, per row.
      norms: of the gradient of each loss, per row.
    """

    gradient: Float[Array, "B N"]
    rows: dict[str, Float[Array, " B"]]
    norms: dict[str, Float[Array, " B"]]


def init(names: tuple[str, ...]) -> dict[str, Any]:
    """Return the state before the first step, in which no gradient has been seen.

    Returns:
      The decayed sum of the norms of each loss (`norms`), and the decayed sum of ones that corrects it (`weight`);
      float32 scalars.
    """
    return {"norms": {name: jnp.zeros(()) for name in names}, "weight": jnp.zeros(())}


def slopes(
    function: Callable[[Array], dict[str, Array]], x: Float[Array, "B ..."]
) -> tuple[dict[str, Float[Array, " B"]], dict[str, Float[Array, "B ..."]]]:
    """Return the losses of every row of `x` and their gradients, from one forward pass.

    Both are constants if the result is differentiated further.

    Args:
      function: from `x` to losses per row, by name.
      x: what to differentiate with respect to.

    Returns:
      The losses `[B]`, and the gradient of each, shaped like `x`.
    """
    rows, pullback = jax.vjp(function, jax.lax.stop_gradient(x))
    each = {name: pullback({n: jnp.full_like(v, n == name) for n, v in rows.items()})[0] for name in rows}
    return rows, jax.lax.stop_gradient(each)


def row_norms(x: Float[Array, "B ..."]) -> Float[Array, " B"]:
    """Return the L2 norm of every row of `x`, over all its other axes."""
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim))))


def balance(
    settings: Balancer | None,
    weights: Mapping[str, float],
    state: dict[str, Any] | None,
    losses: Sequence[Callable[[Array], dict[str, Array]]],
    output: Float[Array, "B N"],
) -> Balanced:
    """Return the weighted gradient of losses of `output`, balanced if there are settings.

    The averages include these rows: with one part per batch this is the reference's balancer; with several parts each
    adds its own norms to the common past.

    Args:
      settings: see `Balancer`; None: weights are plain factors.
      weights: of every loss, above 0.
      state: before the step; None without settings.
      losses: functions from the output to losses per row, by name; those of one function share its computation.
      output: of the decoder.
    """
    total, gradient = sum(weights.values()), jnp.zeros_like(output)
    rows, norms = {}, {}
    for function in losses:
        found, each = slopes(function, output)
        rows |= found
        for name, slope in each.items():
            norms[name], scale = row_norms(slope), weights[name]
            if settings is not None:
                past = jax.lax.stop_gradient(state)
                average = past["norms"][name] * settings.decay + jnp.mean(norms[name])
                average = average / (past["weight"] * settings.decay + 1)
                scale = scale / total * settings.total_norm / (average + EPSILON)
            gradient += slope * scale
    return Balanced(gradient, rows, norms)


def update(settings: Balancer, state: dict[str, Any], means: Mapping[str, Array]) -> dict[str, Any]:
    """Return the state after a step.

    Args:
      settings: see `Balancer`.
      state: before the step.
      means: of each loss, the mean norm of its gradient over the rows of the whole batch.
    """
    return {
        "norms": {name: past * settings.decay + means[name] for name, past in state["norms"].items()},
        "weight": state["weight"] * settings.decay + 1,
    }
