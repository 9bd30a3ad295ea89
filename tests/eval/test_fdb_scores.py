"""Scores of Full-Duplex-Bench: its rules, and a test for every trap that its scripts set."""

from __future__ import annotations

import socket
import sys
from functools import partial

import numpy as np
import pytest

from moshijax.errors import DataError
from moshijax.eval import activity
from moshijax.eval.activity import segments
from moshijax.eval.fdb_scores import divergence, latency_intervals, score, takes_over
from moshijax.eval.fdb_tree import TimedWord
from tests.eval.fdb_folders import NOTHING, sample, sentence, words_json

LEVEL = partial(activity.of_level, threshold_db=-40.0)
PAUSE, TURN, BACK, INTERRUPT = (
    "synthetic_pause_handling", "candor_turn_taking", "icc_backchannel", "synthetic_user_interruption",
)  # fmt: skip


def test_a_turn_spans_a_second_or_has_more_than_three_words():
    def words(count, span):
        return [TimedWord("w", n * span / count, (n + 1) * span / count) for n in range(count)]

    assert [takes_over(words(*case)) for case in ((3, 0.99), (4, 0.5), (1, 1.0), (3, 1.0))] == [False, True, True, True]
    assert not any(map(takes_over, ([], [TimedWord("w", 1.0, None)], [TimedWord("w", None, None)])))


def test_trap_1_speech_at_24_khz_is_taken_for_half_as_long_again(tmp_path):
    """0.8 s, a backchannel, is 1.2 s to a detector that takes 16 kHz for granted: a turn."""
    for rate, published in ((24_000, 1.0), (16_000, 0.0)):
        one = sample(tmp_path / str(rate), BACK, "0", [(1.0, 1.8)], words_json(("yes", 1.0, 1.8)), rate=rate)
        found = score([one], LEVEL)
        assert found.published["take_over_rate"] == published and found.corrected["take_over_rate"] == 0.0
    long = score([sample(tmp_path / "long", BACK, "0", [(1.0, 3.2)], sentence(1.0), rate=24_000)], LEVEL)
    assert long.published["frequency"] == 0.0  # 3.3 s: the script stops before it counts the segment


def test_trap_2_the_clean_answer_counts_as_one_more(tmp_path):
    one = sample(tmp_path, PAUSE, "1", words=NOTHING, clean_output=sentence(1.0))
    found = score([one], None)
    assert found.published == {"take_over_rate": 0.5} and found.corrected == {"take_over_rate": 0.0}


def test_trap_3_one_file_too_many_shifts_all_pairs_that_follow(tmp_path):
    first = sample(tmp_path, TURN, "1", words=sentence(2.5), old_turn_taking=[{"timestamp": [0.5, 1.0]}])
    second = sample(tmp_path, TURN, "2", words=sentence(4.25), turn_taking=[{"timestamp": [4.0, 4.5]}], seconds=8.0)
    found = score([first, second], None, frame_seconds=0.08)
    assert found.published["latency"] == pytest.approx((2.0 + 2.25) / 2)  # 2.5 - 0.5 and 4.25 - 2.0
    assert found.corrected["latency"] == pytest.approx((0.5 + 0.25) / 2)
    assert found.corrected["causal_latency"] == pytest.approx((0.5 + 0.25) / 2 + 0.08)


