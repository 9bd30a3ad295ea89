"""Comparing arrays of a model with recorded ones of the reference. Tested in `tests/weights/test_verify.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from moshijax.errors import DataError

#: Largest error of a latent, a sample or a logit that passes as rounding, of values up to 1; in proportion above that.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Part:
    """One compared output.

    Attributes:
      name: of the part.
      error: largest absolute difference; of ids, how many differ.
      where: index of the first difference that counts, or none.
      ids: True if these are codes, which must be equal.
      size: values compared.
      allowed: largest error that passes.
    """

    name: str
    error: float
    where: tuple[int, ...] | None
    ids: bool
    size: int
    allowed: float = 0.0


def compare_numbers(name: str, got: Any, want: np.ndarray, mask: np.ndarray | None = None) -> Part:
    """Compare numbers, which may differ by rounding.

    Args:
      name: of the part.
      got: what the model computes.
      want: what the record holds.
      mask: without the last axis; where it is False nothing is compared.

    Raises:
      DataError: the shapes differ.
    """
    got = np.asarray(got, np.float32)
    if got.shape != want.shape:
        raise DataError(
            f"{name}: this model makes {list(got.shape)}, the record has {list(want.shape)}; it is of another model"
        )
    difference = np.abs(got - want)
    if mask is not None:
        difference = np.where(mask[..., None], difference, 0)
    allowed = TOLERANCE * max(1.0, float(np.abs(want).max(initial=0)))
    large = np.argwhere(~(difference <= allowed))
    where = tuple(int(i) for i in large[0]) if len(large) else None
    return Part(name, float(difference.max(initial=0)), where, False, got.size, allowed)


def compare_ids(name: str, got: Any, want: np.ndarray) -> Part:
    """Compare ids, which must be equal.

    Args:
      name: of the part.
      got: what the model computes.
      want: what the record holds.

    Raises:
      DataError: the shapes differ.
    """
    got = np.asarray(got)
    if got.shape != want.shape:
        raise DataError(
            f"{name}: this model makes {list(got.shape)}, the record has {list(want.shape)}; it is of another model"
        )
    wrong = np.argwhere(got != want)
    where = tuple(int(i) for i in wrong[0]) if len(wrong) else None
    return Part(name, float(len(wrong)), where, True, got.size)
