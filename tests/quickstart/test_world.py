from __future__ import annotations

import pytest

from moshijax.eval.calls import normalise
from moshijax.quickstart import world


@pytest.fixture(scope="module")
def worlds():
    return world.load()


def test_nothing_that_is_held_out_occurs_in_training(worlds):
    trained, heldout = worlds
    known = {normalise(text) for text in trained.unrelated} | {normalise(question) for question, _ in trained.questions}
    unheard = {normalise(text) for text in heldout.unrelated}
    assert len(known) == len(trained.unrelated) + len(trained.questions)
    assert len(unheard) == len(heldout.unrelated) == 40
    assert not known & unheard
    assert heldout.questions == trained.questions
    calls = world.training_calls(trained, 32, 2560, 0, seed=0)  # half of the unrelated ones are spliced
    assert not {normalise(call.meta["question"]) for call in calls} & unheard
    spliced = {call.meta["question"] for call in calls if call.meta["kind"] == "unrelated"} - set(trained.unrelated)
    assert len(spliced) > 1000


def test_answers_are_short_and_distinct(worlds):
    answers = [normalise(answer) for _, answer in worlds[0].questions]
    assert 24 <= len(answers) <= 36
    assert len(set(answers)) == len(answers)
    assert all(1 <= len(answer) <= 5 for answer in answers)


def test_heldout_voices_are_nobody_else(worlds):
    heldout = {variant for _, variants in world.GROUPS.values() for variant in variants}
    assert not heldout & {*world.TRAINED, world.MODEL_VARIANT}
    assert world.MODEL_VARIANT not in world.TRAINED
    calls = world.training_calls(worlds[0], 64, 16, 2, seed=3)
    assert {call.user_voice.variant for call in calls} <= set(world.TRAINED)
    assert {call.model_voice.variant for call in calls} == {world.MODEL_VARIANT}


def test_every_group_hears_questions_and_unrelated_speech(worlds):
    calls = world.heldout_calls(worlds[1], 8, seed=0)
    count: dict = {}
    for call in calls:
        key = call.meta["group"], call.meta["kind"]
        count[key] = count.get(key, 0) + 1
    assert count == {
        (group, kind): 8 for group in ("clear", "rough", "accented") for kind in ("question", "unrelated")
    } | {("clear", "silence"): 2}
    assert calls == world.heldout_calls(worlds[1], 8, seed=0)
    assert calls != world.heldout_calls(worlds[1], 8, seed=1)