def test_trap_4_turns_and_latency_need_no_key(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for package in ("openai", "dotenv"):
        monkeypatch.setitem(sys.modules, package, None)
    found = score([sample(tmp_path, INTERRUPT, "1", words=sentence(3.4))], None)
    assert found.corrected == {
        "take_over_rate": 1.0, "latency": pytest.approx(0.4), "causal_latency": None, "rating": None,
    }  # fmt: skip
    assert found.published == {"take_over_rate": 1.0, "latency": None, "rating": None}
    assert "judge = none" in found.notes[0]


def test_trap_5_the_published_latency_is_that_of_rated_answers(tmp_path):
    rated = sample(tmp_path, INTERRUPT, "1", words=sentence(3.5), rating={"analysis": "", "rating": 4})
    unrated = sample(tmp_path, INTERRUPT, "2", words=sentence(4.5))
    found = score([rated, unrated], None)
    assert found.published["latency"] == pytest.approx(0.5) and found.corrected["latency"] == pytest.approx(1.0)
    assert found.published["rating"] == found.corrected["rating"] == 4.0 and found.notes == []


def test_trap_6_a_missing_transcript_has_the_verdict_of_the_one_before(tmp_path):
    speaks = sample(tmp_path, BACK, "0", [(1.0, 5.0)], sentence(1.0))
    lacking = sample(tmp_path, BACK, "1", [])
    mute = sample(tmp_path, BACK, "2", [], NOTHING)
    found = score([speaks, lacking, mute], LEVEL)
    assert found.published["take_over_rate"] == pytest.approx(2 / 3)
    assert found.corrected["take_over_rate"] == pytest.approx(1 / 2)
    assert any("1 of 3 have no output.json" in note and "such as 1" in note for note in found.notes)
    first = score([lacking, mute], LEVEL)
    assert any("the published script stops at 1" in note for note in first.notes)


def test_trap_7_silero_comes_from_a_package_and_nothing_is_downloaded(tmp_path, monkeypatch):
    pytest.importorskip("faster_whisper")
    loaded = set(sys.modules)

    def refuse(*_):
        raise AssertionError("a network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    one = sample(tmp_path, "user_interruption", "1", [(3.0, 4.0)])
    assert score([one], activity.of_silero).corrected["stop_latency"] is None  # (a hum is no speech)
    assert not {"torch", "silero_vad"} & (set(sys.modules) - loaded)


def test_trap_8_the_constants_hold_and_not_the_comments(tmp_path):
    """User silences up to 0.6 s and model silences up to 0.5 s are bridged; the comments say 0.3 and 0.05."""
    heard = ((0.5, 1.0), (1.56, 2.0), (2.7, 3.0))  # 0.56 is bridged, 0.7 is not
    said = ((2.1, 2.4), (2.8, 3.4), (3.96, 4.5))  # 0.4 is bridged, 0.56 is not
    one = sample(tmp_path, "user_interruption", "1", said, heard=heard)
    found = latency_intervals(one, LEVEL)
    assert np.array(found["latency_stop_list"]) == pytest.approx(np.array([[2.7, 3.0]]), abs=0.021)
    expected = np.array([[2.0, 2.1], [3.0, 3.96]])
    assert np.array(found["latency_resp_list"]) == pytest.approx(expected, abs=0.021)
    causal = score([one], LEVEL, frame_seconds=0.08).corrected
    assert causal["causal_response_latency"] == pytest.approx(causal["response_latency"] + 0.08, abs=1e-6)


def test_trap_9_nobody_takes_a_turn(tmp_path):
    found = score([sample(tmp_path, TURN, "1", words=words_json(("hm", 2.5, 2.8)))], None, frame_seconds=0.08)
    assert found.published == {"take_over_rate": 0.0, "latency": None}
    assert found.corrected == {"take_over_rate": 0.0, "latency": None, "causal_latency": None}


def test_the_last_segment_says_what_all_are(tmp_path):
    words = words_json(*(("w", 0.5 + 0.2 * n, 0.7 + 0.2 * n) for n in range(4)), ("yes", 3.0, 3.3))
    found = score([sample(tmp_path, BACK, "0", [(0.5, 1.3), (3.0, 3.3)], words)], LEVEL)
    assert found.published["take_over_rate"] == 0.0 and found.corrected["take_over_rate"] == 1.0
    assert found.published["frequency"] == pytest.approx(2 / 6) and found.corrected["frequency"] == pytest.approx(1 / 6)


def test_an_answer_before_the_end_counts_as_at_once(tmp_path):
    found = score([sample(tmp_path, TURN, "1", words=sentence(1.5))], None, frame_seconds=0.08)
    assert found.published["latency"] == 0.0 and found.corrected["causal_latency"] == 0.0


def test_words_before_the_end_of_an_interruption_are_no_answer_to_it(tmp_path):
    found = score([sample(tmp_path, INTERRUPT, "1", words=sentence(0.5))], None)  # (a transcript that was not cropped)
    assert found.published["take_over_rate"] == 1.0 and found.corrected["take_over_rate"] == 0.0


def test_divergence_is_the_distance_of_scipy():
    distance = pytest.importorskip("scipy.spatial.distance").jensenshannon
    found, curve = segments([(0.5, 0.9), (3.0, 3.3)]), [0.1, 0.4, 0.0, 0.3, 0.2]
    counts = np.full(31, 1e-10)  # of 0.2 s, in 6.1 s
    counts[2:5] += 1
    counts[15:17] += 1  # (3.0 and 3.3 are in the bins that begin at 3.0 and 3.2)
    human = np.interp(np.linspace(0, 1, 31), np.linspace(0, 1, 5), curve)
    assert divergence(found, 6.1, curve) == pytest.approx(distance(counts / counts.sum(), human), abs=1e-12)
    assert divergence(segments([]), 6.1, curve) == 1.0


def test_a_reference_without_the_curve_is_named(tmp_path):
    one = sample(tmp_path, BACK, "7", [(1.0, 1.5)], words_json(("yes", 1.0, 1.5)))
    assert score([one], LEVEL, {"7": [0.5, 0.5]}).corrected["divergence"] > 0
    with pytest.raises(DataError, match="no curve for"):
        score([one], LEVEL, {"8": [0.5, 0.5]})
    assert score([one], LEVEL).corrected["divergence"] is None


def test_without_a_detector_or_transcripts_columns_are_empty_or_the_task_is_named(tmp_path):
    one = sample(tmp_path, BACK, "1", [(1.0, 1.5)], NOTHING)
    found = score([one], None)
    assert found.published == found.corrected == {} and "without a detector" in found.notes[0]
    assert "no transcript has a word" in found.notes[1]
    with pytest.raises(DataError, match="none of 1 folders has an output.json.*get_transcript/asr.py"):
        score([sample(tmp_path, PAUSE, "1")], None)
