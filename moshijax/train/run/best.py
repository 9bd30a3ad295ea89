"""The best evaluation of a run, and which checkpoints stay: the newest and the best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from moshijax.weights.run import BEST


class Best(NamedTuple):
    """The best evaluation so far.

    Attributes:
      metric: its name.
      step: steps done at it; there is a checkpoint of it.
      value: of the metric.
    """

    metric: str
    step: int
    value: float

    def beats(self, other: Best | None, best_is: str) -> bool:
        """Whether this is better, by "max" or "min"; of equal ones the first stays, and NaN is never better."""
        if not math.isfinite(self.value):
            return False
        return other is None or (self.value > other.value if best_is == "max" else self.value < other.value)


def best_of(meta: Mapping[str, Any], metric: str | None) -> Best | None:
    """Return the best evaluation that the meta of a checkpoint names, unless it is of another metric."""
    found = meta.get(BEST)
    return None if found is None or found["metric"] != metric else Best(**found)


def check_best(meta: Mapping[str, Any]) -> None:
    """Raise a ValueError if the meta of a checkpoint names a best evaluation, but not as `Best`."""
    if BEST not in meta:
        return
    found = meta[BEST]
    types = {name: type(value) for name, value in found.items()} if isinstance(found, dict) else {}
    if types != {"metric": str, "step": int, "value": float} and types != {"metric": str, "step": int, "value": int}:
        raise ValueError("its meta does not say which evaluation was the best")


class NewestAndBest:
    """Orbax's preservation policy: the newest checkpoints, and that of the best evaluation.

    Attributes:
      best: step of the best one; None: none.
    """

    def __init__(self, newest: int) -> None:
        self._newest = newest
        self.best: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Return which of the checkpoints, oldest first, stay."""
        first = len(checkpoints) - self._newest
        return [number >= first or one.step == self.best for number, one in enumerate(checkpoints)]
