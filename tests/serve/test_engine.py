"""The engine on simulated time: nobody notices anybody, and lost time is caught up."""

from __future__ import annotations

import numpy as np
import pytest

from moshijax.runtime import Rows, prompt
from moshijax.serve.engine import BURST, FASTEST, Busy
from moshijax.serve.session import BACKLOG, UNSENT, Interrupted, Said
from tools.soak.world import Caller, World, check_alone, columns, script


def test_everybody_hears_what_they_would_hear_alone(world) -> None:
    """60 s, 8 lines, with joins, leaves, stalls and prompts: the same codes in other slots, beside other callers."""
    callers = script(world, 8, 60.0, seed=1)
    world.run(65.0)
    assert len(callers) > 20 and sum(caller.dropped for caller in callers) > 20
    assert sum(caller.options.prompt is not None for caller in callers) > 5
    frames = sum(len(caller.heard) for caller in callers)
    assert frames > 3000 and world.engine.stats.ticks < frames / 3
    check_alone(Rows(world.artifact, 8), [*callers, callers[0]])  # (the last one with all other slots empty)
    assert all(caller.ended.reason == "client_left" for caller in callers)
    assert world.engine.callers == 0 and world.engine.rows.free_rows == 8


def test_a_stalled_caller_is_back_within_400_ms_and_2_s(world) -> None:
    caller, other = Caller(world, 1), Caller(world, 2)
    caller.speak(1, 5)
    other.speak(1.03, 15)
    world.at(10, lambda: caller.send(5, round(5 / world.frame)))  # all that was said from 5 to 10 s, at once
    caller.speak(10.05, 15)
    world.run(16)
    before = [delay for time, delay in caller.delays if time < 5]
    after = [delay for time, delay in caller.delays if time > 12]
    assert max(before) < 0.16 and len(after) > 30 and max(after) < 0.16, (max(before), max(after))
    assert max(delay for time, delay in caller.delays if time > 10) < (BACKLOG + 2) * world.frame
    assert caller.dropped == round(5 / world.frame) - BACKLOG == caller.session.counts.dropped
    assert max(delay for _, delay in other.delays) < 0.16 and other.dropped == 0


def test_a_caller_at_half_speed_and_one_at_double_speed_cost_the_others_nothing(world) -> None:
    callers = [Caller(world, seed) for seed in range(5)]
    for caller in callers[:3]:
        caller.speak(1 + 0.02 * caller.options.seed, 21 + 0.02 * caller.options.seed)
    callers[3].speak(1, 21, pace=0.5)
    callers[4].speak(1, 21, pace=2)
    world.run(22)
    for caller in callers[:3]:
        assert caller.dropped == 0 and len(caller.heard) == 250
        assert max(delay for _, delay in caller.delays) < 0.16
    assert len(callers[3].heard) == 125 and callers[3].dropped == 0
    most = 20 * FASTEST / world.frame + BURST + BACKLOG + 1
    assert 250 <= len(callers[4].heard) <= most and callers[4].dropped == 500 - len(callers[4].heard)


def test_on_a_device_that_is_too_slow_sound_is_dropped_and_delay_does_not_grow(eight) -> None:
    world = World(eight, 8, step_seconds=0.1)
    callers = [Caller(world, seed) for seed in range(3)]
    for caller in callers:
        caller.speak(1, 31)
    world.run(32)
    for caller in callers:
        # Frames that wait come faster than they are heard; two steps are under way.
        assert max(delay for _, delay in caller.delays) < 4 * 0.08 + 3 * 0.1
        assert caller.dropped == pytest.approx(375 * 0.2, abs=5)
        assert len(caller.heard) + caller.dropped == 375
    assert world.engine.stats.misses > 100


def test_prompts_of_ten_seconds_cost_the_others_no_late_tick(world) -> None:
    talker = Caller(world, 1)
    talker.speak(1, 15)
    joined = []
    for number in range(6):
        world.at(2 + number * 0.3, lambda n=number: joined.append(Caller(world, 10 + n, columns(125, n))))
    world.run(15.5)
    assert all(caller.started is not None for caller in joined)
    assert len(talker.heard) == 175 and max(delay for _, delay in talker.delays) < 0.16
    # Steps for the talker's frames, and those that prime.
    assert world.engine.stats.ticks <= 175 + 1 + len(joined)


def test_a_prompt_that_cannot_be_prepared_ends_its_own_call_and_no_other(world, monkeypatch) -> None:
    voice, encoding = 0.1 * np.random.RandomState(0).randn(3600).astype(np.float32), prompt.encoding
    failures = [RuntimeError("out of memory")]

    def failing_once(*arguments):
        if failures:
            raise failures.pop()
        return (yield from encoding(*arguments))

    monkeypatch.setattr(prompt, "encoding", failing_once)
    talker, callers = Caller(world, 1), []
    talker.speak(1, 4)
    for number in range(2):
        ring = lambda n=number: callers.append(Caller(world, n, prompt.make(world.artifact, voice, None)))  # noqa: E731
        world.at(2 + number * 0.01, ring)
    world.run(5)
    failed, other = callers
    assert (failed.ended.reason, failed.ended.message) == ("error", "the prompt could not be prepared")
    assert failed.started is None and other.started is not None and other.ended is None
    assert len(talker.heard) == 37 and talker.dropped == 0 and talker.ended is None
    assert world.engine.callers == 2 and world.engine.rows.free_rows == 6


