"""The server over loopback sockets: both protocols, refusals, bad clients, and the end."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import signal
import ssl
import subprocess
import sys

import aiohttp
import numpy as np
import pytest
import sphn

from moshijax.errors import ConfigError, MoshijaxError
from moshijax.runtime import CallOptions
from moshijax.serve import realtime as protocols
from moshijax.serve import server as servers
from moshijax.serve import tls
from moshijax.serve.engine import Engine
from moshijax.serve.resample import Resampler
from moshijax.serve.settings import Prompts, Settings
from tests.serve.calls import GREEDY, SIZE, Realtime, all_heard, expected, floats, realtime, serving, speech, until, url


def run(scenario) -> None:
    asyncio.run(asyncio.wait_for(scenario, 120))


def test_a_realtime_call_is_the_call_of_the_runtime(loaded) -> None:
    """Text and sound are those of `play`, through JSON, base64, binary frames and both resamplers."""
    frames = speech(12, 1)
    text, sound = expected(loaded, 4, floats(b"".join(frames)), CallOptions(5, GREEDY))

    async def scenario():
        async with serving(loaded, 4) as server:
            async with realtime(server, seed=5, **GREEDY) as client:
                created = client.events[0]["session"]
                assert created["use"] == "conversation" and created["sample_rate"] == 24000
                assert created["sampling"]["top_k"] == {"default": 32, "min": 0, "max": 32}
                await client.converse(frames)
                assert client.text() == text
                said = floats(b"".join(client.audio))
                assert len(said) == 12 * SIZE and np.abs(said - sound.clip(-1, 1)).max() < 2 / 32767
                spoken = [event for event in client.events if event["type"] == "response.text.delta"]
                assert all(event["end_ms"] - event["start_ms"] == 80 for event in spoken)
                assert [event["start_ms"] for event in spoken] == sorted(event["start_ms"] for event in spoken)
                ended = await client.end()
                assert ended["reason"] == "complete" and ended["seconds"] == 0.96
                assert ended["frames_dropped"] == ended["frames_unsent"] == 0
                assert (await client.websocket.receive()).type is aiohttp.WSMsgType.CLOSE
                assert client.websocket.close_code == 1000
            async with aiohttp.ClientSession() as http, http.ws_connect(url(server, "/v1/realtime")) as websocket:
                client = Realtime(websocket)  # base64 both ways, in pieces that are no frames
                await client.send("session.update", session={"seed": 5, **GREEDY})
                await client.send("session.start")
                await client.next("session.started")
                stream = b"".join(frames)
                for start in range(0, len(stream), 2000):
                    await client.send(
                        "input_audio_buffer.append", audio=base64.b64encode(stream[start : start + 2000]).decode()
                    )
                    await all_heard(server)
                deltas = [await client.next("response.audio.delta") for _ in range(12)]
                assert [delta["start_ms"] for delta in deltas] == [80 * number for number in range(12)]
                assert b"".join(base64.b64decode(delta["audio"]) for delta in deltas) == b"".join(
                    (sound.clip(-1, 1) * 32767).astype("<i2").reshape(12, -1)[number].tobytes() for number in range(12)
                )

    run(scenario())


def test_clients_of_moshi_connect_unchanged(loaded) -> None:
    """Byte frames of `/api/chat`: handshake, Ogg/Opus both ways, text; sampling from the query."""
    writer, pages = sphn.OpusStreamWriter(24000), []
    for frame in speech(10, 2):
        pages += [writer.append_pcm(part) for part in floats(frame).reshape(2, -1)]
    reader = sphn.OpusStreamReader(24000)
    heard = np.concatenate([reader.append_bytes(page) for page in pages])
    text, sound = expected(loaded, 4, heard, CallOptions(9, GREEDY))

    async def scenario():
        async with serving(loaded, 4) as server, aiohttp.ClientSession() as http:
            query = {
                "text_temperature": 0,
                "audio_temperature": 0,
                "text_seed": -1,
                "audio_seed": 9,
                "repetition_penalty": 1,
            }
            async with http.ws_connect(url(server, "/api/chat"), params=query) as websocket:
                assert await websocket.receive_bytes() == b"\x00"
                ours, said, words = sphn.OpusStreamReader(24000), [], ""
                await websocket.send_bytes(b"")
                await websocket.send_bytes(b"\x03\x00")
                await websocket.send_bytes(b"\x09 from the future")
                stream = b"".join(pages)
                for start in range(0, len(stream), 333):  # cut anywhere
                    await websocket.send_bytes(b"\x01" + stream[start : start + 333])
                    await all_heard(server)
                while sum(map(len, said)) < 10 * SIZE or len(words) < len(text):
                    message = await websocket.receive_bytes()
                    if message[0] == 1:
                        said.append(ours.append_bytes(message[1:]))
                    else:
                        assert message[0] == 2
                        words += message[1:].decode()
                assert words == text
                # What Opus made of it is like it, late by its own delay.
                theirs = np.concatenate(said)
                lag = max(range(0, 1000), key=lambda n: float(theirs[n:] @ sound[: len(theirs) - n]))
                assert np.corrcoef(theirs[lag:], sound[: len(theirs) - lag])[0, 1] > 0.7

    run(scenario())


def test_the_fifth_caller_is_told_that_every_slot_is_taken(loaded) -> None:
    async def scenario():
        async with serving(loaded, 4) as server, aiohttp.ClientSession() as http:
            async with contextlib.AsyncExitStack() as calls:
                for _ in range(4):
                    await calls.enter_async_context(realtime(server))
                for path in ("/v1/realtime", "/api/chat"):
                    async with http.get(url(server, path)) as answer:
                        assert answer.status == 503
                        assert (await answer.json())["error"] == {
                            "code": "busy", "message": "all 4 slots are taken; call again later", "callers": 4
                        }  # fmt: skip
            await until(lambda: server.engine.callers == 0)
            async with realtime(server) as client:
                await client.converse(speech(2, 0))

    run(scenario())


def test_the_door(loaded) -> None:
    """Token, origin and rate, each with its reason; what a load balancer asks is answered to everybody."""

    async def scenario():
        settings = {"token": "open-sesame", "origins": ("https://friend.example",), "calls_per_minute": 6}
        async with serving(loaded, 4, **settings) as server, aiohttp.ClientSession() as http:

            async def status(path, **headers):
                async with http.get(url(server, path), headers=headers) as answer:
                    content = await answer.text()
                    return answer.status, (json.loads(content)["error"]["code"] if answer.status >= 400 else content)

            known = {"Authorization": "Bearer open-sesame"}
            for path in ("/v1/realtime", "/api/chat", "/api/info", "/metrics"):
                assert await status(path) == (401, "unauthorized")
                assert await status(path, Authorization="Bearer open-sesame2") == (401, "unauthorized")
            assert await status("/api/info?token=%ff") == (401, "unauthorized")
            assert (await status("/api/info?token=open-sesame"))[0] == 200
            assert "moshijax_slots 4.0" in (await status("/metrics", **known))[1]
            assert (await status("/health"))[0] == (await status("/ready"))[0] == (await status("/"))[0] == 200
            assert await status("/v1/realtime", Origin="https://foe.example", **known) == (403, "origin")
            async with http.ws_connect(
                url(server, "/v1/realtime?token=open-sesame"), origin=url(server, "")
            ) as websocket:
                assert (await websocket.receive_json())["type"] == "session.created"
            async with http.ws_connect(
                url(server, "/v1/realtime"), origin="https://friend.example", headers=known
            ) as websocket:
                assert (await websocket.receive_json())["type"] == "session.created"
            for _ in range(4):
                async with http.ws_connect(url(server, "/v1/realtime"), headers=known):
                    pass
            assert await status("/v1/realtime", **known) == (429, "rate")
            for path in ("/../pyproject.toml", "/%2e%2e/%2e%2e/pyproject.toml", "/page/index.html", "//etc/passwd"):
                async with http.get(url(server, path)) as answer:
                    assert answer.status == 404

    run(scenario())


BAD_EVENTS = [
    ("{", "invalid_json", "not JSON"),
    ("[" * 100_000, "invalid_json", "not JSON"),
    ('{"type": 1e999999}', "invalid_event", "string `type`"),
    ("[1]", "invalid_event", "must be a JSON object"),
    ('{"type": "nonsense"}', "unknown_event", "unknown event 'nonsense'; known: session.update"),
    ('{"type": "session.update"}', "invalid_value", "needs a `session` object"),
    ('{"type": "session.update", "session": {"temperature": -1}}', "invalid_value", "temperature=-1 is outside"),
    ('{"type": "session.update", "session": {"temperature": NaN}}', "invalid_value", "temperature must be a number"),
    ('{"type": "session.update", "session": {"temperature": 1%s}}' % ("0" * 400), "invalid_value", "must be a number"),
    ('{"type": "session.update", "session": {"temperature": 1%s}}' % ("0" * 300), "invalid_value", "is outside what"),
    ('{"type": "session.update", "session": {"top_k": 2.7}}', "invalid_value", "top_k must be a whole number"),
    ('{"type": "session.update", "session": {"temperatur": 1}}', "invalid_value", "did you mean temperature?"),
    ('{"type": "session.update", "session": {"seed": 1.5}}', "invalid_value", "seed must be a whole number"),
    ('{"type": "session.update", "session": {"seed": -1}}', "invalid_value", "seed -1 must be at least 0"),
    ('{"type": "session.update", "session": {"audio": "mp3"}}', "invalid_value", "audio must be one of base64, binary"),
    ('{"type": "session.update", "session": {"voice_prompt": "../x"}}', "invalid_value", "there are: none"),
    ('{"type": "session.update", "session": {"text_prompt": ""}}', "invalid_value", "a text of 1 to 2000 characters"),
    ('{"type": "input_audio_buffer.append"}', "invalid_value", "base64 of PCM16"),
    ('{"type": "input_audio_buffer.append", "audio": "AAA$"}', "invalid_value", "base64 of PCM16"),
    ('{"type": "input_audio_buffer.append", "audio": "AAAA"}', "odd_audio", "3 bytes are no whole PCM16 samples"),
    ('{"type": "input_audio_buffer.commit"}', "invalid_value", "only a translation has an end of input"),
    ('{"type": "input_text.append", "text": "a"}', "invalid_value", "takes no text"),
]


def test_bad_events_are_answered_and_the_tenth_ends_the_call(loaded) -> None:
    async def scenario():
        async with serving(loaded, 4) as server, aiohttp.ClientSession() as http:
            for message, code, sentence in BAD_EVENTS:
                async with http.ws_connect(url(server, "/v1/realtime")) as websocket:
                    await websocket.receive_json()
                    await websocket.send_str(message)
                    error = (await websocket.receive_json())["error"]
                    assert error["code"] == code and sentence in error["message"], (message[:100], error)
                await until(lambda: server.engine.callers == 0)  # (four at once are all there is room for)
            async with realtime(server) as client:
                await client.converse(speech(1, 0))
                await client.send("session.update", session={"seed": 1})
                assert "'seed' cannot change after the call" in (await client.next("error"))["error"]["message"]
                await client.send("session.update", session={"audio": "base64"})
                await client.next("session.updated")
                await client.send("ping", id=7)
                assert (await client.next("pong"))["id"] == 7
                for _ in range(9):
                    await client.send("nonsense")
                assert (await client.next("session.ended"))["reason"] == "bad_messages"
                await client.websocket.receive()
                assert client.websocket.close_code == 1008
            for size in (300_000, 10_000_000):
                async with http.ws_connect(url(server, "/v1/realtime")) as websocket:
                    await websocket.receive_json()
                    with contextlib.suppress(ConnectionError):  # (the server does not wait for the rest)
                        await websocket.send_bytes(bytes(size))
                    async for _ in websocket:
                        pass
            await until(lambda: server.engine.callers == 0)
            assert server.engine.stats.endings["too_large_a_message"] == 2

    run(scenario())


SEEDS = (None, 1, -1, 1.5, "x", [], {}, [[]])


@pytest.mark.parametrize("path", ["/v1/realtime", "/api/chat"])
def test_random_bytes_end_nothing_but_their_own_call(loaded, path) -> None:
    frames = speech(40, 3)
    text, _ = expected(loaded, 4, floats(b"".join(frames)), CallOptions(5, GREEDY))

    async def throw(server, seed):
        random = np.random.RandomState(seed)
        async with aiohttp.ClientSession() as http, http.ws_connect(url(server, path)) as websocket:
            for _ in range(random.randint(1, 20)):
                content = random.bytes(random.choice([0, 1, 2, 100, 5000]))
                kind = random.randint(4)
                if kind == 0:
                    await websocket.send_str(content.decode("latin-1"))
                elif kind == 1:
                    await websocket.send_bytes(content)
                elif kind == 2:  # sound whose pages are broken
                    page = bytearray(sphn.OpusStreamWriter(24000).append_pcm(np.zeros(960, np.float32)))
                    for _ in range(random.randint(1, 9)):
                        page[random.randint(len(page))] = random.randint(256)
                    await websocket.send_bytes(b"\x01" + bytes(page))
                else:
                    event = {"type": "session.update", "session": {"seed": SEEDS[random.randint(len(SEEDS))]}}
                    await websocket.send_str(json.dumps(event))
            if random.rand() < 0.5:
                websocket._response.connection.transport.abort()

    async def scenario():
        async with serving(loaded, 4) as server:
            async with realtime(server, seed=5, **GREEDY) as client:
                throwing = asyncio.create_task(_several(throw, server, 40))
                await client.converse(frames)
                await throwing
                assert client.text() == text
            # Frames of the WebSocket layer itself, and of no protocol at all.
            random = np.random.RandomState(0)
            for number in range(20):
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                if number % 2:
                    writer.write(
                        f"GET {path} HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
                    )
                writer.write(random.bytes(random.randint(1, 3000)))
                writer.close()
            await until(lambda: server.engine.callers == 0)
            assert server.engine.failure is None and "error" not in server.engine.stats.endings
            async with realtime(server) as client:
                await client.converse(speech(2, 0))

    async def _several(throw, server, count):
        for seed in range(0, count, 2):  # two at a time; the third slot is the caller's
            results = await asyncio.gather(throw(server, seed), throw(server, seed + 1), return_exceptions=True)
            for result in results:
                assert result is None or isinstance(result, (aiohttp.ClientError, ConnectionError)), result
            await until(lambda: server.engine.callers <= 1)

    run(scenario())


def test_abrupt_disconnects_leave_nothing_behind(loaded) -> None:
    async def scenario():
        random = np.random.RandomState(1)
        async with serving(loaded, 4) as server:
            before = len(asyncio.all_tasks())

            async def vanish(number):
                path = "/v1/realtime" if number % 2 else "/api/chat"
                async with aiohttp.ClientSession() as http:
                    websocket = await http.ws_connect(url(server, path))
                    for _ in range(random.randint(6)):
                        await (
                            websocket.send_bytes(speech(1, number)[0]) if number % 2 else websocket.send_bytes(b"\x01")
                        )
                        await asyncio.sleep(random.choice([0, 0.01]))
                    websocket._response.connection.transport.abort()

            for number in range(60):
                await vanish(number)
                if number % 4 == 3:
                    await until(lambda: server.engine.callers == 0)
            await until(lambda: len(asyncio.all_tasks()) == before)
            assert server.engine.rows.free_rows == 4 and not server._calls
            assert sum(server.engine.stats.endings.values()) == 60

    run(scenario())


def test_a_caller_who_takes_nothing_is_hung_up_on(loaded) -> None:
    async def scenario():
        async with serving(loaded, 4, stall_seconds=0.3, messages_per_second=1e6) as server:
            # The answers to pings fill the system's buffers.
            async with realtime(server) as client:
                client.websocket._response.connection.transport.pause_reading()
                with contextlib.suppress(ConnectionError):
                    while server.engine.callers:
                        await client.send("ping", id="x" * 100_000)
                        await asyncio.sleep(0)
                await until(lambda: not server.engine.callers)
                assert server.engine.stats.endings == {"slow_reader": 1}

    run(scenario())


def test_callers_who_say_nothing_or_too_much_are_hung_up_on(loaded, monkeypatch) -> None:
    monkeypatch.setattr(servers, "HEADER_SECONDS", 0.2)

    async def scenario():
        async with serving(loaded, 4, idle_seconds=0.2, messages_per_second=20) as server:
            async with realtime(server) as client:
                assert (await client.next("session.ended"))["reason"] == "idle"
            async with realtime(server) as client:
                for _ in range(300):
                    await client.send("ping", id=1)
                assert (await client.next("session.ended"))["reason"] == "too_many_messages"
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"GET /v1/realtime HTTP/1.1\r\nHost: a\r\n")
            assert await reader.read() == b""  # closed
            writer.close()
        async with serving(loaded, 4, call_seconds=0.3) as server:
            async with realtime(server) as client:
                assert (await client.next("session.ended"))["reason"] == "time_limit"

    run(scenario())


def test_answers_to_pings_do_not_keep_a_silent_call_alive(loaded, monkeypatch) -> None:
    monkeypatch.setattr(servers, "HEARTBEAT_SECONDS", 0.05)

    async def scenario():
        async with (
            serving(loaded, 4, told=False, idle_seconds=0.3, call_seconds=3) as server,
            realtime(server) as client,
        ):
            assert (await client.next("session.ended"))["reason"] == "idle"

    run(scenario())


def test_a_call_that_nobody_listens_to_any_more_ends(loaded, monkeypatch) -> None:
    async def cancelled(self, event):
        raise asyncio.CancelledError

    monkeypatch.setitem(protocols.Realtime._handlers, "ping", cancelled)

    async def scenario():
        async with serving(loaded, 4, told=False, call_seconds=3) as server, realtime(server) as client:
            await client.send("ping")
            assert (await client.next("session.ended"))["reason"] == "client_left"

    run(scenario())


def test_an_engine_that_fails_as_soon_as_calls_are_taken_ends_the_server(loaded) -> None:
    async def scenario():
        server = servers.Server(Engine(loaded, 4, prompts=False), Settings(port=0))
        await server.start()

        def ready() -> None:
            server.engine.failure = RuntimeError("gone")
            server._changed.set()

        with pytest.raises(MoshijaxError, match="the engine failed: gone"):
            await asyncio.wait_for(server.serve_until_signalled(ready), 20)

    run(scenario())


def test_an_interruption_is_answered(loaded) -> None:
    async def scenario():
        async with serving(loaded, 4) as server, realtime(server) as client:
            await client.converse(speech(2, 0))
            await client.send("response.cancel")
            await client.next("response.cancelled")
            await client.converse(speech(2, 0))

    run(scenario())


def test_prompts_are_asked_for_by_name(loaded, tmp_path) -> None:
    from moshijax.runtime import audio, prompt
    from moshijax.serve.launch import read_prompts

    audio.write(tmp_path / "anna.wav", np.random.RandomState(0).randn(3600, 1) * 0.1, 8000)
    prompts = read_prompts(tmp_path, loaded, 100)
    frames = speech(6, 4)
    begins = prompt.make(loaded, prompts.voices["anna"], None)
    text, _ = expected(loaded, 4, floats(b"".join(frames)), CallOptions(5, GREEDY, prompt=begins))

    async def scenario():
        async with (
            serving(loaded, 4, prompts=prompts) as server,
            realtime(server, voice_prompt="anna", seed=5, **GREEDY) as client,
        ):
            assert client.events[0]["session"]["voice_prompts"] == ["anna"]
            await client.converse(frames)
            assert client.text() == text

    run(scenario())


def test_a_prompt_that_is_too_long_is_refused_before_the_call_begins(loaded) -> None:
    """The caller is told why, keeps the slot, and may ask for another."""
    voice = np.random.RandomState(0).randn(8000).astype(np.float32) * 0.1

    async def scenario():
        prompts = Prompts({"long": voice})
        async with serving(loaded, 4, prompts=prompts) as server, realtime(server) as client:
            await client.send("session.update", session={"voice_prompt": "long", "seed": 5})
            error = (await client.next("error"))["error"]
            assert "it must be at most 0.5 s" in error["message"] and error["param"] == "session"
            await client.send("session.update", session={"audio": None})
            settings = (await client.next("session.updated"))["session"]
            assert (settings["audio"], settings["voice_prompt"], settings["seed"]) == ("base64", None, None)
            await client.send("session.update", session={"audio": "binary"})
            await client.converse(speech(1, 0))

    run(scenario())


def test_https_with_a_certificate_made_here(loaded, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(servers, "HEADER_SECONDS", 1.0)
    certificate, key = tls.own_certificate(tmp_path / "tls")
    assert key.stat().st_mode & 0o077 == 0
    assert tls.own_certificate(tmp_path / "tls") == (certificate, key), "browsers know it from the last time"
    made = certificate.read_bytes()
    with pytest.raises(ConfigError, match="give a PEM certificate and its key"):
        tls.context(certificate, certificate)
    trusting = ssl.create_default_context(cafile=certificate)

    async def scenario():
        async with serving(loaded, 4, tls=tls.context(certificate, key)) as server, aiohttp.ClientSession() as http:
            for host in ("localhost", "127.0.0.1"):
                address = f"https://{host}:{server.port}/v1/realtime"
                async with http.ws_connect(address, ssl=trusting) as websocket:
                    assert (await websocket.receive_json())["type"] == "session.created"
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(), 30) == b"", "who never shakes hands is hung up on"
            writer.close()

    run(scenario())
    assert certificate.read_bytes() == made


def test_sigterm_lets_calls_end_and_refuses_new_ones(artifact_dir, tmp_path) -> None:
    """A process of its own, by its command; the second caller is told why, the first one finishes."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "moshijax.cli.main", "serve", str(artifact_dir), "--port", "0", "--calls", "1"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "takes calls" in line:
                break
        assert re.search(r"http://localhost:(\d+) is loading .* for 1 call at once", lines[0]), lines
        assert re.search(r"\d+ (compiled programs read from|programs compiled, \d+ read, all kept in) .*", lines[1]), (
            lines
        )
        port = int(re.search(r"localhost:(\d+)", lines[0])[1])

        async def scenario():
            async with (
                aiohttp.ClientSession() as http,
                http.ws_connect(f"http://127.0.0.1:{port}/v1/realtime") as websocket,
            ):
                client = Realtime(websocket)
                await client.next("session.created")
                await client.send("session.update", session={"audio": "binary"})
                await client.converse(speech(2, 0))
                process.send_signal(signal.SIGTERM)
                code = None
                while code != "draining":
                    async with http.get(f"http://127.0.0.1:{port}/v1/realtime") as answer:
                        code = (await answer.json())["error"]["code"]
                    assert code in ("busy", "draining")
                await client.converse(speech(2, 0))
                assert (await client.end())["reason"] == "complete"

        try:
            run(scenario())
            rest = process.stdout.read()
            assert process.wait() == 0 and "no more calls; 1 may continue" in rest
            assert re.search(
                r"call \w+ from 127.0.0.1 on /v1/realtime: .* s, complete; frames heard 4, dropped 0", rest
            )
        finally:
            process.kill()


