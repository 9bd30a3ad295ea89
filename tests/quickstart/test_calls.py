from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from moshijax.eval.calls import HeldOutCall
from moshijax.quickstart import calls
from moshijax.runtime.play import Call, Timing

PROGRAM = SimpleNamespace(sample_rate=24_000, frame_size=1920)


def result(kind: str, group: str, expected: str, answered: str, start: float = 1.0) -> HeldOutCall:
    words = tuple((word, start, start + 0.08) for word in answered.split())
    return HeldOutCall("x", group, kind, "asked", expected, answered, words, 0.3 if words else None)


def played(speaks: bool) -> Call:
    pcm = np.zeros(60 * 1920, np.float32)
    if speaks:
        pcm[12 * 1920 : 17 * 1920] = 0.1
    return Call(np.full(60, 3, np.int32), np.zeros((9, 60), np.int32), pcm, np.zeros_like(pcm))


def test_figures_keep_groups_and_kinds_apart():
    results = [
        result("question", "clear", "rain", "rain"),
        result("question", "clear", "cold", "small"),
        result("unrelated", "clear", "", ""),
        result("silence", "clear", "", "rain"),
        result("question", "rough", "rain", "rain"),
        result("unrelated", "rough", "", "rain"),
    ]
    untrained = [result("question", "clear", "rain", "cold cold")]
    timing = Timing(np.full(100, 0.002), 0.08)
    figures = calls.measure(results, untrained, [played(bool(r.words)) for r in results], PROGRAM, timing)
    clear, rough = figures["groups"]["clear"], figures["groups"]["rough"]
    assert (clear["exact"]["hits"], clear["exact"]["total"]) == (1, 2)
    assert clear["unrelated_answered"]["rate"] == 0.0 and rough["unrelated_answered"]["rate"] == 1.0
    assert rough["exact"]["rate"] == 1.0
    assert figures["silent_answered"] == {"hits": 1, "total": 1, "rate": 1.0}
    assert figures["untrained"]["exact"]["hits"] == 0 and figures["untrained"]["answered"]["hits"] == 1
    assert figures["answer_delay_seconds"] == 0.3
    energy = figures["energy"]
    assert energy["words_db"] == pytest.approx(-20, abs=0.1) and energy["silence_db"] == -100
    lines = list(calls.summary_lines(figures))
    assert lines[0].startswith("clear voices") and "1 of 2 questions answered exactly" in lines[0]
    assert any("untrained model 0 of 1" in line for line in lines)


def test_shown_calls_are_different_questions_right_ones_first():
    results = [
        result("question", "clear", "rain", "cold"),
        result("question", "rough", "in the far south", "in the far south"),
        result("question", "clear", "my name is Moshi", "my name is Moshi"),
        result("question", "clear", "my name is Moshi", "my name is Moshi"),
        result("question", "clear", "five", "five"),
        result("unrelated", "clear", "", ""),
    ]
    assert calls.choose(results, 4) == [2, 4, 0, 5]
    assert calls.choose(results, 3) == [2, 4, 5]
