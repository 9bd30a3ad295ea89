"""Clips that are heard again: word times by letters, and what is rejected for which reason."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moshijax.data.recognizer import TimedWord
from moshijax.data.synthesis.hearing import ClipRejected, check, check_heard, word_times

RATE = 1000
FEW = settings(max_examples=80, deadline=None, derandomize=True, database=None)


def sound(*spans: tuple[float, float], seconds: float = 2.0) -> np.ndarray:
    samples = np.zeros(round(seconds * RATE), np.float32)
    for start, end in spans:
        samples[round(start * RATE) : round(end * RATE)] = np.resize([0.3, -0.3], round((end - start) * RATE))
    return samples


def times(text, heard, samples):
    return [(token, start / RATE, end / RATE) for token, start, end in word_times(text, heard, samples, RATE)]


def test_words_take_the_times_of_their_letters_wherever_the_other_puts_spaces():
    samples = sound((0.2, 1.8))
    heard = [("Every", 0.2, 0.6), ("day,", 0.6, 0.8), ("I'll", 1.0, 1.4), ("gohome.", 1.4, 1.8)]
    found = times("everyday I'll go home", heard, samples)
    assert [token for token, _, _ in found] == ["everyday", "I'll", "go", "home"]
    np.testing.assert_allclose([t[1:] for t in found], [(0.2, 0.8), (1.0, 1.4), (1.4, 1.533), (1.533, 1.8)], atol=2e-3)


def test_what_was_not_heard_stands_between_its_neighbours_and_silence_is_no_part_of_a_word():
    samples = sound((0.2, 0.5), (0.9, 1.2), (1.4, 1.8))
    found = times("one - two 33", [("one", 0.0, 0.9), ("two", 0.9, 1.3)], samples)
    assert [token for token, _, _ in found] == ["one", "-", "two", "33"]
    np.testing.assert_allclose([found[0][1:], found[2][1:]], [(0.2, 0.5), (0.9, 1.2)], atol=1e-9)
    np.testing.assert_allclose(found[3][1:], (1.4, 1.8), atol=1e-9)
    nothing = times("a bb", [], samples)
    np.testing.assert_allclose([t[1:] for t in nothing], [(0.2, 0.5), (0.9, 1.8)], atol=0.25)


@FEW
@given(
    st.lists(st.text("abc1 -", min_size=1, max_size=6), min_size=1, max_size=6),
    st.lists(st.tuples(st.text("abc12", max_size=5), st.floats(0, 2.5), st.floats(0, 2.5)), max_size=6),
)
def test_every_token_is_there_once_in_order_within_the_clip(tokens, heard):
    text = " ".join(tokens)
    heard = [(word, min(a, b), max(a, b)) for word, a, b in heard]
    found = word_times(text, heard, sound((0.1, 1.9)), RATE)
    assert [token for token, _, _ in found] == text.split()
    assert all(0 <= start <= end <= 2 * RATE for _, start, end in found)
    assert all(one[2] <= other[1] + RATE // 50 for one, other in zip(found, found[1:], strict=False))


@pytest.mark.parametrize(
    ("samples", "text", "kind", "message"),
    [
        (np.zeros(2000, np.float32), "hello", "silent", "is silent"),
        (np.zeros(0, np.float32), "hello", "silent", "is silent"),
        (sound((0, 2)) * 4, "hello there", "clipped", "is clipped"),
        (
            sound((0, 0.1), seconds=0.1),
            "hello there you",
            "length",
            "lasts 0.10 s, where 13 letters take 0.26 to 5.83 s",
        ),
        (sound((0, 9), seconds=9), "hello there you", "length", "lasts 9.00 s"),
    ],
)
def test_clips_are_rejected_by_reason(samples, text, kind, message):
    with pytest.raises(ClipRejected, match=message) as error:
        check(np.clip(samples, -1, 1), RATE, text)
    assert error.value.kind == kind == pickle.loads(pickle.dumps(error.value)).kind


def test_numbers_may_take_longer_than_their_digits():
    check(sound((0, 5), seconds=5), RATE, "1998 - 2005")
    with pytest.raises(ClipRejected, match="lasts 5.00 s"):
        check(sound((0, 5), seconds=5), RATE, "abcd - efgh")


def test_a_clip_that_says_something_else_is_misheard():
    heard = [TimedWord("Hello", 0.0, 0.5, None), TimedWord("there.", 0.5, 1.0, None)]
    check_heard(heard, "hello, there", 0.0)
    check_heard(heard, "hello dear", 0.4)
    with pytest.raises(
        ClipRejected, match="'good evening' was heard as 'Hello there.', with 71% other letters"
    ) as error:
        check_heard(heard, "good evening", 0.3)
    assert error.value.kind == "misheard"
