"""Sampling parameters and seeds of those who call, checked against what an artifact allows."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

import numpy as np

from moshijax.errors import ConfigError
from moshijax.runtime.programs import Programs

#: The largest float32, of which whole numbers of any length can be compared with it.
MOST = float(np.finfo(np.float32).max)


def check_sampling(artifact: Programs, sampling: Mapping[str, float]) -> dict[str, float]:
    """Return the artifact's sampling defaults updated by `sampling`, all within their limits.

    Raises:
      ConfigError: an unknown name, or a value outside its limits.
    """
    limits = artifact.manifest["sampling"]["limits"]
    for name in sampling:
        if name not in limits:
            near = difflib.get_close_matches(name, limits, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(limits)}"
            raise ConfigError(f"unknown sampling field {name!r}{hint}")
    values = {**artifact.manifest["sampling"]["defaults"], **sampling}
    for name, value in values.items():
        low, high = limits[name]
        finite = abs(value) <= MOST
        if not (finite and (low is None or value >= low) and (high is None or value <= high)):
            bounds = "any number" if low is None else f"at least {low}" if high is None else f"{low} to {high}"
            raise ConfigError(f"{name}={value} is outside what the artifact allows ({bounds})")
    return values


def split_seed(seed: int) -> np.ndarray:
    """Return an integer seed as the two uint32 words (high, low) that the step takes.

    Raises:
      ConfigError: it is negative or has more than 64 bits.
    """
    if not 0 <= seed < 2**64:
        raise ConfigError(f"seed {seed} must be at least 0 and below 2**64")
    return np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32)
