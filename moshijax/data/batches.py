"""Batches by number: batch n is a function of the data's hash, a seed and n, whatever the hosts or threads."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moshijax import optional
from moshijax.errors import ConfigError


def import_grain() -> Any:
    """Import grain and mark absl's flags as parsed, because its worker threads read one."""
    grain = optional.load("grain")
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    return grain


def fold_seed(*parts: Any) -> int:
    """Return a 32-bit seed made of any printable values, equal in every process."""
    return int.from_bytes(hashlib.sha256("\n".join(map(str, parts)).encode()).digest()[:4], "little")


def amount(items: int, name: str, seconds: float | None = None) -> str:
    """What a data set holds, as "1200 recordings, 13.4 hours"; without the time where nobody knows it."""
    if seconds is None:
        return f"{items} {name}"
    return f"{items} {name}, " + (f"{seconds / 3600:.1f} hours" if seconds >= 360 else f"{seconds / 60:.1f} minutes")


class Fault(NamedTuple):
    """Why an item cannot be used.

    Attributes:
      reason: with the item's path.
      whole: nothing of it can be; otherwise its other parts are as good as ever.
    """

    reason: str
    whole: bool


#: Places of a batch, rows x frames or rows x samples: eight times the batch that Helium was trained on, and 12 hours of
#: sound at 24 kHz.
MOST_FRAMES, MOST_SAMPLES = 1 << 25, 1 << 30


def check_size(most: int, batch_size: int, **length: int) -> None:
    """Refuse the size of a batch before memory is asked for it.

    Args:
      most: that its rows may hold together.
      batch_size: rows.
      length: of a row, by the name of its field.

    Raises:
      ConfigError: a number is below 1, or the rows are too many or too long.
    """
    ((name, each),) = length.items()
    if min(each, batch_size) < 1:
        raise ConfigError(f"{name} {each} and batch_size {batch_size} must be at least 1")
    if each * batch_size > most:
        raise ConfigError(
            f"batch_size {batch_size} x {name} {each} is {batch_size * each}, but a batch holds at most {most}: "
            f"lower {name} or batch_size"
        )


def check_sets(paths: Sequence[str], weights: Sequence[float]) -> None:
    """Refuse names and shares of prepared folders that do not fit each other.

    Raises:
      ConfigError: no path, one string in place of a tuple, or weights that are not a positive number for each.
    """
    if not paths or isinstance(paths, str):
        raise ConfigError(f"paths is {paths!r}: give a tuple of at least one prepared folder")
    if weights and (len(weights) != len(paths) or min(weights) <= 0):
        raise ConfigError(f"weights {weights} do not fit {len(paths)} paths: give each a positive number")


def shares_of(paths: Sequence[str], weights: Sequence[float], padding: Sequence[float]) -> str:
    """What goes into the batches of several sets, as the end of their description.

    Args:
      paths: of the sets.
      weights: of each, in any unit.
      padding: share of each set's places that its recordings or texts leave empty.
    """
    total = sum(weights)
    empty = sum(weight * share for weight, share in zip(weights, padding, strict=True)) / total
    found = f"; {empty:.2%} of the places are padding, which is not scored" if empty else ""
    if len(paths) > 1:
        each = ", ".join(f"{weight / total:.2%} {path}" for path, weight in zip(paths, weights, strict=True))
        found = f"; rows: {each}{found}"
    return found


class BatchSource:
    """Batches of a Grain `MapDataset` whose elements are dicts of equally shaped numpy arrays.

    The dataset is infinite (reshuffled in every epoch) and index-addressable, so `batch(n)` costs the same for every n,
    and a resumed run needs no state but n.

    Args:
      dataset: the elements.
      batch_size: rows of the global batch.
      items: elements of one epoch.
      identity: name of each part of the data -> sha256 of what it holds. Batches are a function of these, the seed and
        n.
      content: what the data is, in words: recordings, hours and the like.
      files: name -> path that a part of the data is read from.
      threads: how many make the elements of a batch.
      skipped: id -> fault; grows as items turn out to be unusable. What it holds before a batch is made is known.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        items: int,
        identity: Mapping[str, str],
        content: str,
        files: Mapping[str, Path],
        threads: int = 1,
        skipped: dict[str, Fault] | None = None,
    ):
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}: use at least 1")
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="elements") if threads > 1 else None
        self._dataset = dataset
        self.batch_size = batch_size
        self.items = items
        self.identity = dict(identity)
        self.content = content
        self.files = files
        self.skipped = {} if skipped is None else skipped

    def batch(self, n: int, rows: slice = slice(None)) -> dict[str, np.ndarray]:
        """Return batch n, from 0, or some of its rows; one of several processes asks only for its own."""
        numbers = range(n * self.batch_size, (n + 1) * self.batch_size)[rows]
        each = self._pool.map if self._pool else map
        elements: Sequence[Mapping[str, np.ndarray]] = list(each(self._dataset.__getitem__, numbers))
        return {name: np.stack([element[name] for element in elements]) for name in elements[0]}


def shuffled(source: Sequence, seed: int, draw: Any) -> Any:
    """Make an infinite dataset that goes through a fresh permutation of `source` in every epoch.

    Args:
      source: what the elements are made from.
      seed: of permutations and draws.
      draw: (entry of `source`, numpy generator) -> element.
    """
    grain = import_grain()
    return grain.MapDataset.source(source).seed(seed).shuffle().repeat().random_map(draw)


def mixed(datasets: Sequence[Any], weights: Sequence[float]) -> Any:
    """Make one dataset that draws from several in exact proportion to their weights."""
    if len(datasets) == 1:
        return datasets[0]
    return import_grain().MapDataset.mix(list(datasets), weights=list(weights))
