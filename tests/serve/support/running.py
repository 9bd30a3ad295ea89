"""Servers that run in a thread of the test, and a relay in front of one."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Iterator
from typing import Any

from moshijax.runtime import Artifact
from moshijax.serve.server import Server
from tests.serve import calls


class Running:
    """A server that takes calls.

    Args:
      artifact: that answers.
      batch: callers at once.
      settings: of the server.
    """

    def __init__(self, artifact: Artifact, batch: int, **settings: Any):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._relays: list[asyncio.Server] = []
        self._context = calls.serving(artifact, batch, **settings)
        self.server: Server = self.run(self._context.__aenter__())
        self.engine, self.port = self.server.engine, self.server.port

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run something in the server's thread, and return its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=120)

    def stop(self) -> None:
        """End everything."""
        self.run(self._context.__aexit__(None, None, None))
        for relay in self._relays:
            self._loop.call_soon_threadsafe(relay.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def relay(self, upgrades: bool = True) -> Relay:
        """Put a relay in front of the server.

        Args:
          upgrades: whether it passes the header of a WebSocket on, which some proxies do not.
        """
        relay = Relay(self.port, upgrades)
        listener = self.run(asyncio.start_server(relay.connect, "127.0.0.1", 0))
        self._relays.append(listener)
        relay.port, relay.cut = listener.sockets[0].getsockname()[1], lambda: self.run(relay.abort())
        return relay


class Relay:
    """What is between a caller and a server."""

    def __init__(self, behind: int, upgrades: bool):
        self._behind, self._upgrades = behind, upgrades
        self._writers: set[asyncio.StreamWriter] = set()

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass a connection on."""
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._behind)
        self._writers |= {writer, to_writer}
        await asyncio.gather(self._copy(reader, to_writer), self._copy(to_reader, writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(65536):
                writer.write(piece if self._upgrades else piece.replace(b"Upgrade: websocket", b"X-Upgrade: none"))
                await writer.drain()
        writer.close()

    async def abort(self) -> None:
        """Cut all connections, as a network does that is gone."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()


@contextlib.contextmanager
def serving(artifact: Artifact, batch: int, **settings: Any) -> Iterator[Running]:
    """Run a server for as long as a test needs it."""
    running = Running(artifact, batch, **settings)
    try:
        yield running
    finally:
        running.stop()
