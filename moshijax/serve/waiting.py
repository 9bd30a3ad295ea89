"""Waits that cost little: of many callers, twelve times a second each."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable


class Bell:
    """Set events of an event loop from another thread; those of one moment wake the loop once.

    Args:
      loop: of the events.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._loop = loop
        self._events: deque[asyncio.Event] = deque()
        self._rung = False

    def ring(self, event: asyncio.Event) -> None:
        """Set an event soon; from any thread."""
        self._events.append(event)
        if not self._rung:
            self._rung = True
            self._loop.call_soon_threadsafe(self._answer)

    def _answer(self) -> None:
        self._rung = False  # (first: who rings from here on is heard below or wakes the loop again)
        while self._events:
            self._events.popleft().set()


class Patience:
    """Give up when something takes too long; one timer for all waits, which looks when the first would end.

    Args:
      seconds: how long it may take.
      give_up: called in the event loop when it took longer.
    """

    def __init__(self, seconds: float, give_up: Callable[[], None]):
        self._seconds, self._give_up = seconds, give_up
        self._loop = asyncio.get_running_loop()
        self._due, self._timer = math.inf, None

    def begin(self) -> None:
        """Wait from now on."""
        self._due = self._loop.time() + self._seconds
        if self._timer is None:
            self._timer = self._loop.call_at(self._due, self._look)

    def end(self) -> None:
        """Wait no longer."""
        self._due = math.inf

    def close(self) -> None:
        """Leave nothing behind in the event loop."""
        self.end()
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        if self._loop.time() >= self._due:
            self.end()
            self._give_up()
        elif self._due < math.inf:
            self._timer = self._loop.call_at(self._due, self._look)
