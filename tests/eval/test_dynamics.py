"""Dynamics: times of table 9 and reactions, on calls whose answer is known."""

from __future__ import annotations

import pytest

from moshijax.eval.activity import segments, total, units
from moshijax.eval.dynamics import Activity, Reactions, measure, reactions, times


def call(model, user, seconds=20.0, backchannels=None) -> Activity:
    marked = None if backchannels is None else segments(backchannels)
    return Activity(units(segments(model)), units(segments(user)), seconds, marked)


def test_silences_are_pauses_gaps_or_ends():
    one = call([(4, 5), (5.5, 7), (7.1, 8)], [(1, 2), (3, 4.5), (9, 10)])
    found = {name: spans.tolist() for name, spans in times(one).items()}
    assert found["pause"] == [[2, 3], [5, 5.5]]  # of the user, and of the model
    assert found["gap"] == [[8, 9]]
    assert found["overlap"] == [[4, 4.5]]
    assert sorted(found["ipu"]) == [[1, 2], [3, 4.5], [4, 5], [5.5, 8], [9, 10]]
    seconds = {name: total(spans) for name, spans in times(one).items()}
    assert seconds["ipu"] - seconds["overlap"] + seconds["pause"] + seconds["gap"] == pytest.approx(10 - 1)


def test_a_silence_of_one_under_the_speech_of_the_other_is_no_pause():
    assert times(call([(1, 2), (3, 4)], [(1.5, 3.5)]))["pause"].tolist() == []


def test_figures_are_per_minute_of_all_calls_together():
    found = measure([call([(0, 6)], [], 20), call([(0, 12)], [(13, 15)], 40)])
    assert found.values["ipu/seconds_per_minute"] == pytest.approx(20)
    assert found.values["ipu/per_minute"] == pytest.approx(3)
    assert found.values["gap/seconds_per_minute"] == pytest.approx(1) and found.values["pause/per_minute"] == 0
    assert found.per_minute["ipu"] == pytest.approx([18, 21])


def test_a_turn_is_answered_if_the_model_speaks_before_the_user_does_again():
    assert reactions(call([(3, 4)], [(1, 2.5), (6, 7), (9, 10)])) == Reactions((0.5,), 2)
    assert reactions(call([(3, 4)], [(1, 2.5)])) == Reactions((0.5,))
    assert reactions(call([], [(1, 2.5)])) == Reactions(unanswered=1)
    assert reactions(call([], [(1, 18.5)])) == Reactions()  # the call ends too soon to tell


def test_a_turn_goes_on_over_a_short_silence_unless_the_model_speaks():
    assert reactions(call([(5, 6)], [(1, 2), (2.9, 4)])) == Reactions((1.0,))
    assert reactions(call([(5, 6)], [(1, 2), (3.1, 4)])) == Reactions((1.0,), 1)
    cut_in = reactions(call([(2.4, 2.8)], [(1, 2), (2.9, 4)]))
    assert cut_in.responses == pytest.approx((0.4,)) and cut_in.unanswered == 1


def test_a_model_yields_within_two_seconds_or_does_not():
    model = [(1, 4)]
    assert reactions(call(model, [(2.5, 6)])).yields == (1.5,)
    late = reactions(call([(1, 5)], [(2.5, 6)]))
    assert late.yields == () and late.unyielded == 1
    assert reactions(call([(1, 20)], [(18.5, 20)])) == Reactions()  # the recording ends before the window does


def test_a_model_that_begins_over_the_user_is_an_incursion():
    assert reactions(call([(2, 3)], [(1, 4)])) == Reactions(unanswered=1, incursions=1)


def test_marked_backchannels_are_no_interruptions():
    model, user = [(1, 6)], [(2, 2.4), (4.5, 8)]
    assert reactions(call(model, user, backchannels=[(2, 2.4)])) == Reactions(yields=(1.5,), ignored=1, unanswered=1)
    assert reactions(call(model, user, backchannels=[])).unyielded == 1
    obeyed = reactions(call([(1, 2.5)], [(2, 2.4)], backchannels=[(2, 2.4)]))
    assert obeyed == Reactions(obeyed=1)


def test_unmarked_short_units_alone_are_backchannels():
    assert reactions(call([(1, 6)], [(2, 2.4)])) == Reactions(ignored=1)
    assert reactions(call([(1, 6)], [(2, 2.4), (3, 9)])).ignored == 0  # the user goes on


def test_nothing_found_gives_no_rate_rather_than_zero():
    values = measure([call([], [])]).values
    assert values["response/turns"] == 0 and values["ipu/per_minute"] == 0
    assert not {"response/rate", "response/latency", "yield/rate", "yield/latency", "backchannels/ignored"} & set(
        values
    )
