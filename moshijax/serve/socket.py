"""A caller's WebSocket: what every protocol has in common."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from aiohttp import WSCloseCode, WSMsgType, web

from moshijax.runtime import Artifact
from moshijax.serve.session import BACKLOG, Ended, Event, Said, Session
from moshijax.serve.settings import Settings
from moshijax.serve.stats import Stats
from moshijax.serve.waiting import Patience

#: By the reason of the end; others are normal.
CLOSE_CODES = {
    "shutdown": WSCloseCode.GOING_AWAY,
    "error": WSCloseCode.INTERNAL_ERROR,
    "bad_messages": WSCloseCode.POLICY_VIOLATION,
    "too_many_messages": WSCloseCode.POLICY_VIOLATION,
    "too_large_a_message": WSCloseCode.MESSAGE_TOO_BIG,
    "slow_reader": WSCloseCode.POLICY_VIOLATION,
}
MISTAKES = 10  # bad messages after which a call ends

log = logging.getLogger("moshijax.serve")


class Protocol(ABC):
    """One call on one WebSocket; subclasses translate.

    Args:
      websocket: prepared.
      session: admitted.
      fresh: set when the session has events.
      settings: limits.
      workers: threads for what takes longer than a tenth of a millisecond.
      stats: where gaps between frames are noted.
      request: that the call began with.
    """

    def __init__(
        self,
        websocket: web.WebSocketResponse,
        session: Session,
        fresh: asyncio.Event,
        settings: Settings,
        workers: ThreadPoolExecutor,
        stats: Stats,
        request: web.Request,
    ):
        self.request, self.websocket, self.session, self.settings, self.workers = (
            request,
            websocket,
            session,
            settings,
            workers,
        )
        self.artifact: Artifact = session.artifact
        self._fresh, self._stats = fresh, stats
        self._mistakes, self._sent, self._stalled = 0, 0.0, False
        self._message_wait = Patience(settings.idle_seconds, self._end_idle)
        self._sending_wait = Patience(settings.stall_seconds, self._end_stalled)

    @staticmethod
    def check(request: web.Request, artifact: Artifact) -> web.Response | None:
        """Return the refusal of a request that this protocol cannot serve; None if it can."""
        return None

    async def run(self) -> None:
        """Translate both ways until the call is over."""
        listening = asyncio.create_task(self._listen())
        try:
            await self.begin()
            while True:
                await self._fresh.wait()
                self._fresh.clear()
                for event in self.session.take_events():
                    await self.tell(event)
                    if isinstance(event, Said) and event.pcm is not None:
                        self._note_gap()
                    if isinstance(event, Ended):
                        return await self._hang_up(event)
        except (ConnectionError, RuntimeError):  # aiohttp's words for a socket that is gone
            self.session.close("client_left")
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            self._message_wait.close()
            self._sending_wait.close()

    @abstractmethod
    async def begin(self) -> None:
        """Greet the caller."""

    @abstractmethod
    async def tell(self, event: Event) -> None:
        """Send what has happened."""

    @abstractmethod
    async def take_text(self, message: str) -> None:
        """Take a text message of the caller; `mistake` if it is none of this protocol."""

    @abstractmethod
    async def take_bytes(self, message: bytes) -> None:
        """Take a binary message of the caller."""

    @abstractmethod
    async def complain(self, code: str, message: str, field: str | None = None) -> None:
        """Tell the caller about an error, which does not end the call."""

    async def mistake(self, code: str, message: str, field: str | None = None) -> None:
        """Tell the caller what is wrong with a message; too many of them end the call."""
        self._mistakes += 1
        await self.complain(code, message, field)
        if self._mistakes >= MISTAKES:
            self.session.close("bad_messages", f"{MISTAKES} messages could not be used; the last: {message}")

    async def send(self, message: str | bytes) -> None:
        """Send a message.

        Raises:
          ConnectionError: the caller is gone, or has taken nothing for too long.
        """
        send = self.websocket.send_str if isinstance(message, str) else self.websocket.send_bytes
        self._sending_wait.begin()
        await send(message)
        self._sending_wait.end()
        if self._stalled:
            raise ConnectionResetError("the caller takes nothing")

    def newest(self, samples: np.ndarray, rate: int) -> tuple[np.ndarray, int]:
        """Return what can still be heard of a piece of sound, and how many frames before that cannot.

        So nobody's work grows with the length of a message. One frame more is kept than the session's queue holds: the
        first one has the sound of before in its filters, and is dropped there.

        Args:
          samples: `[N]`, in any encoding.
          rate: theirs, in Hz.
        """
        size = round(self.artifact.frame_seconds * rate)
        dropped = max(0, len(samples) // size - (BACKLOG + 1))
        return samples[dropped * size :], dropped

    async def in_thread(self, function, *arguments):
        """Run a function in a thread of the pool, and return its result."""
        return await asyncio.get_running_loop().run_in_executor(self.workers, function, *arguments)

    async def _listen(self) -> None:
        """Take messages until the caller leaves or the call ends."""
        allowance, limit, last = 0.0, self.settings.messages_per_second, time.monotonic()
        try:
            while True:
                self._message_wait.begin()  # (aiohttp's own limit begins again with every pong)
                message = await self.websocket.receive()
                now = time.monotonic()
                allowance, last = min(5 * limit, allowance + (now - last) * limit) - 1, now
                if allowance < -5 * limit:
                    return self.session.close("too_many_messages", f"at most {limit:g} messages per second are taken")
                if message.type is WSMsgType.TEXT:
                    await self.take_text(message.data)
                elif message.type is WSMsgType.BINARY:
                    await self.take_bytes(message.data)
                elif getattr(message.data, "code", None) == WSCloseCode.MESSAGE_TOO_BIG:
                    return self.session.close("too_large_a_message")
                else:
                    return self.session.close("client_left")
        except (ConnectionError, RuntimeError):
            self.session.close("client_left")
        except Exception:
            log.exception("call %s: a message could not be handled", self.session.id)
            self.session.close("error", "the message could not be handled")
        finally:
            self.session.close("client_left")  # (whatever has ended this: nobody listens any more)

    def _end_idle(self) -> None:
        self.session.close("idle", f"no message for {self.settings.idle_seconds:g} s")

    def _end_stalled(self) -> None:
        self._stalled = True
        self.session.close("slow_reader")
        if self.request.transport is not None:
            self.request.transport.abort()  # (a goodbye would wait behind the rest)

    async def _hang_up(self, ended: Ended) -> None:
        code = CLOSE_CODES.get(ended.reason, WSCloseCode.OK)
        await self.websocket.close(code=code, message=ended.reason.encode())

    def _note_gap(self) -> None:
        now = time.monotonic()
        if self._sent:
            self._stats.gap_seconds.append(now - self._sent)
        self._sent = now
