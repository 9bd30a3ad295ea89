"""The server: calls on WebSockets, the page, and what operators look at."""

from __future__ import annotations

import asyncio
import importlib.resources
import logging
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiohttp import web

from moshijax.errors import MoshijaxError
from moshijax.serve import metrics
from moshijax.serve.door import Door, refusal
from moshijax.serve.engine import Busy, Engine
from moshijax.serve.moshi_protocol import Moshi
from moshijax.serve.realtime import Realtime, describe
from moshijax.serve.session import Session
from moshijax.serve.settings import Settings
from moshijax.serve.socket import Protocol
from moshijax.serve.telephony import Telephony
from moshijax.serve.waiting import Bell

HEADER_SECONDS = 10.0  # in which a new connection must have sent its request
HEARTBEAT_SECONDS = 20.0  # between pings, which show that a quiet caller is still there
CLOSE_SECONDS = 2.0  # that a caller has to agree to the end
UNSENT_BYTES = 16 * 1024  # of a call in the transport's buffer, and in the system's
WORKERS = 2  # threads for Opus and prompts
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}

log = logging.getLogger("moshijax.serve")


class Server:
    """Everything between the network and an engine.

    Args:
      engine: not started.
      settings: where to listen, and what to allow.

    Attributes:
      app: the routes.
      port: where it listens, once it does.
      draining: no more calls are taken.
    """

    def __init__(self, engine: Engine, settings: Settings):
        self.engine, self.settings, self.draining = engine, settings, False
        self.app = web.Application(middlewares=[self._note_request])
        self.app.add_routes(
            [
                web.get("/v1/realtime", self._realtime),
                web.get("/v1/telephony", self._telephony),
                web.get("/api/chat", self._moshi),
                web.get("/api/info", self._info),
                web.get("/health", self._health),
                web.get("/ready", self._ready),
                web.get("/metrics", self._metrics),
            ]
        )
        self._pages = _read_page()
        for path in self._pages:
            self.app.router.add_get(path, self._page)
        self.port = settings.port
        self._door = Door(settings)
        self._registry = metrics.registry_of(engine)
        self._workers = ThreadPoolExecutor(WORKERS, "moshijax-worker")
        self._calls: set[asyncio.Task] = set()
        self._silent: set[Any] = set()  # new connections that have not sent a whole request
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None
        self._changed = asyncio.Event()  # the engine is ready, or has failed

    # ---- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen, and load the engine meanwhile.

        Raises:
          OSError: the port is taken.
        """
        self._runner = web.AppRunner(self.app, access_log=None, keepalive_timeout=15.0)
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        self._bell = Bell(loop)
        self._listener = await loop.create_server(
            self._connection,
            self.settings.host,
            self.settings.port,
            ssl=self.settings.tls,
            ssl_handshake_timeout=HEADER_SECONDS if self.settings.tls else None,
            reuse_address=True,
        )
        self.port = self._listener.sockets[0].getsockname()[1]
        self.engine.start(lambda: loop.call_soon_threadsafe(self._changed.set))

    async def loaded(self) -> None:
        """Wait until calls are taken.

        Raises:
          MoshijaxError: the engine failed.
        """
        await self._engine(True)

    async def _engine(self, ready: bool) -> None:
        """Wait until the engine is ready, if it shall be, or has failed.

        Raises:
          MoshijaxError: the engine failed.
        """
        while self.engine.failure is None and not (ready and self.engine.ready):
            await self._changed.wait()
            self._changed.clear()  # (before the next look at the engine, so that no change is missed)
        if self.engine.failure is not None:
            failure = self.engine.failure
            kind = type(failure) if isinstance(failure, MoshijaxError) else MoshijaxError
            raise kind(f"the engine failed: {failure}") from failure

    async def drain(self) -> None:
        """Take no more calls, and let those in progress continue for a while."""
        self.draining = True
        if self._calls:
            log.info("no more calls; %d may continue for %g s", len(self._calls), self.settings.drain_seconds)
            await asyncio.wait(self._calls, timeout=self.settings.drain_seconds)

    async def stop(self) -> None:
        """End all calls and free everything."""
        self.draining = True
        await asyncio.to_thread(self.engine.stop)
        if self._calls:
            await asyncio.wait(self._calls, timeout=2 * CLOSE_SECONDS)
        self._listener.close()
        await self._runner.cleanup()
        self._workers.shutdown()

    async def serve_until_signalled(self, ready: Callable[[], None]) -> None:
        """Serve until SIGTERM or Ctrl-C, then drain; a second one ends the calls at once.

        Args:
          ready: is called when calls are taken.

        Raises:
          MoshijaxError: the engine failed.
        """
        loop, signals = asyncio.get_running_loop(), asyncio.Queue()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, signals.put_nowait, number)
        try:
            if await _first(self.loaded(), signals.get()) == 0:
                ready()
                await _first(self._engine(False), signals.get())
                await _first(self.drain(), signals.get())
        finally:
            await self.stop()

    def _connection(self) -> asyncio.Protocol:
        """Return what handles a new connection, which is closed if no whole request comes."""
        handler = self._runner.server()

        def check() -> None:
            if handler in self._silent:
                self._silent.remove(handler)
                handler.force_close()

        self._silent.add(handler)
        asyncio.get_running_loop().call_later(HEADER_SECONDS, check)
        return handler

    @web.middleware
    async def _note_request(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        self._silent.discard(request.protocol)
        return await handler(request)

    # ---- calls ---------------------------------------------------------------------------------------------------

    async def _realtime(self, request: web.Request) -> web.StreamResponse:
        return await self._call(request, Realtime)

    async def _moshi(self, request: web.Request) -> web.StreamResponse:
        return await self._call(request, Moshi)

    async def _telephony(self, request: web.Request) -> web.StreamResponse:
        return await self._call(request, Telephony)

    async def _call(self, request: web.Request, protocol: type[Protocol]) -> web.StreamResponse:
        """Answer a caller, from the knock at the door until the line of the log."""
        refused = self._door.check_call(request) or self._check_open() or protocol.check(request, self.engine.artifact)
        if refused is None and self.engine.callers < self.engine.batch:  # (a full house says so to anybody)
            refused = self._door.check_upgrade(request)
        if refused is not None:
            log.info("refused %s: %s", self._door.address(request), refused.text)
            return refused
        loop, fresh = asyncio.get_running_loop(), asyncio.Event()
        try:
            session = self.engine.admit(lambda: self._bell.ring(fresh))
        except Busy as busy:
            return refusal(503, "busy", str(busy), callers=busy.callers)
        task, started = asyncio.current_task(), time.monotonic()
        self._calls.add(task)
        try:
            websocket = web.WebSocketResponse(
                max_msg_size=self.settings.message_bytes,
                heartbeat=HEARTBEAT_SECONDS,
                timeout=CLOSE_SECONDS,
                compress=False,
                writer_limit=1,  # every message waits for the transport to have room
            )
            try:
                await websocket.prepare(request)
            except ConnectionError:
                return web.Response()  # to nobody
            _keep_little(request.transport)
            call = protocol(websocket, session, fresh, self.settings, self._workers, self.engine.stats, request)
            limit = self.settings.call_seconds
            ending = loop.call_later(limit, session.close, "time_limit", f"a call may last {limit:g} s")
            try:
                await call.run()
            finally:
                ending.cancel()
            return websocket
        finally:
            session.close("client_left")
            self._calls.discard(task)
            self._log(request, session, time.monotonic() - started)

    def _check_open(self) -> web.Response | None:
        if self.engine.failure is not None:
            return refusal(500, "failed", "the server has failed; its log says why")
        if self.draining:
            return refusal(503, "draining", "the server is about to stop; call again in a minute")
        if not self.engine.ready:
            return refusal(503, "starting", "the server is still loading; call again in a minute")
        return None

    def _log(self, request: web.Request, session: Session, seconds: float) -> None:
        counts = session.counts
        log.info(
            "call %s from %s on %s: %.1f s, %s; frames heard %d, dropped %d, said %d, unsent %d",
            session.id, self._door.address(request), request.path, seconds, session.ended.reason,
            counts.heard, counts.dropped, counts.said, counts.unsent,
        )  # fmt: skip

    # ---- the rest ------------------------------------------------------------------------------------------------

    async def _page(self, request: web.Request) -> web.Response:
        content, kind = self._pages[request.path]
        return web.Response(body=content, content_type=kind, charset="utf-8", headers={"Cache-Control": "no-cache"})

    async def _info(self, request: web.Request) -> web.Response:
        return self._door.check_token(request) or web.json_response(
            {
                **describe(self.engine.artifact, self.settings),
                "slots": self.engine.batch,
                "callers": self.engine.callers,
            }
        )

    async def _health(self, request: web.Request) -> web.Response:
        failed = self.engine.failure is not None
        return web.json_response({"status": "failed" if failed else "ok"}, status=500 if failed else 200)

    async def _ready(self, request: web.Request) -> web.Response:
        return self._check_open() or web.json_response({"status": "ready", "callers": self.engine.callers})

    async def _metrics(self, request: web.Request) -> web.Response:
        refused = self._door.check_token(request)
        return refused or web.Response(body=metrics.text(self._registry), content_type="text/plain")


async def _first(*work: Awaitable[Any]) -> int:
    """Return the number of what is done first, and cancel the rest; raises what that has raised."""
    tasks = [asyncio.ensure_future(one) for one in work]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    first = next(number for number, task in enumerate(tasks) if task.done())
    await tasks[first]
    return first


def _keep_little(transport: asyncio.Transport | None) -> None:
    """Let what a caller does not take wait in the session's queue, where old sound is dropped, not in the system's."""
    if transport is not None:
        transport.set_write_buffer_limits(high=UNSENT_BYTES)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNSENT_BYTES)


def _read_page() -> dict[str, tuple[bytes, str]]:
    """Return the files of the page by the path of their requests: content and type."""
    root = importlib.resources.files("moshijax.serve") / "page"
    found = {}
    for file in root.iterdir():
        suffix = os.path.splitext(file.name)[1]
        if suffix in TYPES:
            content = file.read_bytes()
            found[f"/{file.name}"] = (content, TYPES[suffix])
            if file.name == "index.html":
                found["/"] = found[f"/{file.name}"]
    return found
