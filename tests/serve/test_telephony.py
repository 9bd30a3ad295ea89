"""Media streams of telephone platforms: the model hears what the bytes say, and its own voice comes back in packets."""

from __future__ import annotations

import asyncio
import base64
import json

import aiohttp
import numpy as np
import pytest

from moshijax import runtime
from moshijax.g711 import A_LAW, MU_LAW, PACKET
from moshijax.serve.resample import Resampler
from moshijax.serve.server import Server
from moshijax.serve.session import BACKLOG
from tests.serve.calls import all_heard, serving, until, url

FRAMES = 12


def start(law=MU_LAW, **parameters: str) -> str:
    form = {"encoding": f"audio/x-{law.name}", "sampleRate": 8000, "channels": 1}
    return json.dumps(
        {"event": "start", "streamSid": "MZ1", "start": {"mediaFormat": form, "customParameters": parameters}}
    )


def media(payload: bytes, track: str = "inbound") -> str:
    return json.dumps(
        {"event": "media", "streamSid": "MZ1", "media": {"track": track, "payload": base64.b64encode(payload).decode()}}
    )


def voice(law, frames: int) -> list[bytes]:
    """The packets of a caller's voice."""
    noise = 0.2 * np.random.default_rng(3).standard_normal(frames * 640)
    data = law.encode(noise)
    return [data[start : start + PACKET] for start in range(0, len(data), PACKET)]


async def answers(server: Server, law, packets: list[bytes], size: int, **parameters: str) -> bytes:
    """Call, say the packets, each when what came before was heard, and return so many bytes of what comes back."""
    async with aiohttp.ClientSession() as http, http.ws_connect(url(server, "/v1/telephony")) as socket:
        await socket.send_str(json.dumps({"event": "connected", "protocol": "Call", "version": "1.0.0"}))
        await socket.send_str(start(law, **parameters))

        async def speak() -> None:
            for packet in packets:
                await socket.send_str(media(packet))
                await all_heard(server)

        speaking, heard = asyncio.create_task(speak()), b""
        while len(heard) < size:
            message = await socket.receive_json()
            assert message["event"] == "media" and message["streamSid"] == "MZ1"
            payload = base64.b64decode(message["media"]["payload"])
            assert len(payload) == PACKET
            heard += payload
        await speaking
        await socket.send_str(json.dumps({"event": "stop"}))
        closed = await socket.receive()
        assert socket.close_code == 1000, closed
    return heard


@pytest.mark.parametrize("law", [MU_LAW, A_LAW], ids=["mulaw", "alaw"])
def test_a_call_hears_and_says_what_the_runtime_does_with_the_same_sound(loaded, rows4, law) -> None:
    packets = voice(law, FRAMES)
    pcm = Resampler(8000, loaded.sample_rate)(law.decode(b"".join(packets))).reshape(-1, loaded.frame_size)
    row = rows4.open(runtime.CallOptions(seed=11, sampling={"temperature": 0.0, "text_temperature": 0.0}))
    batch, said, sent = np.zeros((4, loaded.frame_size), np.float32), [], 0
    while sent < len(pcm):
        batch[row] = pcm[sent]
        frame = rows4.step(batch)
        sent += int(frame.heard[row])
        if frame.ready[row]:
            said.append(frame.pcm[row])
    rows4.close(row)
    expected = law.encode(Resampler(loaded.sample_rate, 8000)(np.concatenate(said)))

    async def call() -> bytes:
        async with serving(loaded, 4) as server:
            return await answers(server, law, packets, len(expected), seed="11", temperature="0", text_temperature="0")

    heard = asyncio.run(call())
    assert heard == expected and len(set(heard)) > 10


