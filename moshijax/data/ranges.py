"""Rules of the probabilities and spans that configurations of data hold."""

from __future__ import annotations

import math
from typing import Any

from moshijax.errors import ConfigError, require


def check_probabilities(config: Any, *names: str) -> None:
    """Check fields that are probabilities.

    Raises:
      ConfigError: one is not a number from 0 to 1.
    """
    for name in names:
        value = getattr(config, name)
        require(0 <= value <= 1, f"{name} is {value}: it is a probability from 0 to 1")


def check_span(config: Any, name: str, least: float = -math.inf, most: float = math.inf) -> None:
    """Check a field that holds both ends of a range from which is drawn.

    Raises:
      ConfigError: the larger end comes first, or one is not from `least` to `most`.
    """
    low, high = getattr(config, name)
    if not least <= low <= high <= most:
        limits = f", from {least:g} to {most:g}" if math.isfinite(least) else ""
        raise ConfigError(f"{name} is {(low, high)}: give the smaller end first{limits}")
