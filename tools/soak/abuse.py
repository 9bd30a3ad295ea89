"""Let callers break off and send nonsense while another one talks, and check that nobody but they notice.

    python -m tools.soak.abuse --callers 1000 --write docs/reliability.md

A server of a tiny model with random weights runs in this process. What an abuser sends is made byte by byte, down to
the frames of the WebSocket, so that it can break off anywhere: in the request, in a frame, in the middle of a call. The
caller who behaves must hear exactly what the runtime says to the same sound without a server.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import gc
import json
import struct
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import numpy as np
import psutil
import sphn

from moshijax import runtime
from moshijax.export.artifact import build
from moshijax.serve.engine import Engine
from moshijax.serve.resample import Resampler
from moshijax.serve.server import Server
from moshijax.serve.settings import Settings
from moshijax.testing.tiny import tiny_models
from tools.pages import fill
from tools.soak.runtime import machine

PATHS = ("/v1/realtime", "/v1/telephony", "/api/chat")
SLOTS = 4
GREEDY = {"seed": 5, "temperature": 0.0, "text_temperature": 0.0}
TEXT, BINARY, CLOSE = 1, 2, 8
RATE, FRAME = 24_000, 1920


@dataclass
class Found:
    """What was seen.

    Attributes:
      abusers: by what they did.
      slot_seconds: until the slots of each group of abusers were free, from when the last of them had gone.
      memory: MiB, after each tenth of the run.
      frames: that the caller who behaves heard.
      tasks_left: tasks of the event loop beyond those from before the first call.
    """

    abusers: dict[str, int] = field(default_factory=dict)
    slot_seconds: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    frames: int = 0
    tasks_left: int = 0


def request(path: str) -> bytes:
    """Return the request that begins a call."""
    return (
        f"GET {path} HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


def frame(kind: int, payload: bytes, claimed: int | None = None) -> bytes:
    """Return a client's WebSocket frame, which may claim to be longer than it is; its mask is zero."""
    length = len(payload) if claimed is None else claimed
    short = length if length < 126 else 126 if length < 2**16 else 127
    more = b"" if length < 126 else struct.pack(">H" if length < 2**16 else ">Q", length)
    return bytes([0x80 | kind, 0x80 | short]) + more + bytes(4) + payload


