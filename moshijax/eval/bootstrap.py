"""Confidence intervals of figures over calls, by drawing the calls again with replacement.

A figure is a quotient of sums over calls, such as wrong words over words: `parts [N, 2]` holds what every call adds to
the numerator and to the denominator. Calls are what is drawn, because what happens within one is not independent
(percentile bootstrap; Bisani and Ney 2004 for word errors, with pairs of systems on the same calls).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float

DRAWS = 2000
LEVEL = 0.95
_SEED = 0
_AT_ONCE = 1 << 22  # numbers drawn at a time


def quotient(parts: Float[np.ndarray, "N 2"]) -> float:
    """Return the figure itself, NaN where its denominator is 0."""
    above, below = np.asarray(parts, np.float64).reshape(-1, 2).sum(axis=0)
    return float(above / below) if below else float("nan")


def interval(parts: Float[np.ndarray, "N 2"], draws: int = DRAWS) -> tuple[float, float]:
    """Return the ends of the interval that holds `LEVEL` of the figures of drawn calls; NaN without any call."""
    return _ends(_drawn(np.asarray(parts, np.float64)[None], draws)[0])


def difference(
    first: Float[np.ndarray, "N 2"], second: Float[np.ndarray, "N 2"], draws: int = DRAWS
) -> tuple[float, float]:
    """Return the ends of the interval of `second - first`, both drawn with the same calls.

    Args:
      first, second: of the same calls in the same order.
      draws: how often.
    """
    both = _drawn(np.stack([first, second]).astype(np.float64), draws)
    return _ends(both[1] - both[0])


def _drawn(parts_SN2: np.ndarray, draws: int) -> np.ndarray:
    """Figures `[S, draws]` of calls drawn again, the same ones for all S; NaN where a denominator is 0."""
    sets, calls = parts_SN2.shape[:2]
    random = np.random.default_rng(_SEED)
    found = [np.zeros((sets, 0))]
    at_once = max(1, _AT_ONCE // max(calls, 1))
    for first in range(0, draws if calls else 0, at_once):
        chosen = random.integers(0, calls, (min(at_once, draws - first), calls))
        sums = parts_SN2[:, chosen].sum(axis=2)
        found.append(np.divide(sums[..., 0], sums[..., 1], np.full(sums.shape[:2], np.nan), where=sums[..., 1] != 0))
    return np.concatenate(found, axis=1)


def _ends(found: np.ndarray) -> tuple[float, float]:
    found = found[np.isfinite(found)]
    if not len(found):
        return float("nan"), float("nan")
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
