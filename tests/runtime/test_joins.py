"""What a call that joins costs the others: nothing. Prompts in blocks, ticks under way, one thread, no compilation."""

from __future__ import annotations

import collections
import threading

import jax
import numpy as np
import pytest

from moshijax.errors import ConfigError, MoshijaxError
from moshijax.runtime import CallOptions, Rows
from moshijax.runtime import prompt as prompts
from moshijax.runtime.play import play
from moshijax.runtime.programs import Program

FRAME = 640
SAMPLED = {"temperature": 0.9, "text_temperature": 0.9, "top_k": 20, "text_top_k": 20}
GREEDY = {"temperature": 0.0, "text_temperature": 0.0}


def noise(frames, seed=0):
    return (np.random.RandomState(seed).randn(frames, FRAME) * 0.3).astype(np.float32)


def columns(length, seed=0):
    """A prompt of any tokens, all of them known."""
    return np.random.RandomState(seed).randint(4, 32, (7, length)).astype(np.int32)


@pytest.fixture
def executed(monkeypatch):
    """How often each program was run, by name."""
    counts, call = collections.Counter(), Program.__call__

    def counted(self, *args):
        counts[self.name] += 1
        return call(self, *args)

    monkeypatch.setattr(Program, "__call__", counted)
    return counts


def test_sixteen_prompts_of_ten_seconds_cost_a_talker_no_step(rows4, executed):
    """Somebody talks while sixteen callers join one after the other: one step per tick, and the same codes as alone."""
    talk = noise(12)

    def feed(rows, row, sent):
        pcm = np.zeros((4, FRAME), np.float32)
        pcm[row] = talk[sent % len(talk)]
        return rows.submit(pcm)

    talker, joined, ticks, sent, heard = rows4.open(CallOptions(1, SAMPLED)), 0, 0, 0, []
    caller = rows4.open(CallOptions(2, prompt=columns(125)))
    while joined < 16:
        tick = feed(rows4, talker, sent)
        ticks += 1
        frame = tick.result()
        assert bool(frame.ready[talker]) == (ticks > 1)
        sent += tick.heard[talker]
        heard.append(frame.codes[talker])
        if tick.heard[caller]:
            rows4.close(caller)
            joined += 1
            caller = rows4.open(CallOptions(2 + joined, prompt=columns(125, joined)))
    rows4.close(caller)
    rows4.close(talker)
    assert executed["step"] == ticks and executed["step_tokens"] == 0
    assert executed["prefill"] == 16 * 8 and executed["place"] == 16

    alone, again, sent = rows4.open(CallOptions(1, SAMPLED)), [], 0
    for _ in range(40):
        tick = feed(rows4, alone, sent)
        sent += tick.heard[alone]
        again.append(tick.result().codes[alone])
    rows4.close(alone)
    np.testing.assert_array_equal(np.stack(again), np.stack(heard[:40]))


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_prompt_in_any_blocks_is_a_prompt_step_by_step(loaded, rows4, sampling):
    """Blocks of 4, of 16 with a rest, and `step_tokens` column by column: the same codes afterwards."""
    told, wave = columns(23), noise(10).reshape(-1)
    options = [CallOptions(5, sampling, prompt=told)]
    [by_16], _ = play(rows4, [wave], options)
    [by_4], _ = play(Rows(loaded, 4, block=4, blocks_per_tick=3), [wave], options)
    np.testing.assert_array_equal(by_4.codes, by_16.codes)
    np.testing.assert_array_equal(by_4.pcm, by_16.pcm)

    # The same call by hand: `step_tokens` for the columns of the prompt, then `step`.
    tokens, step, state = loaded.program("step_tokens", 4), loaded.program("step", 4), loaded.init_state(4)
    prompt, codes = prompts.PromptSteps(loaded, told), []
    assert prompt.certain == 23
    for n in range(24 + 10):
        program = tokens if n < 24 else step
        inputs = program.inputs()
        inputs["active"][0], inputs["seed"][0] = True, (0, 5)
        for name, value in sampling.items():
            inputs[name][0] = value
        if n < prompt.forced:
            inputs["force_text"][0], inputs["force_codes"][0] = prompt.text[n], prompt.codes[:, n]
        if n < 24:
            inputs["given"][0] = prompt.given[:, n]
        else:
            inputs["pcm"][0] = wave[(n - 24) * FRAME : (n - 23) * FRAME]
        state, outputs = program(loaded.weights, state, inputs)
        if n >= 24:
            codes.append(np.asarray(outputs["codes"])[0])
    np.testing.assert_array_equal(np.stack(codes, axis=1), by_16.codes)
    assert len(np.unique(by_16.codes[1])) > 3


def test_what_a_prompt_leaves_open_is_chosen_by_the_model(rows4, executed):
    """Free entries end the part that is gone through in blocks; the rest rides along in ordinary steps."""
    told, wave = columns(20), noise(6).reshape(-1)
    options = [CallOptions(5, SAMPLED, prompt=told)]
    [known], _ = play(rows4, [wave], options)
    steps = executed["step"]
    told[0, 11:] = -2
    [free], _ = play(rows4, [wave], options)
    assert executed["step"] - steps == steps + (20 - 11)
    assert known.codes.shape == free.codes.shape and (known.codes[:4] != free.codes[:4]).any()


