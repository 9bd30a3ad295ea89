"""Words with times from text tokens, at once and as they come."""

from __future__ import annotations

from moshijax.runtime.text import Words, words_of


def test_pieces_join_to_words_with_times(loaded):
    pieces = loaded.pieces
    begin, inside = pieces.index("\u2581g"), pieces.index("h")
    tokens = [3, 3, 0, begin, inside, 3, 3, begin, 3]
    assert words_of(loaded, tokens) == [("gh", 0.24, 0.4), ("g", 0.56, 0.64)]


def test_special_and_missing_tokens_say_nothing(loaded):
    assert words_of(loaded, [-2, 0, 1, 2, 3, 3]) == []


def test_a_call_may_begin_inside_a_word(loaded):
    assert words_of(loaded, [loaded.pieces.index("h")]) == [("h", 0.0, 0.08)]


def test_bytes(loaded, monkeypatch):
    monkeypatch.setattr(loaded, "pieces", ["<unk>", "<s>", "</s>", "<pad>", "\u2581", "<0xC3>", "<0xA9>", "t"])
    assert words_of(loaded, [4, 7, 5, 6]) == [("té", 0.0, 0.32)]


def test_words_come_as_they_are_complete(loaded):
    begin, inside = loaded.pieces.index("\u2581g"), loaded.pieces.index("h")
    words, seen = Words(loaded, delay=0.08), []
    for token in (3, begin, inside, 3, begin, 0, 3):
        if (word := words.feed(token)) is not None:
            seen.append((word, words.pending))
    assert seen == [(("gh", 0.0, 0.16), "g")]
    assert words.finish() == ("g", 0.24, 0.32) and words.finish() is None
