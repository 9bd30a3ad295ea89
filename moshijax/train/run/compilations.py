"""What jax compiles while a run goes on: the planned programs at the start, and nothing after."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import jax

COMPILED = "/jax/core/compile/backend_compile_duration"


class Compilations:
    """Counts compilations between `__enter__` and `__exit__`, those found in the compilation cache too, but for those
    inside `paused`.

    Attributes:
      names: of the compiled functions, in order.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self._seconds = 0.0
        self._taken = 0
        self._paused = False

    def __enter__(self) -> Compilations:
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration: float, **details: str | int) -> None:
        if event == COMPILED and not self._paused:
            self.names.append(str(details.get("fun_name", "?")))
            self._seconds += duration

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is compiled meanwhile does not count: evaluators may compile what they like."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def take(self) -> tuple[list[str], float]:
        """Names and seconds of the compilations since the last call."""
        names, seconds = self.names[self._taken :], self._seconds
        self._taken, self._seconds = len(self.names), 0.0
        return names, seconds