def test_given_codes_ride_along_with_rows_that_hear(loaded):
    """In one step a row may take codes while another hears; the codes that a row heard give the same when given."""
    step, tokens, wave = loaded.program("step", 4), loaded.program("step_tokens", 4), noise(8)
    state, told = loaded.init_state(4), loaded.init_state(4)
    fresh = {name: np.asarray(value) for name, value in state.items() if name.startswith(("encoder", "decoder"))}
    given = np.random.RandomState(1).randint(0, 32, (8, 3))
    for n in range(8):
        inputs = step.inputs()
        inputs["active"][:2] = True
        inputs["pcm"][:2] = wave[n]
        inputs["given"][1] = given[n]
        state, outputs = step(loaded.weights, state, inputs)
        inputs = tokens.inputs()
        inputs["active"][1] = True
        inputs["given"][1] = given[n]
        told, expected = tokens(loaded.weights, told, inputs)
        np.testing.assert_array_equal(np.asarray(outputs["codes"])[1], np.asarray(expected["codes"])[1])
        assert not np.asarray(outputs["pcm"])[1].any()
    for name, value in fresh.items():
        np.testing.assert_array_equal(np.asarray(state[name])[1], value[1])
        np.testing.assert_array_equal(np.asarray(state[name])[2], value[2])


def test_ticks_under_way_change_nothing(rows4):
    """The next tick submitted before the last result is fetched: the same frames, in order."""
    wave = noise(20)

    def codes(under_way):
        row, ticks, got, sent = rows4.open(CallOptions(3, SAMPLED)), [], [], 0
        while sent < 20:
            pcm = np.zeros((4, FRAME), np.float32)
            pcm[row] = wave[sent]
            ticks.append(rows4.submit(pcm_BN=pcm))
            pcm[:] = 7.0  # the caller's array is its own again
            sent += ticks[-1].heard[row]
            if len(ticks) > under_way:
                got.append(ticks.pop(0).result().codes[row])
        got += [tick.result().codes[row] for tick in reversed(ticks)][::-1]
        rows4.close(row)
        return np.stack(got)

    np.testing.assert_array_equal(codes(0), codes(1))
    np.testing.assert_array_equal(codes(0), codes(5))


def test_no_audio_of_a_caller_is_lost(rows4):
    """A frame that a tick did not hear is sent again, and `heard` is known before the result is."""
    row = rows4.open()
    ticks = [rows4.submit(np.zeros((4, FRAME), np.float32)) for _ in range(3)]
    assert [bool(tick.heard[row]) for tick in ticks] == [False, True, True]
    paused = rows4.submit(np.zeros((4, FRAME), np.float32), np.zeros(4, bool))
    assert not paused.heard.any() and not paused.result().ready.any() and (paused.result().codes == -2).all()
    rows4.close(row)


def test_nothing_compiles_inside_a_call(loaded, rows4):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )
    jax.jit(lambda x: x * 3 + 1)(np.float32(1))
    assert compiled, "jax reports compilations under another name: they could not be seen"
    fresh = Rows(loaded, 4)
    voice = np.random.RandomState(0).randn(FRAME * 6) * 0.1
    loaded.constants.clear()
    compiled.clear()
    prompt = prompts.Prompt(voice.astype(np.float32), (5, 6, 7), False, 6 + 6 + 3 + 6, 0)
    options = [CallOptions(0), CallOptions(1, SAMPLED, prompt=prompt), CallOptions(2, prompt=columns(30))]
    calls, _ = play(fresh, [noise(5).reshape(-1)] * 3, options)
    assert len(calls) == 3 and set(loaded.constants) == {"silence", "tone"} and not compiled


def test_one_thread_owns_the_rows(rows4):
    row, errors = rows4.open(), []

    def other():
        for call in (rows4.open, rows4.submit, rows4.advance_prompts, lambda: rows4.close(row)):
            with pytest.raises(MoshijaxError, match="belong to the thread that made them") as error:
                call()
            errors.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert len(errors) == 4 and rows4.is_open(row)
    rows4.close(row)


def test_one_set_of_weights_serves_all_batch_sizes(loaded, rows1, rows4):
    assert rows1.artifact.weights is rows4.artifact.weights is loaded.weights


def test_rows_without_prompts_refuse_them(loaded):
    rows = Rows(loaded, 1, prompts=False)
    with pytest.raises(ConfigError, match="prompts=True"):
        rows.open(CallOptions(prompt=columns(4)))
    assert rows.free_rows == 1


def test_a_call_that_is_closed_while_its_prompt_is_read_leaves_nothing(rows4):
    row = rows4.open(CallOptions(prompt=columns(40)))
    rows4.step(np.zeros((4, FRAME), np.float32))
    rows4.close(row)
    assert not rows4.advance_prompts()
    wave = noise(6).reshape(-1)
    [after], _ = play(rows4, [wave], [CallOptions(4, SAMPLED)])
    [again], _ = play(rows4, [wave], [CallOptions(4, SAMPLED)])
    np.testing.assert_array_equal(after.codes, again.codes)
