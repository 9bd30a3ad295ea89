from __future__ import annotations

import math

import numpy as np
import pytest

from moshijax.eval import calls
from moshijax.eval.calls import HeldOutCall, Rate


def call(kind: str, expected: str, answered: str) -> HeldOutCall:
    return HeldOutCall("x", "clear", kind, "asked", expected, answered)


def test_right_compares_words_and_nothing_else():
    assert call("question", "my name is Moshi", "My name, is moshi.").right
    assert not call("question", "my name is Moshi", "my name is").right
    assert not call("question", "five", "five five").right
    assert call("unrelated", "", "").right and not call("unrelated", "", "rain").right


def test_rates_count_only_their_kind():
    played = [
        call("question", "rain", "rain"),
        call("question", "cold", "small"),
        call("unrelated", "", "rain"),
        call("unrelated", "", ""),
        call("silence", "", ""),
    ]
    assert calls.exact(played) == Rate(1, 2)
    assert calls.answered(played, "unrelated") == Rate(1, 2)
    assert calls.answered(played, "silence") == Rate(0, 1)
    assert calls.answered(played, "question") == Rate(2, 2)
    assert str(Rate(0, 0)) == "none played" and math.isnan(Rate(0, 0).value)


def test_chance_is_one_in_n_for_a_perfect_listener_and_one_for_a_single_answer():
    perfect = [call("question", f"word{i}", f"word{i}") for i in range(10)]
    assert calls.chance(perfect, shuffles=2000) == pytest.approx(0.1, abs=0.02)
    assert calls.chance([call("question", "rain", "rain")] * 4) == 1.0
    assert calls.chance([call("question", f"word{i}", "") for i in range(5)]) == 0.0


def test_speech_energy_separates_words_from_silence():
    rate, size = 24_000, 1920
    pcm = np.zeros(rate * 4, np.float32)
    start = rate * 2
    pcm[start : start + size * 5] = 0.1 * np.sin(np.arange(size * 5) * 0.2)
    energy = calls.speech_energy([(pcm, [("rain", 2.0, 2.08)])], rate, size)
    assert energy.words_db == pytest.approx(20 * math.log10(0.1 / math.sqrt(2)), abs=0.2)
    assert energy.silence_db == pytest.approx(calls.FLOOR_DB)
    assert (energy.audible, energy.quiet, energy.words) == (1.0, 1.0, 1)
    misplaced = calls.speech_energy([(pcm, [("rain", 0.0, 0.08)])], rate, size)
    assert misplaced.audible == 0.0 and misplaced.quiet < 1.0 and misplaced.silence_db > -45


def test_speech_energy_without_words_has_no_word_figures():
    energy = calls.speech_energy([(np.zeros(1920 * 3, np.float32), [])], 24_000, 1920)
    assert math.isnan(energy.words_db) and math.isnan(energy.audible) and energy.quiet == 1.0