def call(path: str, random: np.random.RandomState) -> list[bytes]:
    """Return the frames of a proper call of a few frames of sound, with its end."""
    sound = (0.1 * random.standard_normal((random.randint(1, 8), FRAME))).astype(np.float32)
    if path == "/v1/realtime":
        settings = {"type": "session.update", "session": {"audio": "binary", "seed": int(random.randint(100))}}
        said = [frame(BINARY, (part * 32767).astype("<i2").tobytes()) for part in sound]
        return [frame(TEXT, json.dumps(settings).encode()), *said, frame(TEXT, b'{"type": "session.end"}')]
    if path == "/v1/telephony":
        form = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}
        start = {"event": "start", "streamSid": "a", "start": {"mediaFormat": form}}
        media = {"event": "media", "media": {"payload": base64.b64encode(random.bytes(160)).decode()}}
        messages = [start, *[media] * 4 * len(sound), {"event": "stop"}]
        return [frame(TEXT, json.dumps(message).encode()) for message in messages]
    opus = sphn.OpusStreamWriter(RATE)
    pages = [opus.append_pcm(packet) for packet in sound.reshape(-1, FRAME // 2)]
    return [frame(BINARY, b"\x01" + page) for page in pages] + [frame(CLOSE, b"\x03\xe8")]


def cut(path: str, random: np.random.RandomState) -> bytes:
    """A proper call that breaks off at any byte."""
    whole = request(path) + b"".join(call(path, random))
    # Half of them in the middle of a call, the others anywhere.
    return whole[: random.randint(len(whole))] if random.rand() < 0.5 else whole[: len(whole) - random.randint(1, 4000)]


def flip(path: str, random: np.random.RandomState) -> bytes:
    """A call in which some bytes are others."""
    frames = bytearray(b"".join(call(path, random)))
    for _ in range(random.randint(1, 20)):
        frames[random.randint(len(frames))] = random.randint(256)
    return request(path) + bytes(frames)


def noise(path: str, random: np.random.RandomState) -> bytes:
    """Frames of random kinds with random bytes, and wrong lengths."""
    frames = [
        frame(random.randint(16), random.bytes(random.choice([0, 1, 2, 125, 126, 5000])))
        for _ in range(random.randint(1, 20))
    ]
    return request(path) + b"".join(frames) + random.bytes(random.randint(100))


def large(path: str, random: np.random.RandomState) -> bytes:
    """A frame that is too large, or claims to be."""
    claimed = int(random.choice([300_000, 10_000_000, 2**31, 2**62]))
    return request(path) + frame(random.choice([TEXT, BINARY]), bytes(300_000), claimed)


def bomb(path: str, random: np.random.RandomState) -> bytes:
    """JSON that is deep, long or not what it seems."""
    bombs = [
        b"[" * 100_000,
        b'{"type":' * 20_000,
        b'{"type": "session.update", "session": {"seed": ' + b"9" * 100_000 + b"}}",
        b'{"type": "session.update", "session": {"temperature": 1e999}}',
        b'{"type": "session.update", "session": {' + b",".join(b'"k%d": 1' % n for n in range(9000)) + b"}}",
        b'{"event": "media", "media": {"payload": "' + b"A" * 200_000 + b'"}}',
        b'"\xed\xa0\x80"',
    ]
    chosen = [bombs[random.randint(len(bombs))] for _ in range(random.randint(1, 4))]
    return request(path) + b"".join(frame(TEXT, content) for content in chosen)


def long(path: str, random: np.random.RandomState) -> bytes:
    """A call that begins properly and then sends as much sound at once as a message holds."""
    start = call("/v1/telephony", random)[0]
    media = {"event": "media", "media": {"payload": base64.b64encode(random.bytes(190_000)).decode()}}
    return request("/v1/telephony") + start + frame(TEXT, json.dumps(media).encode()) * random.randint(1, 5)


def ogg(path: str, random: np.random.RandomState) -> bytes:
    """Sound whose pages are broken, cut or in the wrong order."""
    frames = call("/api/chat", random)
    broken = []
    for one in frames[:-1]:
        page = bytearray(one)
        for _ in range(random.randint(4)):
            page[random.randint(8, len(page))] = random.randint(256)
        broken.append(bytes(page))
    random.shuffle(broken)
    return request("/api/chat") + b"".join(broken)


def slow(path: str, random: np.random.RandomState) -> bytes:
    """A request without an end."""
    return request(path)[: random.randint(1, 60)]


ABUSES = (cut, cut, cut, flip, noise, large, bomb, long, ogg, slow)


async def abuse(port: int, number: int, seed: int, found: Found) -> None:
    """Connect, send what this abuser sends in one to four pieces, and go without a word, at once or a little later."""
    random = np.random.RandomState((seed * 100_003 + number) % 2**32)
    kind = ABUSES[random.randint(len(ABUSES))]
    data = kind(PATHS[random.randint(len(PATHS))], random)
    found.abusers[kind.__name__] = found.abusers.get(kind.__name__, 0) + 1
    with contextlib.suppress(ConnectionError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            for piece in np.array_split(np.frombuffer(data, np.uint8), random.randint(1, 5)):
                writer.write(piece.tobytes())
                await writer.drain()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(2**20), random.choice([0.001, 0.02, 0.1]))
        finally:
            writer.transport.abort() if random.rand() < 0.7 else writer.close()


async def behave(port: int, stop: asyncio.Event) -> tuple[list[np.ndarray], bytes]:
    """Call, and say a frame when the last was answered, until told to stop; return what was said and heard."""
    random, said, heard = np.random.RandomState(1), [], b""
    async with aiohttp.ClientSession() as http, http.ws_connect(f"http://127.0.0.1:{port}/v1/realtime") as socket:
        await socket.receive_json()
        await socket.send_json({"type": "session.update", "session": {"audio": "binary", **GREEDY}})
        await socket.send_json({"type": "session.start"})
        while not stop.is_set():
            said.append((2000 * random.standard_normal(FRAME)).astype("<i2"))
            await socket.send_bytes(said[-1].tobytes())
            while len(heard) < 2 * FRAME * len(said):
                message = await socket.receive()
                if message.type is aiohttp.WSMsgType.BINARY:
                    heard += message.data
                else:
                    assert message.type is aiohttp.WSMsgType.TEXT, f"the call ended: {message}"
            await asyncio.sleep(0)
    return said, heard


def alone(artifact: runtime.Artifact, said: Sequence[np.ndarray]) -> bytes:
    """Return what the runtime says to the same sound, as the socket's bytes."""
    rows = runtime.Rows(artifact, SLOTS)
    sampling = {name: value for name, value in GREEDY.items() if name != "seed"}
    row = rows.open(runtime.CallOptions(GREEDY["seed"], sampling))
    down, up = Resampler(RATE, artifact.sample_rate), Resampler(artifact.sample_rate, RATE)
    pcm = down(np.concatenate(said).astype(np.float32) / 32768)
    frames = iter(pcm[: len(pcm) // artifact.frame_size * artifact.frame_size].reshape(-1, artifact.frame_size))
    batch, parts, waiting = np.zeros((SLOTS, artifact.frame_size), np.float32), [], next(frames, None)
    while waiting is not None:
        batch[row] = waiting
        tick = rows.step(batch)
        if tick.heard[row]:
            waiting = next(frames, None)
        if tick.ready[row]:
            parts.append((np.clip(up(tick.pcm[row]), -1, 1) * 32767).astype("<i2").tobytes())
    return b"".join(parts)


async def soak(artifact: runtime.Artifact, callers: int, seed: int = 0) -> Found:
    """Run a server, one caller who behaves and so many who do not, and return what was seen.

    Raises:
      AssertionError: on the first fault.
    """
    found, process = Found(), psutil.Process()
    server = Server(Engine(artifact, SLOTS), Settings(port=0, calls_per_minute=10**9))
    await server.start()
    await server.loaded()
    before, stop = len(asyncio.all_tasks()), asyncio.Event()
    behaving = asyncio.create_task(behave(server.port, stop))
    while server.engine.callers != 1:
        await asyncio.sleep(0.01)
    group = SLOTS - 1
    for first in range(0, callers, group):
        await asyncio.gather(
            *(abuse(server.port, number, seed, found) for number in range(first, min(first + group, callers)))
        )
        gone = time.monotonic()
        while server.engine.callers > 1:
            await asyncio.sleep(0.001)
        found.slot_seconds.append(time.monotonic() - gone)
        assert not behaving.done() and server.engine.failure is None, server.engine.failure
        if len(found.memory) < 10 * (first + group) // callers:
            gc.collect()
            found.memory.append(process.memory_info().rss / 2**20)
            print(f"{first + group:6d} callers  {found.memory[-1]:8.1f} MiB", flush=True)
    stop.set()
    said, heard = await behaving
    found.frames = len(said)
    assert heard == alone(artifact, said), "the caller who behaves heard something else than alone"
    while server.engine.callers:
        await asyncio.sleep(0.001)
    assert server.engine.rows.free_rows == SLOTS
    deadline = time.monotonic() + 15  # requests without an end are closed after 10 s
    while len(asyncio.all_tasks()) > before and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    found.tasks_left = len(asyncio.all_tasks()) - before
    await server.stop()
    return found


def table(found: Found) -> str:
    """Return what was seen as a Markdown table."""
    rows = {
        "callers who broke off or sent nonsense": sum(found.abusers.values()),
        "of them": ", ".join(f"{count} {name}" for name, count in sorted(found.abusers.items())),
        "until their slots were free, median / worst": " / ".join(
            f"{1000 * value:.0f}" for value in (np.median(found.slot_seconds), max(found.slot_seconds))
        )
        + " ms",
        "frames of the caller who behaves, all as without the others": found.frames,
        "resident memory after a tenth": f"{found.memory[0]:.1f} MiB",
        "resident memory at the end": f"{found.memory[-1]:.1f} MiB",
        "tasks left": found.tasks_left,
    }
    return "\n".join(["| figure | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--callers", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, help="write the figures into this Markdown page")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        artifact = runtime.load(build(*tiny_models(), Path(folder) / "artifact", batches=(SLOTS,)))
        found = asyncio.run(soak(artifact, options.callers, options.seed))
    print(table(found))
    if options.write:
        section = f"```\npython -m tools.soak.abuse --callers {options.callers} --write docs/reliability.md\n```\n\n"
        section += f"{machine()}.\n\n{table(found)}"
        options.write.write_text(fill(options.write.read_text(), {"abuse": section}))


if __name__ == "__main__":
    main()
