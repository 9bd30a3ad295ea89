"""Half-duplex calls: a turn ends by silence or by request, speech stops an answer, callers have caches of their own."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from moshijax.errors import ConfigError, MoshijaxError
from moshijax.runtime import CallOptions, answers, turns
from moshijax.runtime.answers import AnswerOptions, Answers
from moshijax.runtime.turns import TurnRows
from tests.export.test_answer import build
from tests.serve import calls

SIZE = 1280
SILENCE = np.zeros(SIZE, np.float32)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return answers.load(build(tmp_path_factory.mktemp("turns") / "artifact"))


@pytest.fixture(autouse=True)
def short_turns(monkeypatch):
    """Questions of the tests' model are up to a second long."""
    monkeypatch.setattr(turns, "PAUSE", 0.24)
    monkeypatch.setattr(turns, "SPEECH", 0.08)


@pytest.fixture(scope="module")
def rows(artifact):
    return TurnRows(artifact, 2, clock=lambda: 0.0)


def joined(rows):
    """A call that has joined: its first tick hears nothing."""
    row = rows.open(CallOptions(seed=3))
    assert not rows.hears_next(row)
    rows.step(np.ones((2, SIZE), np.float32), np.arange(2) == row.slot)
    assert rows.hears_next(row)
    return row


@pytest.fixture
def row(rows):
    row = joined(rows)
    yield row
    rows.close(row)


def noise(frames: int, seed: int = 0) -> list[np.ndarray]:
    return list(0.2 * np.random.RandomState(seed).randn(frames, SIZE).astype(np.float32))


def ticks(rows, row, frames):
    """Let one row hear frames, and return what it said: sound, text and phases."""
    pcm, text, phases, cuts = [], "", [], []
    for frame in frames:
        heard = np.zeros((rows.batch, SIZE), np.float32)
        heard[row] = frame
        active = np.arange(rows.batch) == row.slot
        said = rows.step(heard, active)
        pcm.append(said.pcm[row])
        text += said.turns.text[row.slot]
        phases.append(said.turns.phase[row.slot])
        cuts.append(bool(said.turns.cut[row.slot]))
    return np.concatenate(pcm), text, phases, cuts


def answer(artifact, frames, seed=3):
    pieces = list(Answers(artifact).answer(np.concatenate(frames), AnswerOptions(seed)))
    return np.concatenate([piece.pcm for piece in pieces]), "".join(piece.text for piece in pieces)


def test_silence_ends_a_turn_and_the_answer_is_that_of_the_question(rows, row, artifact):
    question = [*noise(5), *[SILENCE] * 3]
    want, words = answer(artifact, question)
    pcm, text, phases, cuts = ticks(rows, row, [*question, *[SILENCE] * 20])
    assert phases[:7] == ["listening"] * 7 and phases[7] == "speaking" and phases[-1] == "listening" and not any(cuts)
    at = 7 * SIZE  # it begins in the tick in which the turn ends
    np.testing.assert_allclose(pcm[at : at + len(want)], want, atol=1e-6)
    assert not pcm[:at].any() and not pcm[at + len(want) :].any() and text == words
    # The next question is another one.
    again, _, phases, _ = ticks(rows, row, [*noise(4, 1), *[SILENCE] * 20])
    assert "speaking" in phases and again.any()


def test_a_turn_that_the_caller_ends(rows, row, artifact):
    rows.end_turn(row)  # nothing was said
    question = noise(5)
    _, _, phases, _ = ticks(rows, row, question)
    assert set(phases) == {"listening"}
    rows.end_turn(row)
    want, _ = answer(artifact, question)
    pcm, _, phases, _ = ticks(rows, row, [SILENCE] * 20)
    assert phases[0] == "speaking"
    np.testing.assert_allclose(pcm[: len(want)], want, atol=1e-6)


