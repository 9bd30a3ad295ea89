"""Batches for the steps of a run, made in a thread while the previous step runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from moshijax.data.batches import Fault
from moshijax.train.experiment import ExperimentConfig, place_of_step
from moshijax.train.steps import batch_shardings
from moshijax.train.task import Batch, Batches, StepKind

log = logging.getLogger(__name__)

AHEAD = 2


def open_batches(experiment: ExperimentConfig, mesh: Mesh) -> dict[str, Batches]:
    """Open the batches of every kind of step of a run by its name, and the held-out ones by theirs.

    Raises:
      ConfigError: their rows do not divide by the microbatches or the devices, or the task cannot use the data.
      DataError: the data cannot be read.
    """
    task, seed = experiment.task, experiment.seed
    found: dict[str, Batches] = {}
    for kind in experiment.step_kinds:
        batch_shardings(task.batch_shapes(kind, kind.data), mesh, experiment.microbatches)
        found[kind.name] = task.batches(kind, kind.data, seed)
        _log_amount(kind, found[kind.name], experiment)
    for kind in experiment.held_out:
        batch_shardings(task.batch_shapes(kind, kind.eval_data), mesh, 1)
        found[kind.eval_name] = task.batches(kind, kind.eval_data, seed)
    return found


def _log_amount(kind: StepKind, batches: Batches, experiment: ExperimentConfig) -> None:
    """Say what steps of a kind train on, and how often they see it."""
    steps = round(experiment.steps * kind.share)
    rows = next(iter(experiment.task.batch_shapes(kind, kind.data).values())).shape[0]
    epochs = steps * rows / batches.items
    log.info("%s steps: %s; %d steps of %d rows are %.3g epochs", kind.name, batches.content, steps, rows, epochs)


def skipped_recordings(batches: Mapping[str, Batches]) -> dict[str, float]:
    """Count recordings that this process could not use since it began; their names and reasons are in the log."""
    skipped = sum(len(found.skipped) for found in batches.values())
    return {"data/skipped_recordings": float(skipped)} if skipped else {}


Faults = dict[str, dict[str, Fault]]


def known_faults(batches: Mapping[str, Batches]) -> Faults:
    """Return what this process has found unusable, by name of the batches, for a checkpoint."""
    return {name: dict(found.skipped) for name, found in batches.items() if found.skipped}


def restore_faults(batches: Mapping[str, Batches], of_processes: Sequence[Faults]) -> None:
    """Tell batches what was unusable when a checkpoint was saved, so that the same is drawn as in a run that went on.

    Args:
      batches: of this process.
      of_processes: `known_faults` of every process, in order; of another number of them each gets what any knew.
    """
    same = len(of_processes) == jax.process_count()
    for faults in of_processes[jax.process_index() :][:1] if same else of_processes:
        for name in faults.keys() & batches.keys():
            skipped = batches[name].skipped
            for id, fault in faults[name].items():
                if id not in skipped or not skipped[id].whole:
                    skipped[id] = Fault(*fault)


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
      shardings: of its arrays.
      own: rows that `batch` holds; None: all.
      rows: of the whole batch, where `own` is given.
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
    """Batches of steps start, start + 1, ... of a run, to be asked for in this order."""

    def __init__(
        self,
        experiment: ExperimentConfig,
        batches: Mapping[str, Batches],
        first: Mapping[str, Batch],
        mesh: Mesh,
        start: int,
    ) -> None:
        """Begin to make the first ones.

        Args:
          batches: of every kind of step.
          first: batch 0 of each, for the shapes.
          start: step of the first batch.
        """
        self._batches, self._steps = batches, experiment.steps
        self._shardings = {name: batch_shardings(b, mesh, experiment.microbatches) for name, b in first.items()}
        self._rows = {name: len(next(iter(batch.values()))) for name, batch in first.items()}
        self._shares = {kind.name: kind.share for kind in experiment.step_kinds}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._made: dict[int, Future] = {}
        for step in range(start, min(start + AHEAD, self._steps)):
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
        """Stop making batches."""
        self._pool.shutdown(wait=True, cancel_futures=True)