def test_a_frame_that_is_a_little_late_does_not_wait_for_the_tick_after(world) -> None:
    """Four callers whose frames come up to 15 ms late, each at its own time: the gaps between answers stay small."""
    callers = [Caller(world, seed) for seed in range(4)]
    for number, caller in enumerate(callers):
        caller.speak(1 + 0.02 * number, 11, jitter=0.015)
    world.run(12)
    gaps = np.concatenate([np.diff([time for time, _ in caller.delays]) for caller in callers])
    assert len(gaps) > 400 and gaps.max() < 1.5 * world.frame, gaps.max()


def test_a_lone_caller_does_not_wait_for_the_tick(world) -> None:
    caller = Caller(world, 1)
    caller.speak(1.013, 5, jitter=0.03)
    world.run(6)
    assert len(caller.heard) == 49
    assert max(world.engine.stats.delay_seconds) == pytest.approx(world.step_seconds, abs=1e-5)


def test_slots_are_free_at_once_wherever_a_caller_hangs_up(world) -> None:
    """Before opening, while a prompt is processed, while a step is under way, after the end; twice is once."""
    stays = Caller(world, 1)
    stays.speak(0, 30)
    random = np.random.RandomState(0)
    for number in range(100):
        session = world.engine.admit() if number % 7 == 0 else None
        caller = None if session else Caller(world, number, columns(60, number) if number % 3 == 0 else None)
        if caller:
            caller.speak(world.now, world.now + 1)
        for _ in range(random.randint(12)):
            world.engine.step()
        (session or caller.session).close("client_left")
        world.engine.step()
        assert world.engine.callers == 1 and world.engine.rows.free_rows == 7
        (session or caller.session).close("client_left")
        world.run(world.now + random.uniform(0, 0.2))
        assert world.engine.callers == 1
    world.run(31)
    assert world.engine.stats.endings == {"client_left": 100}
    check_alone(Rows(world.artifact, 8), [stays])


def test_a_full_house_says_so(world) -> None:
    sessions = [world.engine.admit() for _ in range(8)]
    with pytest.raises(Busy, match="all 8 slots are taken") as busy:
        world.engine.admit()
    assert busy.value.callers == 8 and world.engine.stats.refused == 1
    sessions[3].close("client_left")
    world.engine.step()
    world.engine.admit()


def test_nothing_said_before_an_interruption_is_heard_after_it(world) -> None:
    """Neither what waits in the queue nor what is under way; the call itself goes on as if nothing had happened."""
    caller, events = Caller(world, 1), []
    caller.session._notify = lambda: None
    for _ in range(5):
        caller.send(world.now)
        while world.engine.step() == 0.0:
            pass
        world.now += world.frame
    caller.send(world.now)
    while not world.engine._under_way:
        world.engine.step()
    caller.session.interrupt()
    while world.engine.step() == 0.0:
        pass
    world.now += world.frame
    caller.send(world.now)
    while world.engine.step() == 0.0:
        pass
    events = caller.session.take_events()
    place = next(number for number, event in enumerate(events) if isinstance(event, Interrupted))
    before, after = events[:place], events[place:]
    assert not any(isinstance(event, Said) and event.pcm is not None for event in before)
    assert [event.column for event in after if isinstance(event, Said) and event.pcm is not None] == [6]
    texts = [event.column for event in events if isinstance(event, Said) and event.text]
    assert texts, "words are kept"


def test_a_socket_that_takes_nothing_loses_the_oldest_sound_and_no_words(world) -> None:
    caller = Caller(world, 1)
    caller.session._notify = lambda: None
    caller.speak(0, 4)
    world.run(5)
    said = [event for event in caller.session.take_events() if isinstance(event, Said)]
    heard = [event.column for event in said if event.pcm is not None]
    assert heard == list(range(50 - UNSENT, 50)) and caller.session.counts.unsent == 50 - UNSENT
    reference = Caller(world, 1)
    reference.speak(world.now, world.now + 4)
    world.run(world.now + 5)
    assert "".join(event.text for event in said) == "".join(event.text for event in reference.said)


def test_sound_that_is_no_number_harms_nobody(world) -> None:
    caller, other = Caller(world, 1), Caller(world, 2)
    other.speak(0, 2)
    for number, value in enumerate((np.nan, np.inf, -np.inf)):
        sound = np.full(world.artifact.frame_size, value, np.float32)
        world.at(0.5 + number * 0.1, lambda sound=sound: caller.session.hear(sound))
    world.run(3)
    assert len(caller.said) == 3 and len(other.said) == 25
    check_alone(Rows(world.artifact, 8), [other])


def test_an_engine_without_callers_sleeps(world) -> None:
    assert world.engine.step() is None
    caller = Caller(world, 1)
    world.run(1)
    assert world.engine.step() is None, "a caller who says nothing costs nothing"
    caller.leave()
    world.run(2)
    assert world.engine.step() is None