def test_resampling_does_not_depend_on_the_pieces() -> None:
    stream = np.random.RandomState(0).randn(30_000).astype(np.float32)
    for source, target in ((24000, 8000), (8000, 24000), (24000, 16000), (16000, 24000), (48000, 24000)):
        whole = Resampler(source, target)(stream)
        random, cut, pieces = np.random.RandomState(1), Resampler(source, target), []
        rest = stream
        while len(rest):
            size = random.randint(700)  # 0 among them
            pieces.append(cut(rest[:size]))
            rest = rest[size:]
        np.testing.assert_array_equal(np.concatenate(pieces), whole)
        assert len(whole) == len(stream) * target // source


@pytest.mark.parametrize("rates", [(24000, 8000), (8000, 24000), (24000, 16000)])
def test_resampling_keeps_a_tone_and_nothing_else(rates) -> None:
    source, target = rates
    tone = np.sin(2 * np.pi * 440 * np.arange(source) / source).astype(np.float32)
    out = Resampler(source, target)(tone)[target // 4 :]
    spectrum = np.abs(np.fft.rfft(out * np.hanning(len(out)))) ** 2
    hertz = np.fft.rfftfreq(len(out), 1 / target)
    near = np.abs(hertz - 440) < 10
    assert hertz[spectrum.argmax()] == pytest.approx(440, abs=2)
    assert 10 * np.log10(spectrum[~near].sum() / spectrum[near].sum()) < -80
    assert np.sqrt((out**2).mean()) == pytest.approx(np.sqrt(0.5), rel=2e-3)
