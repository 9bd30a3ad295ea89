"""What counts as the same word, and errors counted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moshijax.eval.word_errors import normalize, spelled, word_errors

WORDS = st.lists(st.sampled_from("abc"), max_size=7)


def test_words_are_compared_without_case_marks_and_digits():
    assert normalize("It's twenty-one, Dr. O’Neill!") == ["it's", "twenty", "one", "dr", "o'neill"]
    assert normalize("The answer is 21.") == normalize("the answer is twenty-one")
    assert normalize("1,250 people, 7:30") == "one thousand two hundred fifty people seven thirty".split()
    assert normalize("'quoted' -- …") == ["quoted"] and normalize("?!") == []
    assert normalize("colour") != normalize("color")


def test_numbers_are_spelled():
    for number, words in (
        (0, "zero"), (13, "thirteen"), (40, "forty"), (99, "ninety nine"), (100, "one hundred"),
        (115, "one hundred fifteen"), (1000, "one thousand"), (2026, "two thousand twenty six"),
        (10**6 + 1, "one million one"), (7 * 10**9, "seven billion"), (10**12, "one" + 12 * " zero"),
    ):  # fmt: skip
        assert spelled(number) == words


def test_errors_are_counted():
    assert word_errors("what is two plus three".split(), "what two plus free".split()) == 2
    assert word_errors([], ["a", "b"]) == 2 == word_errors(["a", "b"], [])


@given(WORDS, WORDS, WORDS)
def test_errors_are_a_distance(a, b, c):
    assert word_errors(a, b) == word_errors(b, a) >= abs(len(a) - len(b)) and (word_errors(a, b) == 0) == (a == b)
    assert word_errors(a, c) <= word_errors(a, b) + word_errors(b, c)
    assert word_errors(a, b) <= max(len(a), len(b))
