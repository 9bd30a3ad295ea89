"""Batches for the steps of a run, made in a thread while the previous step runs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from moshijax.train.experiment import place_of_step
from moshijax.train.task import Batches

AHEAD = 2


def own_rows(rows: int, where: NamedSharding) -> slice:
    """Return the rows of a batch that this process feeds to its devices, and any that lie between these."""
    along = NamedSharding(where.mesh, PartitionSpec(*where.spec[:1]))
    found = [index[0].indices(rows) for index in along.addressable_devices_indices_map((rows,)).values()]
    return slice(min(start for start, _, _ in found), max(stop for _, stop, _ in found))


def put(
    batch: Mapping[str, np.ndarray], shardings: Mapping[str, NamedSharding], own: slice | None = None, rows: int = 0
) -> dict[str, jax.Array]:
    """Put a batch onto the devices of all processes.

    Args:
      batch: the whole of it, or the rows `own` (a slice with start and stop) of one of `rows` rows.
    """
    if jax.process_count() == 1:
        return {name: jax.device_put(batch[name], where) for name, where in shardings.items()}

    def place(array: np.ndarray, where: NamedSharding) -> jax.Array:
        count, first = (len(array), 0) if own is None else (rows, own.start)

        def part(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(count)
            return array[(slice(start - first, stop - first), *index[1:])]

        return jax.make_array_from_callback((count, *array.shape[1:]), where, part)

    return {name: place(batch[name], where) for name, where in shardings.items()}


def fetch(batches: Batches, n: int, shardings: Mapping[str, NamedSharding], rows: int) -> dict[str, jax.Array]:
    """Put batch n of `rows` rows onto the devices of all processes; each makes only the rows of its own devices."""
    own = own_rows(rows, next(iter(shardings.values())))
    return put(batches.batch(n, own), shardings, own, rows)


class StepBatch(NamedTuple):
    """The batch of one step.

    Attributes:
      kind: of the step.
      index: number of the batch in that kind's data.
      arrays: on the devices.
      waited: seconds that the loop waited for it.
    """

    kind: str
    index: int
    arrays: dict[str, jax.Array]
    waited: float


class Feed:
    """Batches of steps start, start + 1, ..., steps - 1, to be asked for in this order.

    The dicts are by kind of step.
    """

    def __init__(
        self,
        batches: Mapping[str, Batches],
        shardings: Mapping[str, Mapping[str, NamedSharding]],
        rows: Mapping[str, int],
        shares: Mapping[str, Fraction],
        start: int,
        steps: int,
    ) -> None:
        self._batches, self._shardings, self._rows = batches, shardings, rows
        self._shares, self._steps = shares, steps
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._made: dict[int, Future] = {}
        for step in range(start, min(start + AHEAD, steps)):
            self._submit(step)

    def _submit(self, step: int) -> None:
        self._made[step] = self._pool.submit(self._make, step)

    def _make(self, step: int) -> tuple[str, int, dict[str, jax.Array]]:
        kind, index = place_of_step(step, self._shares)
        return kind, index, fetch(self._batches[kind], index, self._shardings[kind], self._rows[kind])

    def get(self, step: int) -> StepBatch:
        """Return the batch of a step; what making it raised is raised here."""
        begin = time.perf_counter()
        kind, index, arrays = self._made.pop(step).result()
        waited = time.perf_counter() - begin
        if step + AHEAD < self._steps:
            self._submit(step + AHEAD)
        return StepBatch(kind, index, arrays, waited)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
