"""What the server itself costs: processor time per tick with a step that does nothing, and without callers.

    python -m tools.bench.serve

The server, in a process of its own, is the real one down to the rows of the runtime; only the compiled step is replaced
by one that returns at once. Callers over loopback sockets send 80 ms of sound every 80 ms, each at its own time.
Processor time is of all threads of the server's process, so other work on the machine hardly changes it.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import multiprocessing
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import sphn

from tools.bench import support
from tools.bench.caller import FRAME, FRAME_SECONDS, RATE, Script, call, tone_bursts

CALLERS = (1, 8, 32, 64)
TITLE = "The server around the step"


def artifact(folder: Path) -> Path:
    """Build a tiny artifact at 24 kHz, which needs no resampling, for the most callers."""
    from moshijax.export.artifact import build
    from moshijax.testing.tiny import CODEC, LM, tiny_models

    seanet = dataclasses.replace(CODEC.seanet, ratios=(8, 6, 5, 4))
    models = tiny_models(0, LM, dataclasses.replace(CODEC, sample_rate=RATE, seanet=seanet))
    return build(*models, folder / "artifact", batches=(max(CALLERS),))


def run_server(path: Path, pipe: Connection) -> None:
    """Serve until told to stop; answer every message on the pipe with the processor seconds and ticks so far."""
    from moshijax import runtime
    from moshijax.serve.engine import Engine
    from moshijax.serve.server import Server
    from moshijax.serve.settings import Settings

    async def serve() -> None:
        engine = Engine(runtime.load(path), max(CALLERS), prompts=False)
        server = Server(engine, Settings(port=0, calls_per_minute=10**9))
        await server.start()
        await server.loaded()
        nothing = _empty(engine.rows)
        engine.rows._step = lambda weights, state, inputs: (state, nothing)
        pipe.send(server.port)
        while await asyncio.to_thread(pipe.recv):
            pipe.send((time.process_time(), engine.stats.ticks))
        await server.stop()

    asyncio.run(serve())


def _empty(rows: Any) -> dict[str, np.ndarray]:
    """Return the outputs of a step in which every row said a quiet sound."""
    outputs = rows._nothing()
    outputs["pcm"] = np.tile(tone_bursts(FRAME_SECONDS, 0), (rows.batch, 1))
    return outputs | {"ready": np.ones(rows.batch, bool), "text_token": np.full(rows.batch, 3, np.int32)}


async def realtime(port: int, callers: int, seconds: float) -> list[float]:
    """Let callers of `/v1/realtime` talk; return seconds from each frame sent to its answer."""
    random, epoch = np.random.default_rng(0), asyncio.get_running_loop().time()
    voices = [tone_bursts(10, 0)]
    scripts = [
        Script(begins, seconds, (), 0, 0, number, False)
        for number, begins in enumerate(random.uniform(0, FRAME_SECONDS, callers))
    ]
    measured = await asyncio.gather(*(call(f"http://127.0.0.1:{port}", one, voices, epoch) for one in scripts))
    assert not any(one.refused or one.error for one in measured), measured
    return [delay for one in measured for delay in one.delays]


async def moshi(port: int, callers: int, seconds: float) -> list[float]:
    """Let callers of `/api/chat` talk in Opus that was encoded before."""
    writer = sphn.OpusStreamWriter(RATE)
    packets = tone_bursts(seconds, 0).reshape(-1, FRAME // 2)
    pages = [writer.append_pcm(packet) for packet in packets]
    frames = [b"\x01" + b"".join(pages[first : first + 2]) for first in range(0, len(pages), 2)]
    random = np.random.default_rng(0)

    async def talk(begins: float) -> None:
        async with aiohttp.ClientSession() as client:
            async with client.ws_connect(f"http://127.0.0.1:{port}/api/chat") as socket:
                begun = time.monotonic() + begins

                async def listen() -> None:
                    async for _ in socket:
                        pass

                listening = asyncio.create_task(listen())
                for number, content in enumerate(frames):
                    await asyncio.sleep(max(0.0, begun + number * FRAME_SECONDS - time.monotonic()))
                    await socket.send_bytes(content)
                await socket.close()
                await listening

    await asyncio.gather(*map(talk, random.uniform(0, FRAME_SECONDS, callers)))
    return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=16.0, help="for each number of callers")
    parser.add_argument("--note", default="", help="a sentence about the machine, such as other work on it")
    options = parser.parse_args()
    pipe, other = multiprocessing.get_context("spawn").Pipe()
    with tempfile.TemporaryDirectory() as folder:
        child = multiprocessing.get_context("spawn").Process(target=run_server, args=(artifact(Path(folder)), other))
        child.start()
        port = pipe.recv()

        def spent() -> tuple[float, int]:
            pipe.send(True)
            return pipe.recv()

        rows = []
        for callers in CALLERS:
            cells = [str(callers)]
            for talk in (realtime, moshi):
                before = spent()
                delays = asyncio.run(talk(port, callers, options.seconds))
                seconds, ticks = (after - start for after, start in zip(spent(), before))
                cells.append(f"{1000 * seconds / ticks:.2f} ms")
                if delays:
                    cells.append(" / ".join(f"{1000 * value:.0f}" for value in np.percentile(delays, (50, 99))) + " ms")
            rows.append(cells)
            print(cells, flush=True)
        before, began = spent(), time.monotonic()
        time.sleep(30)
        idle = (spent()[0] - before[0]) / (time.monotonic() - began)
        pipe.send(False)
        child.join()
    notes = [
        "The compiled step is replaced by one that returns at once. Processor time of the server's process per tick: "
        "sockets, sessions, the engine and the runtime's host side. From a frame sent to its answer received: with "
        "several callers most of it is the wait for the tick that they share. Without callers the server takes "
        f"{100 * idle:.2f} % of a core. {support.machine()}.",
        *([options.note] if options.note else []),
    ]
    head = ["callers", "per tick, PCM16", "from a frame to its answer, median / p99", "per tick, Opus"]
    support.write_section(TITLE, "python -m tools.bench.serve", notes, [head, *rows])


if __name__ == "__main__":
    main()