def test_of_a_long_piece_only_what_can_be_heard_is_worked_on_and_the_rest_is_counted(loaded, monkeypatch) -> None:
    lengths, resample = [], Resampler.__call__
    monkeypatch.setattr(Resampler, "__call__", lambda self, pcm: (lengths.append(len(pcm)), resample(self, pcm))[1])

    async def call() -> None:
        async with (
            serving(loaded, 4, told=False) as server,
            aiohttp.ClientSession() as http,
            http.ws_connect(url(server, "/v1/telephony")) as socket,
        ):
            await socket.send_str(start())
            await socket.send_str(media(bytes(300 * 640)))
            await until(lambda: server.engine.callers == 1)
            [session] = list(server.engine._admitted)
            await until(lambda: session.counts.heard + session.counts.dropped == 300)
            assert session.counts.dropped == 300 - BACKLOG

    asyncio.run(call())
    assert lengths and max(lengths) <= (BACKLOG + 1) * 640


@pytest.mark.parametrize("rate", [8000, 24000])
def test_the_telephone_band_comes_through_the_resampler(rate) -> None:
    """Flat within 0.03 dB to 3.4 kHz, 78 dB down from 4.7 kHz on, late by 2 ms each way."""
    impulse = np.zeros(480, np.float32)
    impulse[240] = 1.0
    up = Resampler(8000, 24000)(impulse)
    response = 20 * np.log10(np.abs(np.fft.rfft(up, 2**16)) / 3 + 1e-12)
    hertz = np.fft.rfftfreq(2**16, 1 / 24000)
    assert np.abs(response[hertz <= 3400]).max() < 0.03 and response[hertz >= 4700].max() < -78
    assert np.argmax(up) == 3 * 240 + 48

    tone = np.sin(2 * np.pi * 1000 * np.arange(rate) / rate).astype(np.float32)
    there = Resampler(8000, 24000) if rate == 8000 else Resampler(24000, 8000)
    back = Resampler(24000, 8000) if rate == 8000 else Resampler(8000, 24000)
    cuts = np.sort(np.random.default_rng(0).choice(rate, 60, replace=False))
    again = np.concatenate([back(there(piece)) for piece in np.split(tone, cuts)])
    late = 2 * 16 * rate // 8000
    np.testing.assert_allclose(again[late + 200 :], tone[200 : len(again) - late], atol=2e-4)


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        (["{"], "the message is not JSON"),
        (["[" * 100_000], "the message is not JSON"),
        (["3"], "unknown event 'None'"),
        (['{"event": "hello"}'], "unknown event 'hello'; known: start, media, stop"),
        ([media(b"1")], "media came before start"),
        ([start(), start()], "the stream MZ1 has started already"),
        (['{"event": "start"}'], "the message needs an object `start`"),
        (['{"event": "start", "start": {}}'], "start needs a `streamSid`"),
        (['{"event": "start", "streamSid": "a", "start": {"mediaFormat": {"encoding": "opus"}}}'], "cannot be used"),
        ([start(seed="many")], "seed must be a whole number"),
        ([start(temperature="-1")], "temperature=-1 is outside what the artifact allows"),
        ([start(voice_prompt="../secret")], "voice_prompt must be the name of a voice of this server"),
        ([start(), media(b"1", track="outbound")], "track 'outbound' is not heard"),
        ([start(), '{"event": "media", "media": {"payload": "no base64!"}}'], "media needs a `payload` of base64"),
        ([b"bytes"], "a media stream has no binary messages"),
    ],
)
def test_messages_that_cannot_be_used_are_named_in_the_log_and_end_the_call_when_there_are_ten(
    loaded, caplog, messages, complaint
) -> None:
    async def call() -> None:
        async with (
            serving(loaded, 4) as server,
            aiohttp.ClientSession() as http,
            http.ws_connect(url(server, "/v1/telephony")) as socket,
        ):
            for message in messages + [messages[-1]] * 9:
                await (socket.send_bytes(message) if isinstance(message, bytes) else socket.send_str(message))
            closed = await socket.receive()
            assert (socket.close_code, closed.extra) == (1008, "bad_messages")
            await until(lambda: server.engine.callers == 0)

    with caplog.at_level("WARNING", "moshijax.serve"):
        asyncio.run(call())
    assert complaint in caplog.text
