"""Steps whose loss or gradient is not finite: each is skipped, and several in a row stop the run."""

from __future__ import annotations

import logging
from pathlib import Path

import jax

from moshijax.errors import MoshijaxError
from moshijax.files import write_json
from moshijax.train.feed import StepBatch

log = logging.getLogger(__name__)

MAX_IN_A_ROW = 3
FILE = "nonfinite.json"


class TooManyNonFinite(Exception):
    """So many steps in a row were not finite that the run has to stop."""


class NonFiniteSteps:
    """The last steps that were not finite, with their batches."""

    def __init__(self) -> None:
        self._last: list[dict[str, str | int]] = []

    def add(self, step: int, batch: StepBatch, in_a_row: int) -> None:
        """Note a step that was skipped.

        Raises:
          TooManyNonFinite: it was the third in a row.
        """
        self._last = [*self._last, {"step": step, "kind": batch.kind, "batch": batch.index}][-MAX_IN_A_ROW:]
        log.warning("step %d was not finite: update skipped (%s batch %d)", step, batch.kind, batch.index)
        if in_a_row >= MAX_IN_A_ROW:
            raise TooManyNonFinite

    def report(self, run_dir: Path) -> MoshijaxError:
        """Write the steps and their batches into the run directory; return the error that ends the run."""
        if jax.process_index() == 0:
            write_json(run_dir / FILE, self._last)
        named = ", ".join(f"{bad['step']} ({bad['kind']} batch {bad['batch']})" for bad in self._last)
        return MoshijaxError(
            f"steps {named} were not finite, {MAX_IN_A_ROW} in a row; the last good parameters are saved and the "
            f"batches written to {run_dir / FILE}; look at them, or lower the learning rate in a new run"
        )
