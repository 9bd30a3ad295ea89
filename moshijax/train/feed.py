"""Batches for the steps of a run, made in a thread while the previous step runs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from moshijax.train.experiment import place_of_step
from moshijax.train.task import Source

AHEAD = 2


def put(batch: Mapping[str, np.ndarray], shardings: Mapping[str, NamedSharding]) -> dict[str, jax.Array]:
    """A global batch onto its devices; every process brings the rows of its own devices."""
    if jax.process_count() == 1:
        return {name: jax.device_put(batch[name], where) for name, where in shardings.items()}
    return {
        name: jax.make_array_from_callback(batch[name].shape, where, lambda index, name=name: batch[name][index])
        for name, where in shardings.items()
    }


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
        text_ratio: float,
        start: int,
        steps: int,
    ) -> None:
        self._sources, self._shardings, self._ratio, self._steps = sources, shardings, text_ratio, steps
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._made: dict[int, Future] = {}
        for step in range(start, min(start + AHEAD, steps)):
            self._submit(step)

    def _submit(self, step: int) -> None:
        self._made[step] = self._pool.submit(self._make, step)

    def _make(self, step: int) -> tuple[str, int, dict[str, jax.Array]]:
        program, index = place_of_step(step, self._ratio)
        return program, index, put(self._sources[program].batch(index), self._shardings[program])

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
