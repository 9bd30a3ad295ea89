"""Traces of chosen steps, for TensorBoard's profiler, Perfetto or xprof."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import jax

log = logging.getLogger(__name__)


class Profiler:
    """Traces chosen steps; steps in a row share one trace."""

    def __init__(self, path: Path, steps: Sequence[int]) -> None:
        self.path, self._steps, self._running = path, frozenset(steps), False

    def changes(self, step: int) -> bool:
        """Whether tracing starts or stops before a step: the devices must have finished the one before."""
        return (step in self._steps) != self._running

    def switch(self, step: int) -> None:
        """Start or stop before a step; call it if `changes`."""
        if self._running:
            self.close()
        else:
            jax.profiler.start_trace(str(self.path))
            self._running = True

    def close(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
            log.info("profile of the chosen steps is in %s", self.path)
