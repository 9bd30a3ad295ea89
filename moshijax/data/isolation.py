"""Functions called in separate processes, where a library may crash or hang without taking the job along."""

from __future__ import annotations

import os
import pickle
import queue
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

_SECONDS = 60.0
_ATTEMPTS = 2
_OVER = "was ended, since nobody waits for it any more"


class Lost(Exception):
    """The process died, or was killed after its time, as often as it was tried; the message says which."""


class _Died(Exception):
    """One of the attempts; the message says how."""


class Isolated:
    """Child processes that call functions: `isolated(function, *arguments)`, from any thread.

    A child starts when it is first needed, and after a loss another one takes its place. As a context, or when it is no
    longer referred to, it ends its children and starts no more.

    Args:
      processes: how many calls run at once; others wait.
    """

    def __init__(self, processes: int = 1):
        children = [_Child() for _ in range(processes)]
        self._idle: queue.LifoQueue[_Child] = queue.LifoQueue()
        for child in children:
            self._idle.put(child)
        self.close = weakref.finalize(self, _end, children)

    def __call__(self, function: Callable[..., Any], *arguments: Any, seconds: float = _SECONDS) -> Any:
        """`function(*arguments)`; they and the result travel as pickles.

        Args:
          function: of an importable module.
          seconds: that a call may take.

        Raises:
          Lost: no answer in two attempts.
          Exception: whatever the function raises.
        """
        request = pickle.dumps((function, arguments))
        child = self._idle.get()
        try:
            for _ in range(_ATTEMPTS):
                try:
                    raised, answer = child.ask(request, seconds)
                    break
                except _Died as error:
                    why = error
            else:
                raise Lost(f"{why}, tried {_ATTEMPTS} times")
        finally:
            self._idle.put(child)
        if raised:
            raise answer
        return answer

    def __enter__(self) -> Isolated:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Child:
    """One process."""

    def __init__(self) -> None:
        self._closed = False
        self._starting = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, request: bytes, seconds: float) -> tuple[bool, Any]:
        """Whether the function raised, and what it raised or returned. Raises _Died, or Lost once it is closed."""
        with self._starting:
            if self._closed:
                raise Lost(_OVER)
            if self._process is None:
                # In a session of its own: Ctrl-C is for the parent, which ends it.
                self._process = subprocess.Popen(
                    [sys.executable, "-m", __name__],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    start_new_session=True,
                )
                request = pickle.dumps(sys.path) + request
            process, end = self._process, time.monotonic() + seconds
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        try:
            process.stdin.write(request)
            process.stdin.flush()
            return pickle.load(process.stdout)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            late, code = time.monotonic() >= end, process.wait()
            self.end()
            raise _Died(
                f"gave no answer within {seconds:.0f} s" if late else f"ended its process (exit code {code})"
            ) from None
        except ValueError:  # its pipes were closed just now
            if self._closed:
                raise Lost(_OVER) from None
            self.end()
            raise
        except BaseException:  # nobody waits for its answer any more
            self.end()
            raise
        finally:
            timer.cancel()

    def close(self) -> None:
        """End it for good, whatever it is doing."""
        with self._starting:
            self._closed = True
        self.end()

    def end(self) -> None:
        """End its process, whatever it is doing."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            process.stdout.close()
            try:
                process.stdin.close()
            except BrokenPipeError:  # what it has not read
                pass


def _end(children: Sequence[_Child]) -> None:
    for child in children:
        child.close()


def _serve() -> None:
    """The child: an answer for every request until the other end is closed."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    sys.path[:] = pickle.load(requests)
    while True:
        try:
            function, arguments = pickle.load(requests)
        except EOFError:
            return
        try:
            answer = (False, function(*arguments))
        except Exception as error:  # the parent raises it
            answer = (True, error)
        pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
        answers.flush()


if __name__ == "__main__":
    _serve()
