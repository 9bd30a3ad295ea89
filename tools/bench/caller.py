"""Scripted callers, paced in real time: when each calls, what it says, when it stalls, and what it measures.

Everything that a caller does follows from the seed and its number. A stall is an uplink that stands still: nothing is
sent, then everything that was said meanwhile comes at once.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp
import numpy as np

RATE = 24_000
FRAME = 1920
FRAME_SECONDS = FRAME / RATE
#: After a stall a caller has this long to be back in time before its gaps count again.
RECOVERY_SECONDS = 2.0


@dataclass(frozen=True)
class Script:
    """One call.

    Attributes:
      begins, ends: seconds from the start of the run.
      stalls: (second of the call, how long it lasts).
      recording, offset: which recording the caller plays, from which sample on, round and round.
      seed: of the model's answer.
      abrupt: the caller's connection breaks at the end, without a close.
    """

    begins: float
    ends: float
    stalls: tuple[tuple[float, float], ...]
    recording: int
    offset: int
    seed: int
    abrupt: bool


def scripts(caller: int, seconds: float, seed: int, recordings: Sequence[np.ndarray], steady: bool) -> list[Script]:
    """Return the calls of one caller, one after the other, until `seconds` are over.

    Args:
      caller: number; every one has calls of its own.
      seconds: length of the run.
      seed: of the run.
      recordings: to choose from.
      steady: one call for the whole time, without stalls, instead of joins, leaves and stalls at random.
    """
    random = np.random.default_rng((seed, caller))
    made, time = [], float(random.uniform(0, min(1.0, seconds / 4)))
    while time < seconds:
        length = seconds if steady else float(random.uniform(5, 60))
        ends = min(time + length, seconds)
        stalls = []
        at = float(random.exponential(20))
        while not steady and at + 6 < ends - time:
            stalls.append((at, float(random.uniform(0.2, 5))))
            at += stalls[-1][1] + RECOVERY_SECONDS + float(random.exponential(20))
        which = int(random.integers(len(recordings)))
        made.append(
            Script(
                time, ends, tuple(stalls), which, int(random.integers(len(recordings[which]))),
                int(random.integers(2**32)), bool(random.random() < 0.3),
            )
        )  # fmt: skip
        time = ends + float(random.uniform(0.1, 3))
    return made


@dataclass
class Measured:
    """What one call measured.

    Attributes:
      refused: why it was not let in; "" if it was.
      first_audio: seconds from the caller's first frame to the first sound of the answer; None if none came.
      gaps: seconds between sounds that followed each other, but for those during and just after a stall.
      delays: seconds from when the caller had sent the last frame that the model needed to when each sound came,
        likewise.
      sent, received, dropped: frames; dropped as the server told the caller.
      error: what went wrong, "" if nothing did.
    """

    refused: str = ""
    first_audio: float | None = None
    gaps: list[float] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)
    sent: int = 0
    received: int = 0
    dropped: int = 0
    error: str = ""


def tone_bursts(seconds: float, seed: int) -> np.ndarray:
    """Return a voice without words: bursts of a tone with harmonics, in the rhythm of syllables, with pauses."""
    random = np.random.default_rng(seed)
    parts = []
    while sum(len(part) for part in parts) < seconds * RATE:
        for _ in range(int(random.integers(3, 9))):
            time = np.arange(int(random.uniform(0.1, 0.3) * RATE)) / RATE
            pitch = random.uniform(100, 220)
            voice = sum(np.sin(2 * np.pi * pitch * n * time) / n for n in (1, 2, 3, 5))
            parts.append(0.1 * voice * np.hanning(len(time)))
        parts.append(np.zeros(int(random.uniform(0.5, 1.5) * RATE)))
    return np.concatenate(parts)[: int(seconds * RATE)].astype(np.float32)


async def call(url: str, script: Script, recordings: Sequence[np.ndarray], epoch: float) -> Measured:
    """Make one call and return what it measured.

    Args:
      url: of the server, http or https.
      script: what to do.
      recordings: float32 at `RATE`.
      epoch: when the run began, in the time of the event loop.
    """
    measured = Measured()
    await _until(epoch + script.begins)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False)) as client:
        try:
            async with client.ws_connect(f"{url}/v1/realtime") as socket:
                created = json.loads(await socket.receive_str())
                if created["type"] == "error":
                    measured.refused = created["error"]["message"]
                    return measured
                await socket.send_json({"type": "session.update", "session": {"audio": "binary", "seed": script.seed}})
                sent_at: list[float] = []
                delay = created["session"]["delay_ms"] / 1000
                begun = asyncio.get_running_loop().time()
                receiving = asyncio.create_task(_receive(socket, script, measured, begun, sent_at, delay))
                await _speak(socket, script, recordings[script.recording], begun, sent_at)
                measured.sent = len(sent_at)
                if script.abrupt:
                    await client.connector.close()
                await socket.close()
                await receiving
        except aiohttp.WSServerHandshakeError as error:
            measured.refused = f"{error.status}: {error.message}"
        except (aiohttp.ClientError, ConnectionError) as error:
            measured.error = str(error) or type(error).__name__
    return measured


async def _until(moment: float) -> None:
    await asyncio.sleep(max(0.0, moment - asyncio.get_running_loop().time()))


async def _speak(
    socket: aiohttp.ClientWebSocketResponse, script: Script, recording: np.ndarray, begun: float, sent_at: list[float]
) -> None:
    """Send a frame when its 80 ms are over; in a stall nothing, and then all that was not sent."""
    now = asyncio.get_running_loop().time
    for frame in range(int((script.ends - script.begins) / FRAME_SECONDS)):
        moment = (frame + 1) * FRAME_SECONDS
        moment = max([moment, *(at + lasts for at, lasts in script.stalls if at <= moment < at + lasts)])
        await _until(begun + moment)
        if socket.closed:
            return
        places = np.arange(script.offset + frame * FRAME, script.offset + (frame + 1) * FRAME)
        samples = np.take(recording, places, mode="wrap")
        sent_at.append(now())
        await socket.send_bytes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())


async def _receive(
    socket: aiohttp.ClientWebSocketResponse,
    script: Script,
    measured: Measured,
    begun: float,
    sent_at: list[float],
    delay: float,
) -> None:
    """Note when sounds come, until the connection ends."""
    now = asyncio.get_running_loop().time
    last, behind = None, round(delay / FRAME_SECONDS) - 1  # the delay counts from the beginning of a frame
    async for message in socket:
        if message.type is aiohttp.WSMsgType.TEXT:
            event = json.loads(message.data)
            if event["type"] == "input_audio_buffer.dropped":
                measured.dropped += event["frames"]
            elif event["type"] == "error":
                measured.error = event["error"]["message"]
            continue
        moment = now()
        if measured.first_audio is None:
            measured.first_audio = moment - sent_at[0]
        second = moment - begun
        if not any(at <= second < at + lasts + RECOVERY_SECONDS for at, lasts in script.stalls):
            if last is not None:
                measured.gaps.append(moment - last)
            # The sound of frame n was made when the model had heard that many more; dropped ones it never hears.
            heard = measured.received + measured.dropped + behind
            if heard < len(sent_at):
                measured.delays.append(moment - sent_at[heard])
        last, measured.received = moment, measured.received + 1
