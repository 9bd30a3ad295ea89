"""Recognition, synthesis and translation in live calls: what `play` and `speak` return, through a socket."""

from __future__ import annotations

import asyncio
import dataclasses

import numpy as np
import pytest

from moshijax import lm, runtime
from moshijax.export import artifact
from moshijax.lm import policies
from moshijax.runtime import CallOptions, Rows, script
from moshijax.runtime.play import play, speak
from moshijax.runtime.text import Pieces
from moshijax.serve.resample import Resampler
from moshijax.testing import tiny
from tests.runtime.test_uses import tokenizer
from tests.serve.calls import GREEDY, all_heard, floats, realtime, serving, speech

pytestmark = pytest.mark.slow
OPTIONS = [CallOptions(5, GREEDY)]


def run(scenario) -> None:
    asyncio.run(asyncio.wait_for(scenario, 120))


def test_recognition_hears_and_writes(tmp_path) -> None:
    config = dataclasses.replace(
        tiny.LM, layout=lm.layouts.recognition(3), depth=None, extra_heads=2, extra_heads_dim=3
    )
    policy = policies.Recognition(text_delay=0.4, silence=0.16)
    models = tiny.tiny_models(lm_config=config)
    hearing = runtime.load(artifact.build(*models, tmp_path / "hearing", policy=policy, prefill_lengths=(4,)))
    frames = speech(20, 1)
    [call], _ = play(
        Rows(hearing, 1, prompts=False), [Resampler(24000, 8000)(floats(b"".join(frames)))], OPTIONS, tail_seconds=0.08
    )
    pieces = Pieces(hearing)
    words = [(pieces.feed(int(token)), round(80 * frame - 560)) for frame, token in enumerate(call.text_tokens)]
    words = [(text, max(0, start)) for text, start in words if text]
    assert len(words) > 5

    async def scenario():
        async with (
            serving(hearing, 1, told=False, messages_per_second=1e6) as server,
            realtime(server, seed=5, **GREEDY) as client,
        ):
            assert client.events[0]["session"]["audio_out"] is False
            await client.send("session.start")
            await client.next("session.started")
            for frame in frames:
                await client.websocket.send_bytes(frame)
                await all_heard(server)
            await client.send("input_text.append", text="abc")
            assert "this model takes no text" in (await client.next("error"))["error"]["message"]
            await client.end()
            heard = [event for event in client.events if event["type"] == "response.text.delta"]
            # (the last frames, of which the call without a server has one more, may be under way at the end)
            assert [(event["delta"], event["start_ms"]) for event in heard] == words[: len(heard)]
            assert len(heard) >= len(words) - 4
            heads = [np.array(event["values"]) for event in client.events if event["type"] == "response.heads"]
            np.testing.assert_allclose(heads, call.extra_heads[: len(heads)], atol=1e-4)
            assert not client.audio

    run(scenario())


def test_synthesis_takes_words_and_speaks(tmp_path) -> None:
    config = dataclasses.replace(tiny.LM, layout=lm.layouts.single_stream(3, acoustic_delay=1), demux_text=True)
    policy = policies.Synthesis(audio_delay=2, look_ahead=2, max_padding=3, final_padding=1, max_pieces=8)
    out = artifact.build(
        *tiny.tiny_models(lm_config=config),
        tmp_path / "speech",
        policy=policy,
        tokenizer=tokenizer(),
        prefill_lengths=(4,),
    )
    voice = runtime.load(out)
    [call], _ = speak(Rows(voice, 1, prompts=False), [script.words(voice, "abc bcd cde cab")], OPTIONS)
    sound = Resampler(voice.sample_rate, 24000)(call.pcm).clip(-1, 1)

    async def scenario():
        async with serving(voice, 1, told=False) as server, realtime(server, seed=5, **GREEDY) as client:
            await client.websocket.send_bytes(bytes(4))
            assert "takes no audio" in (await client.next("error"))["error"]["message"]
            await client.send("input_text.append", text=" ")
            assert "holds no word" in (await client.next("error"))["error"]["message"]
            await client.send("input_text.append", text="abc bcd cde cab", done=True)
            assert (await client.next("session.ended"))["reason"] == "complete"
            assert client.text() == " abc bcd cde cab"
            starts = [event["start_ms"] for event in client.events if event["type"] == "response.text.delta"]
            assert starts == [round(1000 * start) for _, start, _ in call.words]
            assert np.abs(floats(b"".join(client.audio)) - sound).max() < 2 / 32767

    run(scenario())


def test_translation_goes_on_after_its_input(tmp_path) -> None:
    out = artifact.build(
        *tiny.tiny_models(), tmp_path / "translator", policy=policies.Translation(), prefill_lengths=(4,)
    )
    translator, frames = runtime.load(out), speech(6, 2)
    [call], _ = play(
        Rows(translator, 1, prompts=False),
        [Resampler(24000, 8000)(floats(b"".join(frames)))],
        OPTIONS,
        tail_seconds=1.6,
    )
    pieces = Pieces(translator)
    text = "".join(pieces.feed(int(token)) for token in call.text_tokens)

    async def scenario():
        async with serving(translator, 1, told=False) as server, realtime(server, seed=5, **GREEDY) as client:
            await client.converse(frames)
            await client.send("input_audio_buffer.commit")
            await client.websocket.send_bytes(frames[0])
            assert (await client.next("error"))["error"]["code"] == "input_ended"
            while len(client.audio) < call.codes.shape[1] - call.complete:
                await client.next("response.text.delta", "session.ended")
            assert client.text().startswith(text[: len(client.text())]) and len(client.text()) > 10

    run(scenario())
