"""How well logits predict their targets: what losses and statistics are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


class LMScores(NamedTuple):
    """Scores of the targets, aligned with the codes: row 0 is text, then the rows of the depth transformer.

    Where there is no prediction or no target (see `lm.target_mask`) they are finite and mean nothing.

    Attributes:
      nll: negative log likelihood of each target in nats.
      correct: the target is the most likely token.
      counts: how often each score counts in a sum over all targets, where only some were scored: 0 for those left out
        and 1 / their share for the others. None: all were scored.
    """

    nll: Float[Array, "B R T"]
    correct: Bool[Array, "B R T"]
    counts: Float[Array, "B R T"] | None = None


def score_targets(
    logits: Float[Array, "*A V"], targets: Int[Array, "*A"]
) -> tuple[Float[Array, "*A"], Bool[Array, "*A"]]:
    """Return the negative log likelihood of each target in float32, and whether it comes first.

    Of equal logits the one with the lowest id comes first.
    """
    logits = logits.astype(jnp.float32)
    ids, targets = jnp.arange(logits.shape[-1]), targets[..., None]
    picked = jnp.sum(jnp.where(ids == targets, logits, 0.0), axis=-1)
    nll = jax.nn.logsumexp(logits, axis=-1) - picked
    # A count of what is ahead instead of an argmax: reductions of pairs do not vectorise on CPU.
    fixed, target = jax.lax.stop_gradient((logits, picked[..., None]))
    ahead = (fixed > target) | ((fixed == target) & (ids < targets))
    return nll, ~jnp.any(ahead, axis=-1) & (targets[..., 0] >= 0)


def score_in_pieces(
    module: nn.Module,
    head: Callable[[Any, Array], Array],
    x_RBTD: Float[Array, "R B T D"],
    targets_RBT: Int[Array, "R B T"],
    frames: int | None,
) -> tuple[Float[Array, "R B T"], Bool[Array, "R B T"]]:
    """Return `score_targets` of `head(module, x) -> [R, B, T, V]`, without whole logits.

    In pieces the logits never exist whole, neither forward nor backward, where they are computed a second time.

    Args:
      module: which holds the head.
      head: (module, x) -> logits.
      x_RBTD: what the head reads.
      targets_RBT: ids, negative where there is no target.
      frames: how many are scored at a time; None: all.
    """

    def score(module: nn.Module, x: Array, targets: Array) -> tuple[Array, Array]:
        return score_targets(head(module, x), targets)

    T = x_RBTD.shape[2]
    if frames is None or T <= frames:
        return score(module, x_RBTD, targets_RBT)
    pieces = -(-T // frames)

    def split(a: Array) -> Array:
        a = jnp.pad(a, ((0, 0), (0, 0), (0, pieces * frames - T), *((0, 0),) * (a.ndim - 3)))
        return jnp.moveaxis(a.reshape(*a.shape[:2], pieces, frames, *a.shape[3:]), 2, 0)

    def body(module: nn.Module, carry: None, piece: tuple[Array, Array]) -> tuple[None, tuple[Array, Array]]:
        return carry, score(module, *piece)

    scan = nn.scan(nn.remat(body, prevent_cse=False), variable_broadcast="params", split_rngs={"params": False})
    _, found = scan(module, None, (split(x_RBTD), split(targets_RBT)))
    nll, correct = (jnp.moveaxis(a, 0, 2).reshape(*a.shape[1:3], -1)[:, :, :T] for a in found)
    return nll, correct


def at_frames(x: Array, frames_BF: Int[Array, "B F"], axis: int) -> Array:
    """Return the chosen frames of every row of `x` `[B, ...]`; `axis` is that of the frames."""
    return jax.vmap(lambda row, chosen: jnp.take(row, chosen, axis=axis - 1))(x, frames_BF)


def into_frames(x_RBF: Float[Array, "R B F"], frames_BF: Int[Array, "B F"], T: int) -> Float[Array, "R B T"]:
    """Put values of chosen frames back among all T frames, with 0 in the others."""

    def place(row_RF: Array, chosen: Array) -> Array:
        return jnp.zeros((row_RF.shape[0], T), row_RF.dtype).at[:, chosen].set(row_RF)

    return jax.vmap(place, in_axes=(1, 0), out_axes=1)(x_RBF, frames_BF)
