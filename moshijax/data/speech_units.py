"""Units of speech when data is prepared: centroids of features, and the units of a recording.

LLaMA-Omni (arXiv 2409.06666, 2.4) has 1000 centroids of layer 11 of mHuBERT. Features are what `moshijax data teacher`
wrote, 50 a second: those of a speech model, or the phonetic ones.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np

from moshijax import files
from moshijax.codec.quantizer_training import kmeans
from moshijax.data import records
from moshijax.data.teacher import TeacherFeatures
from moshijax.errors import DataError
from moshijax.omni import units

if TYPE_CHECKING:
    from jaxtyping import Float, Int

#: Units are stored in 16 bits.
MOST_UNITS = 1 << 15


@dataclass(frozen=True)
class Centroids:
    """A file of centroids.

    Attributes:
      table_UD: One row per unit, float32.
      sha256: Of the table.
      where: The file, for messages.
    """

    table_UD: Float[np.ndarray, "U D"]
    sha256: str
    where: str

    @classmethod
    def load(cls, path: str | Path) -> Centroids:
        """Read a `.npy` file of one row per unit.

        Raises:
          DataError: It cannot be read, or holds something else.
        """
        try:
            table = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(
                f"{path} cannot be read as an array of NumPy ({error}); make it with `data units`"
            ) from None
        if not isinstance(table, np.ndarray) or table.ndim != 2 or not np.issubdtype(table.dtype, np.floating):
            raise DataError(f"{path} holds no table of centroids: must be a float array [units, width]")
        if not 1 <= len(table) <= MOST_UNITS or not np.isfinite(table).all():
            raise DataError(f"{path}: {len(table)} centroids must be 1 to {MOST_UNITS}, and finite")
        table = table.astype(np.float32)
        return cls(table, records.tree_digest(table), str(path))

    def units(self, features_TD: Float[np.ndarray, "T D"]) -> Int[np.ndarray, " T"]:
        """Return the unit of every feature, int16.

        Raises:
          DataError: Features of another width.
        """
        size = -(-max(1, len(features_TD)) // _ROWS) * _ROWS  # one program for every length up to that
        padded = np.zeros((size, features_TD.shape[1]), np.float32)
        padded[: len(features_TD)] = features_TD
        return np.asarray(_assign(padded, self.table_UD))[: len(features_TD)].astype(np.int16)


_ROWS = 256
_assign = jax.jit(units.assign)


def merged(found: Int[np.ndarray, " T"]) -> Int[np.ndarray, " U"]:
    """Return units of which no two neighbours are equal."""
    return found[np.flatnonzero(np.diff(found, prepend=np.int16(-1)))]


def fit(
    folder: str | Path, out: str | Path, count: int, frames: int = 100_000, iterations: int = 50, seed: int = 0
) -> int:
    """Make centroids of features by k-means, and write them.

    Args:
      folder: That `moshijax data teacher` made.
      out: The file.
      count: Centroids.
      frames: How many features to look at, drawn from all recordings and channels.
      iterations: Of k-means.
      seed: Of the draws.

    Returns:
      How many features there were to look at.

    Raises:
      DataError: The features cannot be read, or are fewer than the centroids.
    """
    features, rng, chosen = TeacherFeatures(folder), np.random.default_rng(seed), []
    names = features.names
    each = max(1, frames // max(1, len(names)))
    for name in names:
        found = features.read(name).reshape(-1, features.dim)
        kept = rng.choice(len(found), min(each, len(found)), replace=False)
        chosen.append(found[np.sort(kept)].astype(np.float32))
    sample = np.concatenate(chosen) if chosen else np.zeros((0, features.dim), np.float32)
    distinct = len(np.unique(sample, axis=0))
    if not 1 <= count <= MOST_UNITS or distinct < count:
        raise DataError(
            f"{folder} gives {distinct} different features for {count} units: must be at least as many, and 1 to "
            f"{MOST_UNITS} units; look at more frames or recordings, or make fewer units"
        )
    run = jax.jit(partial(kmeans, clusters=count, iterations=iterations))
    table = np.asarray(run(sample, key=jax.random.key(seed))[1])
    content = io.BytesIO()
    np.save(content, table)
    files.write(Path(out), content.getvalue())
    return len(sample)
