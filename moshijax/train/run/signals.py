"""Stopping on SIGTERM and SIGINT at a boundary: before a step, or before a batch of an evaluation."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """While entered, the first SIGTERM or SIGINT is remembered instead of ending the process.

    The second one acts as if nothing had been installed. Off the main thread nothing is installed.
    """

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


class StopVote:
    """Whether a signal has reached any process of the run; every process gets the same answers in the same order.

    With several processes the answer is a sum over all devices, asked for right after a step was dispatched and read
    when that step is logged: nobody waits for it. A single process answers itself.
    """

    def __init__(self, stop: StopSignal, mesh: Mesh) -> None:
        self._stop, self._heard = stop, False
        self._alone = jax.process_count() == 1
        if not self._alone:
            where = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
            self._flags = [
                jax.make_array_from_callback((mesh.size,), where, lambda i, v=v: np.full((mesh.size,), v, np.int32)[i])
                for v in (0, 1)
            ]
            self._sum: Callable[[jax.Array], jax.Array] = (
                jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec())).lower(self._flags[0]).compile()
            )

    def ask(self) -> jax.Array | None:
        """Dispatch the question; `hear` takes its answer."""
        return None if self._alone else self._sum(self._flags[self._stop.name is not None])

    def hear(self, answer: jax.Array | None) -> bool:
        """Whether to stop at the next boundary, from this answer on."""
        self._heard |= self._stop.name is not None if answer is None else bool(jax.device_get(answer))
        return self._heard

    def now(self) -> bool:
        """Ask, and wait for the answer."""
        return self.hear(self.ask())

    @property
    def reached(self) -> bool:
        """Whether to stop here, by the answers so far."""
        return self.hear(None) if self._alone else self._heard

    @property
    def name(self) -> str:
        """Name of the signal, for messages."""
        return self._stop.name or "a signal to another process"
