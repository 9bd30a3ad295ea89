"""Words that a recogniser wrote over and over: which are found, and which are not."""

from __future__ import annotations

import zlib

from hypothesis import given
from hypothesis import strategies as st

from moshijax.data.loops import MOST_COMPRESSION, compression, looped
from moshijax.data.transcript import Word

SENTENCE = "I think that we should look at the house by the river before it rains again tomorrow"


def spoken(text: str, start: float = 0.0, step: float = 0.3, speaker: str = "model") -> list[Word]:
    return [Word(one, start + n * step, start + n * step + 0.2, speaker, 0.9) for n, one in enumerate(text.split())]


def test_a_phrase_that_is_written_over_and_over_is_found_with_its_first_time_and_nothing_else_is():
    before, after = spoken(SENTENCE), spoken(SENTENCE.upper(), 90.0)
    for phrase, times in (("thank you", 30), ("Thank you.", 5), ("you", 40), ("and then we went to the shop again", 4)):
        loop = spoken(" ".join([phrase] * times), 40.0)
        assert looped([*before, *loop, *after]) == set(loop)
    loop = spoken("Thank you. thank you, THANK YOU! thank you thank you thank", 40.0)  # breaks off
    assert looped([*before, *loop]) == set(loop)


def test_people_repeat_themselves():
    for text in ("no no no no no", "thank you thank you thank you", "yeah yeah yeah", "very, very, very, very good"):
        assert not looped(spoken(f"{SENTENCE} {text} {SENTENCE}"))
    listener = [word for n in range(90) for word in spoken("yeah", 2.3 * n, speaker="user")]
    assert not looped(listener) and len(listener) == 90


def test_copies_that_differ_a_little_are_found_where_they_are_said():
    lines = [f"so we are going to go to the {name} slide now" for name in ("next", "first", "last", "other", "same")]
    loop, before = spoken(" ".join(lines * 2), 30.0, step=0.2), spoken(SENTENCE)
    assert looped([*before, *loop]) == set(loop)


def test_channels_do_not_meet():
    mine, yours = spoken("thank you " * 3), spoken("thank you " * 3, speaker="user")
    assert not looped([*mine, *yours])
    assert looped([*spoken("thank you " * 9), *yours]) == set(spoken("thank you " * 9))


@given(st.lists(st.sampled_from(["no", "No,", "yes", "thank", "you", "...", "é", "\ud800", "mountains"]), max_size=120))
def test_what_is_left_holds_no_loop_and_only_loops_are_taken(texts):
    texts = [text.encode("utf-8", "ignore").decode() or "?" for text in texts]
    words = [Word(text, 0.2 * n, 0.2 * n + 0.1, "model", None) for n, text in enumerate(texts)]
    found = looped(words)
    assert found == looped(words[::-1]) and found <= set(words)
    left = [word for word in words if word not in found]
    for n in range(4):
        text = " ".join(word.text for word in left if 30 * n <= word.start < 30 * (n + 1)).encode()
        assert not text or len(text) / len(zlib.compress(text)) <= MOST_COMPRESSION


def test_a_text_that_zlib_makes_longer_has_a_compression_below_one():
    assert compression("no") < 1 < compression("thank you " * 9)
