"""What jax compiles during a run: the planned programs at the start, and nothing after."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import jax

log = logging.getLogger(__name__)

MOST_NAMED = 5  # functions that were compiled when nothing should be
COMPILED = "/jax/core/compile/backend_compile_duration"


class Compilations:
    """Counts compilations while entered, those found in the compilation cache too, but for those inside `paused`.

    Attributes:
      names: of the compiled functions, in order.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self._seconds = 0.0
        self._taken = 0
        self._paused = False
        self._begun = False

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
        """Do not count what is compiled meanwhile: evaluators and checksums may compile what they like."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def values(self, step: int) -> dict[str, float]:
        """Return number and seconds of the compilations since the last call, as metrics.

        From the second call on nothing should have been compiled; what was is named in a warning.
        """
        names, seconds = self.names[self._taken :], self._seconds
        if names and self._begun:
            counts = ", ".join(f"{name} ({count} times)" for name, count in Counter(names).most_common(MOST_NAMED))
            rest = f" and {len(set(names)) - MOST_NAMED} others" if len(set(names)) > MOST_NAMED else ""
            log.warning("%s%s compiled before step %d, after the programs of the run were ready", counts, rest, step)
        self._taken, self._seconds, self._begun = len(self.names), 0.0, True
        return {"time/compilations": float(len(names)), "time/compile": seconds}
