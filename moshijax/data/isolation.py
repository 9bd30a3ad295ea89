"""A function over files in a process of its own, where a decoder may crash or hang without taking the job along."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from moshijax.data.manifest import Item

_SECONDS = 60.0
_BYTES_PER_SECOND = 100_000  # half of what a second of 24 kHz stereo takes in a WAV file
_ATTEMPTS = 2


class Lost(Exception):
    """The process died, or was killed after its time, as often as it was tried; the message says which."""


class Isolated:
    """``function(item, *more)``, called in a child process; the next call after a loss starts another one.

    Function, arguments and result travel as pickles; what the function raises is raised here. As a context, it ends its
    process at the end. As always with `multiprocessing`, a script that uses it is guarded by ``if __name__ ==
    "__main__"``.

    Args:
        function: of an importable module.
        seconds: that a call may take, and as many again as the item's audio file has times 100 kB.
    """

    def __init__(self, function: Callable[..., Any], seconds: float = _SECONDS):
        self._function, self._seconds = function, seconds
        self._process: Any = None
        self._connection: Any = None

    def __call__(self, item: Item, *more: Any) -> Any:
        """Raises Lost, and whatever the function raises."""
        size = item.audio.stat().st_size if item.audio.is_file() else 0
        limit = self._seconds + size / _BYTES_PER_SECOND
        for _ in range(_ATTEMPTS):
            if self._process is None:
                self._start()
            try:
                self._connection.send((item, *more))
                answer = self._connection.recv() if self._connection.poll(limit) else None
                why = f"was not decoded within {limit:.0f} s"
            except (EOFError, ConnectionError):
                self._process.join()
                answer, why = None, f"ended its decoder (exit code {self._process.exitcode})"
            if answer is not None:
                raised, result = answer
                if raised:
                    raise result
                return result
            self.close()
        raise Lost(f"{why}, tried {_ATTEMPTS} times")

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(self._function, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def close(self) -> None:
        """End the process, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
            self._process = None

    def __enter__(self) -> Isolated:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _serve(function: Callable[..., Any], connection: Connection) -> None:
    """The child: an answer for every item until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    while True:
        try:
            arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = (False, function(*arguments))
        except Exception as error:  # the parent raises it
            answer = (True, error)
        connection.send(answer)
