"""Batches for the steps of a run, made in a thread while the previous step runs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from moshijax.train.experiment import place_of_step
from moshijax.train.task import Source

AHEAD = 2


def own_rows(rows: int, where: NamedSharding) -> slice:
    """The rows of a batch that this process feeds to its devices (with what lies between them, if anything does)."""
    along = NamedSharding(where.mesh, PartitionSpec(*where.spec[:1]))
    found = [index[0].indices(rows) for index in along.addressable_devices_indices_map((rows,)).values()]
    return slice(min(start for start, _, _ in found), max(stop for _, stop, _ in found))


def put(
    batch: Mapping[str, np.ndarray], shardings: Mapping[str, NamedSharding], own: slice | None = None, rows: int = 0
) -> dict[str, jax.Array]:
    """A batch onto the devices of all processes.

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


def fetch(source: Source, n: int, shardings: Mapping[str, NamedSharding], rows: int) -> dict[str, jax.Array]:
    """Batch n of `rows` rows onto the devices of all processes; each makes only the rows of its own devices."""
    own = own_rows(rows, next(iter(shardings.values())))
    return put(source.batch(n, own), shardings, own, rows)


class Fed(NamedTuple):
    """The batch of one step: which program takes it, its number in that program's data, the arrays on the devices, and
    the seconds that the loop waited for it."""

    program: str
    index: int
    batch: dict[str, jax.Array]
    waited: float


class Feed:
    """Batches of steps start, start + 1, ..., steps - 1, to be asked for in this order."""

    def __init__(
        self,
        sources: Mapping[str, Source],
        shardings: Mapping[str, Mapping[str, NamedSharding]],
        rows: Mapping[str, int],
        text_ratio: float,
        start: int,
        steps: int,
    ) -> None:
        self._sources, self._shardings, self._rows = sources, shardings, rows
        self._ratio, self._steps = text_ratio, steps
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._made: dict[int, Future] = {}
        for step in range(start, min(start + AHEAD, steps)):
            self._submit(step)

    def _submit(self, step: int) -> None:
        self._made[step] = self._pool.submit(self._make, step)

    def _make(self, step: int) -> tuple[str, int, dict[str, jax.Array]]:
        program, index = place_of_step(step, self._ratio)
        return program, index, fetch(self._sources[program], index, self._shardings[program], self._rows[program])

    def get(self, step: int) -> Fed:
        """The batch of a step; what its making raised is raised here."""
        begin = time.perf_counter()
        program, index, batch = self._made.pop(step).result()
        waited = time.perf_counter() - begin
        if step + AHEAD < self._steps:
            self._submit(step + AHEAD)
        return Fed(program, index, batch, waited)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
