"""Entropies and rules of the paper's appendix D, and loops, on tokens whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from moshijax.eval import token_health
from moshijax.eval.token_health import ARTEFACTS, SILENCE, WINDOW

PAD, EPAD = 3, 0
RNG = np.random.default_rng(0)


def test_an_entropy_is_that_of_the_window_that_ends_there():
    tokens = RNG.integers(0, 9, (2, 200))
    found = token_health.entropies(tokens)
    assert np.isnan(found[:, : WINDOW - 1]).all()
    for t in (WINDOW - 1, 100, 199):
        shares = np.bincount(tokens[1, t + 1 - WINDOW : t + 1]) / WINDOW
        assert found[1, t] == pytest.approx(-sum(p * np.log(p) for p in shares if p))
    constant = token_health.entropies(np.r_[np.arange(70), np.full(100, 5)][None])[0]
    assert constant[68] == pytest.approx(np.log(WINDOW)) and (constant[70 + WINDOW - 1 :] == 0).all()
    assert (constant[70 : 70 + WINDOW - 1] > 0).all()


def judged(text, codes):
    """Labels of the third window."""
    text, audio = token_health.entropies(text[None])[0], token_health.entropies(codes)
    found = token_health.judge(text, audio)
    assert set(found) == {SILENCE, *ARTEFACTS} and len(found[SILENCE]) == 2
    return [name for name, windows in found.items() if windows[1]]


def speech_text():
    """A word of some tokens now and then, each another one, and more of them later on."""
    text = np.full(3 * WINDOW, PAD)
    text[130:140:3], text[150:190:2] = np.arange(100, 104), np.arange(200, 220)
    return text


ALIKE = RNG.integers(0, 2048, (8, 3 * WINDOW))  # every codebook as varied as the others
STEADY = np.zeros((8, 3 * WINDOW), int)
UNEVEN = np.where(np.arange(8)[:, None] < 4, ALIKE, 7)
CASES = {
    "speech": (speech_text(), ALIKE, []),
    "silence": (np.full(3 * WINDOW, PAD), STEADY, [SILENCE]),
    "noise": (np.full(3 * WINDOW, PAD), ALIKE, ["background noise"]),
    "the same words again": (np.tile([PAD, PAD, 10, 11], 3 * WINDOW // 4), ALIKE, ["repetitive text"]),
    "gibberish": (RNG.permutation(3 * WINDOW)[: 3 * WINDOW], ALIKE, None),
    "some codebooks stuck": (speech_text(), UNEVEN, ["noisy audio"]),
    "stuck in silence": (np.full(3 * WINDOW, PAD), UNEVEN, None),
}


@pytest.mark.parametrize("case", CASES)
def test_windows_are_judged_by_the_rules(case):
    text, codes, expected = CASES[case]
    found = judged(text, codes)
    if case == "gibberish":
        assert "gibberish" in found
    elif case == "stuck in silence":
        assert "noisy audio" not in found  # the rule is for windows with text
    else:
        assert found == expected


def test_the_first_window_only_fills_the_past():
    text = token_health.entropies(np.full((1, WINDOW), PAD))[0]
    assert len(token_health.judge(text, text[None])[SILENCE]) == 0


def spaced(tokens):
    """One token every third frame."""
    text = np.full(3 * len(tokens), PAD)
    text[::3] = tokens
    return text


def test_text_that_goes_round_in_circles_is_a_loop():
    before, round_ = list(range(10, 20)), [30, 31, 32]
    (span,) = token_health.text_loops(spaced([*before, *round_ * 5, *range(40, 50)]), (PAD, EPAD))
    assert span.tolist() == [30, 30 + 3 * 14 + 1]
    assert len(token_health.text_loops(spaced([*before, *round_ * 3]), (PAD, EPAD))) == 0  # three times may be meant
    assert len(token_health.text_loops(spaced([5] * 7), (PAD, EPAD))) == 0
    assert len(token_health.text_loops(spaced([5] * 8), (PAD, EPAD))) == 1
    assert len(token_health.text_loops(np.full(500, PAD), (PAD, EPAD))) == 0


def test_audible_codes_that_repeat_are_a_loop():
    codes = RNG.integers(0, 2048, (8, 400))
    heard = np.ones(400, bool)
    assert len(token_health.audio_loops(codes, heard)) == 0
    codes[:, 100:200] = np.tile(RNG.integers(0, 2048, (8, 20)), 5)
    codes[7, 100:200] = RNG.integers(0, 2048, 100)  # one codebook may differ
    assert token_health.audio_loops(codes, heard).tolist() == [[100, 200]]
    assert len(token_health.audio_loops(codes, ~heard)) == 0
    codes[:, 300:330] = 7
    assert token_health.audio_loops(codes, heard).tolist() == [[100, 200], [300, 330]]
