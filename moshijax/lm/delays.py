"""Delays: shifting the rows of a grid right before the model, and its predictions back.

All shifts are static, so that they cost a pad and a slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Int


def delay(codes_BKT: Int[Array, "B K T"], delays: Sequence[int], initial: Sequence[int]) -> Int[Array, "B K T"]:
    """Move row k right by `delays[k]`, with `initial[k]` in its first places; the length stays T."""
    T = codes_BKT.shape[2]
    rows = [
        jnp.pad(codes_BKT[:, k, : max(T - d, 0)], ((0, 0), (min(d, T), 0)), constant_values=initial[k])
        for k, d in enumerate(delays)
    ]
    return jnp.stack(rows, axis=1)


def undelay(x_BQT: Array, delays: Sequence[int]) -> Array:
    """Move row q of `[B, Q, T, ...]` left by `delays[q]`; the last places are zero (see `valid`)."""
    T = x_BQT.shape[2]
    rest = ((0, 0),) * (x_BQT.ndim - 3)
    rows = [
        jnp.pad(x_BQT[:, q, min(d, T) :], ((0, 0), (0, min(d, T)), *rest)) if d else x_BQT[:, q]
        for q, d in enumerate(delays)
    ]
    return jnp.stack(rows, axis=1)


def valid(delays: Sequence[int], length: int) -> Bool[Array, "Q T"]:
    """Return where the prediction of a row exists in a sequence of `length` frames: `t < length - delay`."""
    return jnp.arange(length) < length - jnp.asarray(tuple(delays), jnp.int32)[:, None]
