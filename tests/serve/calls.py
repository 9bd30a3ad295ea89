"""Real calls over loopback: a server in this process, and clients of both protocols."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import numpy as np

from moshijax.runtime import Artifact, CallOptions, Rows
from moshijax.runtime.play import play
from moshijax.runtime.text import Pieces
from moshijax.serve.engine import Engine
from moshijax.serve.resample import Resampler
from moshijax.serve.server import Server
from moshijax.serve.settings import Settings

GREEDY = {"temperature": 0.0, "text_temperature": 0.0}
SIZE = 1920  # samples of a frame on the wire


@contextlib.asynccontextmanager
async def serving(artifact: Artifact, batch: int, told: bool = True, **settings: Any) -> AsyncIterator[Server]:
    """A server that takes calls, on a free port; `told`: they may begin with prompts, which are more to compile."""
    engine = Engine(artifact, batch, prompts=told)
    server = Server(engine, Settings(port=0, **{"calls_per_minute": 100_000, **settings}))
    await server.start()
    await server.loaded()
    try:
        yield server
    finally:
        await server.stop()


def url(server: Server, path: str) -> str:
    return f"http://127.0.0.1:{server.port}{path}"


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that must happen; pytest's limit ends what never does."""
    while not condition():
        await asyncio.sleep(0.005)


async def all_heard(server: Server) -> None:
    """Wait until the model has heard all that callers have sent, so that nothing is dropped on a slow machine."""
    for _ in range(3):  # (it comes through the socket first)
        await asyncio.sleep(0.005)
    await until(lambda: not any(session.waiting for session in list(server.engine._admitted)))


def speech(frames: int, seed: int) -> list[bytes]:
    """Frames of PCM16 at 24 kHz."""
    random = np.random.RandomState(seed)
    return [(random.randn(SIZE) * 4000).clip(-32768, 32767).astype("<i2").tobytes() for _ in range(frames)]


def floats(samples: bytes) -> np.ndarray:
    return np.frombuffer(samples, "<i2").astype(np.float32) / 32768


class Realtime:
    """A client of `/v1/realtime`."""

    def __init__(self, websocket: aiohttp.ClientWebSocketResponse):
        self.websocket = websocket
        self.events: list[dict[str, Any]] = []
        self.audio: list[bytes] = []

    async def send(self, kind: str, **fields: Any) -> None:
        await self.websocket.send_str(json.dumps({"type": kind, **fields}))

    async def next(self, *kinds: str) -> dict[str, Any]:
        """Return the next event of a kind."""
        while True:
            message = await self.websocket.receive()
            if message.type is aiohttp.WSMsgType.BINARY:
                self.audio.append(message.data)
            elif message.type is aiohttp.WSMsgType.TEXT:
                self.events.append(json.loads(message.data))
                if self.events[-1]["type"] in kinds:
                    return self.events[-1]
            else:
                raise ConnectionError(f"closed: {self.websocket.close_code} {message.extra}")

    def text(self) -> str:
        return "".join(event["delta"] for event in self.events if event["type"] == "response.text.delta")

    async def converse(self, frames: list[bytes]) -> None:
        """Say frames, each when the one before was answered, so that no one is dropped however slow the machine."""
        if not any(event["type"] == "session.started" for event in self.events):
            await self.send("session.start")
            await self.next("session.started")
        for frame in frames:
            count = len(self.audio)
            await self.websocket.send_bytes(frame)
            while len(self.audio) == count:
                message = await self.websocket.receive()
                if message.type is aiohttp.WSMsgType.BINARY:
                    self.audio.append(message.data)
                elif message.type is aiohttp.WSMsgType.TEXT:
                    self.events.append(json.loads(message.data))
                else:
                    raise ConnectionError(f"closed: {self.websocket.close_code}")

    async def end(self) -> dict[str, Any]:
        """Hang up and return the last event."""
        await self.send("session.end")
        return await self.next("session.ended")


@contextlib.asynccontextmanager
async def realtime(server: Server, **session: Any) -> AsyncIterator[Realtime]:
    """A call whose settings are made, binary audio among them."""
    async with aiohttp.ClientSession() as http, http.ws_connect(url(server, "/v1/realtime")) as websocket:
        client = Realtime(websocket)
        await client.next("session.created")
        await client.send("session.update", session={"audio": "binary", **session})
        await client.next("session.updated")
        yield client


def expected(artifact: Artifact, batch: int, pcm: np.ndarray, options: CallOptions) -> tuple[str, np.ndarray]:
    """Return the text and the sound, at 24 kHz, of a call that is alone and hears `pcm`, at 24 kHz."""
    [call], _ = play(Rows(artifact, batch), [Resampler(24000, artifact.sample_rate)(pcm)], [options])
    pieces = Pieces(artifact)
    return "".join(pieces.feed(int(token)) for token in call.text_tokens), Resampler(artifact.sample_rate, 24000)(
        call.pcm
    )