def test_speech_stops_an_answer_and_begins_the_next_turn(rows, row, artifact):
    ticks(rows, row, noise(5))
    rows.end_turn(row)
    _, _, [phase], _ = ticks(rows, row, [SILENCE])
    assert phase == "speaking"
    speech = noise(4, 7)
    pcm, text, phases, cuts = ticks(rows, row, speech)
    assert cuts == [True, False, False, False] and set(phases) == {"listening"} and not pcm.any() and not text
    rows.end_turn(row)
    want, _ = answer(artifact, [SILENCE, *speech], seed=4)  # the second answer of the call
    pcm, *_ = ticks(rows, row, [SILENCE] * 20)
    np.testing.assert_allclose(pcm[: len(want)], want, atol=1e-6)


def test_an_interruption_without_speech(rows, row):
    ticks(rows, row, noise(5))
    rows.end_turn(row)
    ticks(rows, row, [SILENCE])
    rows.interrupt(row)
    pcm, text, phases, _ = ticks(rows, row, [SILENCE] * 4)
    assert set(phases) == {"listening"} and not pcm.any() and not text


def test_a_turn_is_no_longer_than_the_clip(rows, row, artifact):
    _, _, phases, _ = ticks(rows, row, noise(12))
    assert phases[:11] == ["listening"] * 11 and phases[11] == "speaking"


def test_silence_and_hum_are_no_turn(rows, row):
    hum = 0.003 * np.sin(np.arange(SIZE) * 0.05).astype(np.float32)
    _, _, phases, _ = ticks(rows, row, [*[SILENCE] * 20, *[hum] * 20])
    assert set(phases) == {"listening"}


def test_callers_at_the_same_time(rows, row, artifact):
    other = joined(rows)
    questions = noise(5), noise(5, 9)
    want = [answer(artifact, question) for question in questions]
    pcm, text = [[], []], ["", ""]
    for a, b in [*zip(*questions, strict=True), *[(SILENCE, SILENCE)] * 20]:
        frame = rows.step(np.stack([a, b] if row.slot == 0 else [b, a]))
        for number, each in enumerate((row, other)):
            pcm[number].append(frame.pcm[each])
            text[number] += frame.turns.text[each.slot]
            if len(pcm[number]) == 5:
                rows.end_turn(each)
    for number, (sound, words) in enumerate(want):
        got = np.concatenate(pcm[number])[5 * SIZE :]
        np.testing.assert_allclose(got[: len(sound)], sound, atol=1e-6)
        assert text[number] == words
    with pytest.raises(MoshijaxError, match="all 2 rows are open"):
        rows.open()
    rows.close(other)
    rows.close(other)
    with pytest.raises(ConfigError, match="closed"):
        rows.end_turn(other)


def test_a_call_over_the_network(artifact):
    """A turn that the caller ends, an answer in sound and text, and an interruption; a second caller meanwhile."""

    async def scenario():
        async with (
            calls.serving(artifact, 2, told=False) as server,
            calls.realtime(server, text_temperature=0.0) as one,
            calls.realtime(server) as two,
        ):
            created = next(event for event in one.events if event["type"] == "session.created")["session"]
            assert (
                created["use"] == "answer"
                and created["audio_out"]
                and set(created["sampling"])
                == {
                    "text_temperature",
                    "text_top_k",
                }
            )
            for client in (one, two):
                await client.converse(calls.speech(4, 1))
                await client.send("input_audio_buffer.commit")
                frame = bytes(2 * calls.SIZE)
                while not any(e.get("phase") == "speaking" for e in client.events):
                    await client.converse([frame])
                count = len(client.audio)
                await client.converse([frame] * 2)
                assert any(calls.floats(sound).any() for sound in client.audio[count - 2 :]) and client.text()
            await one.send("response.cancel")
            await one.next("response.cancelled")
            while one.events[-1].get("phase") != "listening":
                await one.converse([frame])
            await one.send("input_audio_buffer.commit")
            await one.converse([frame] * 3)
            assert not calls.floats(b"".join(one.audio[-2:])).any()  # nobody had asked anything
            phases = [event["phase"] for event in one.events if event["type"] == "turn.changed"]
            assert phases[0] == "listening" and phases[-1] == "listening" and "speaking" in phases
            assert (await one.end())["reason"] == "complete"

    asyncio.run(asyncio.wait_for(scenario(), 120))
