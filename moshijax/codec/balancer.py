"""The loss balancer: weights of losses are shares of the gradient that reaches the decoder's output.

Losses of one waveform differ in scale by orders of magnitude, and their scales move during training. The balancer
divides the gradient of each by a running average of its norm, so that a weight says how much of the whole gradient
comes from a loss, whatever its units. Sources: arXiv 2210.13438 section 3.4; audiocraft ``losses/balancer.py``.
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
        gradient: of one row's balanced loss with respect to its output.
        rows: the losses themselves, per row.
        norms: of the gradient of each loss, per row.
    """

    gradient: Float[Array, "B N"]
    rows: dict[str, Float[Array, " B"]]
    norms: dict[str, Float[Array, " B"]]


def init(names: tuple[str, ...]) -> dict[str, Any]:
    """State: the decayed sum of the norms of each loss, and of ones."""
    return {"norms": {name: jnp.zeros(()) for name in names}, "weight": jnp.zeros(())}


def balance(
    settings: Balancer,
    weights: Mapping[str, float],
    state: dict[str, Any],
    losses: Sequence[Callable[[Array], dict[str, Array]]],
    output: Float[Array, "B N"],
) -> Balanced:
    """The balanced gradient of losses of ``output``.

    Averages include these rows: with one part per batch this is the reference's balancer; with several parts each
    brings its own norms besides the common past.

    Args:
        settings: see `Balancer`.
        weights: of every loss, above 0.
        state: before the step.
        losses: functions from the output to losses per row, by name; those of one function share its computation.
        output: of the decoder.
    """
    output = jax.lax.stop_gradient(output)
    past = jax.lax.stop_gradient(state)
    total, gradient = sum(weights.values()), jnp.zeros_like(output)
    rows, norms = {}, {}
    for function in losses:
        found, pullback = jax.vjp(function, output)
        rows |= found
        for name in found:
            (slope,) = pullback({other: jnp.full_like(value, other == name) for other, value in found.items()})
            norms[name] = jnp.sqrt(jnp.sum(jnp.square(slope), axis=1))
            average = past["norms"][name] * settings.decay + jnp.mean(norms[name])
            average = average / (past["weight"] * settings.decay + 1)
            gradient += slope * (weights[name] / total * settings.total_norm / (average + EPSILON))
    return Balanced(gradient, rows, norms)


def update(settings: Balancer, state: dict[str, Any], means: Mapping[str, Array]) -> dict[str, Any]:
    """The state after a step, from the mean norm of each loss over the rows of the whole batch."""
    return {
        "norms": {name: past * settings.decay + means[name] for name, past in state["norms"].items()},
        "weight": state["weight"] * settings.decay + 1,
    }
