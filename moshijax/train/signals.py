"""Stopping on SIGTERM and SIGINT at a step boundary."""

from __future__ import annotations

import signal
import threading
from types import FrameType

import jax

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """While entered, the first SIGTERM or SIGINT is remembered instead of ending the process; the second one acts as
    if nothing had been installed. Off the main thread nothing is installed."""

    def __init__(self) -> None:
        self.name: str | None = None
        self._previous: dict[signal.Signals, object] = {}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._remember) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def requested(self, step: int) -> bool:
        """Whether to stop before this step; all processes of a run get the same answer for the same step."""
        if jax.process_count() == 1:
            return self.name is not None
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)
