from __future__ import annotations

import math

import numpy as np
import pytest

from moshijax.eval import abx as module
from moshijax.eval.abx import Token, Triphone, abx, angle, cut, triphones

RNG = np.random.default_rng(0)
MIDDLES = "aiou"


def tokens(separation: float, noise: float = 1.0, each: int = 6, speakers: int = 2) -> list[Token]:
    """Triphones whose middles differ by `separation` in a direction of their own."""
    found = []
    for speaker in range(speakers):
        for index, middle in enumerate(MIDDLES):
            for _ in range(each):
                frames = noise * RNG.standard_normal((int(RNG.integers(3, 6)), 8))
                frames[:, index] += separation
                found.append(Token(Triphone("p", middle, "t", f"s{speaker}", 0.0, 0.3), frames))
    return found


def test_the_error_falls_from_chance_to_nothing():
    errors = [abx(tokens(separation)).error for separation in (0.0, 1.0, 20.0)]
    assert 0.4 < errors[0] < 0.6 and errors[1] < errors[0] and errors[2] == 0


def test_what_is_compared():
    result = abx(tokens(1.0, each=3))
    assert (result.cells, result.comparisons) == (2 * 4 * 3, 2 * 4 * 3 * (3 * 2) * 3)
    assert abx(tokens(1.0, each=9)).comparisons == 2 * 4 * 3 * (5 * 4) * 5  # at most five tokens each
    alone = [t for t in tokens(1.0) if t.triphone.middle == "a"]
    assert math.isnan(abx(alone).error) and abx(alone).cells == 0
    same = [Token(t.triphone, np.ones((2, 3))) for t in tokens(1.0)]
    assert abx(same).error == 0.5  # ties


def test_other_speakers_and_neighbours_are_never_compared():
    mixed = [t._replace(triphone=t.triphone._replace(speaker=f"{i}")) for i, t in enumerate(tokens(1.0))]
    assert abx(mixed).cells == 0


def test_angle():
    x = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert angle(x, x) == 0 and angle(x, np.repeat(x, 3, 0)) == 0  # tempo does not matter
    assert angle(x[:1], x[1:]) == pytest.approx(0.5) and angle(x[:1], -x[:1]) == pytest.approx(1)
    assert angle(x, 7 * x) == pytest.approx(0, abs=1e-6)


def test_triphones_of_a_sidecar():
    phonemes = [
        ["ˈa", [0.2, 0.3], "U"],
        ["p", [0.1, 0.2], "U"],
        ["t", [0.31, 0.4], "U"],
        ["m", [0.6, 0.7], "U"],  # after a pause
        ["o", [0.3, 0.35], "M"],
    ]
    assert triphones(phonemes) == [Triphone("p", "a", "t", "U", 0.1, 0.4)]
    frames = np.arange(10)[:, None]
    assert cut(triphones(phonemes)[0], frames, 12.5)[:, 0].tolist() == [1, 2, 3, 4]
    assert len(cut(Triphone("", "", "", "", 5.0, 5.1), frames, 12.5)) == 1  # beyond the end: the last frame
    assert module.GAP < 0.08
