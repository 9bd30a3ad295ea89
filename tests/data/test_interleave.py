"""The text row, cell by cell."""

from __future__ import annotations

import numpy as np
import pytest

from moshijax.data.interleave import TextPlacement, place_text
from moshijax.data.transcript import Word
from moshijax.errors import ConfigError
from moshijax.tokens import BOS, EOS, EPAD, PAD, ZERO

RATE = 12.5
FRAME = 1 / RATE
TOKENS = {"a": [10], "bb": [11, 12], "ccc": [13, 14, 15], "dddd": [16, 17, 18, 19]}
PLAIN = TextPlacement()
P, E, Z = PAD, EPAD, ZERO


def place(words, frames, rule=PLAIN, **options):
    words = [Word(text, frame * FRAME, (frame + 1) * FRAME, *speaker or ["model"]) for text, frame, *speaker in words]
    row, counts = place_text(words, frames, RATE, TOKENS.__getitem__, rule, **options)
    assert row.dtype == np.int32
    return row.tolist(), counts


def test_word_at_its_frame_with_epad_before():
    row, counts = place([("ccc", 2.5)], 7)
    assert row == [P, E, 13, 14, 15, P, P]
    assert (counts.words, counts.shifted, counts.pulled, counts.lost_tokens) == (1, 0, 0, 0)


def test_start_on_a_frame_edge_belongs_to_that_frame():
    for frame in range(1, 200):
        row, _ = place([("a", frame)], 220)
        assert row.index(10) == frame


def test_word_at_the_first_frame_is_moved_behind_its_epad():
    row, counts = place([("ccc", 0)], 6)
    assert row == [E, 13, 14, 15, P, P]
    assert counts.shifted == 0


def test_no_epad_between_words_without_a_gap():
    row, counts = place([("bb", 1), ("a", 3)], 6)
    assert row == [E, 11, 12, 10, P, P]
    assert counts.shifted == 0


def test_crowded_words_shift_and_none_is_lost():
    row, counts = place([("dddd", 1), ("bb", 2), ("ccc", 3), ("a", 12)], 14)
    assert row == [E, 16, 17, 18, 19, 11, 12, 13, 14, 15, P, E, 10, P]
    assert (counts.words, counts.shifted, counts.lost_tokens) == (4, 2, 0)


def test_two_words_in_one_frame_both_survive():
    row, counts = place([("a", 2.0), ("bb", 2.4)], 6)
    assert row == [P, E, 10, 11, 12, P]
    assert counts.shifted == 1


def test_tokens_beyond_the_end_move_to_earlier_frames():
    row, counts = place([("a", 1), ("dddd", 4)], 6)
    assert row == [E, 10, 16, 17, 18, 19]
    assert (counts.pulled, counts.lost_tokens) == (1, 0)


def test_more_tokens_than_frames_are_counted():
    row, counts = place([("dddd", 0), ("ccc", 1)], 5)
    assert row == [16, 17, 18, 19, 13]
    assert counts.lost_tokens == 2


def test_no_transcript_is_zero_and_silence_is_pad():
    row, _ = place_text(None, 3, RATE, TOKENS.__getitem__)
    assert row.tolist() == [Z, Z, Z]
    assert place([], 3)[0] == [P, P, P]


def test_other_speaker_only_when_asked_for():
    words = [("a", 1, "model"), ("bb", 4, "user")]
    assert place(words, 7)[0] == [E, 10, P, P, P, P, P]
    assert place(words, 7, TextPlacement(keep_main_only=False))[0] == [E, 10, P, E, 11, 12, P]
    assert place(words, 7, main_speaker="user")[0] == [P, P, P, E, 11, 12, P]


def test_turn_marks():
    words = [("a", 1, "model"), ("a", 3, "model"), ("bb", 5, "user"), ("a", 8, "model")]
    rule = TextPlacement(bos_eos=True)
    assert place(words, 11, rule)[0] == [E, BOS, 10, 10, E, EOS, P, E, BOS, 10, P]
    both = TextPlacement(bos_eos=True, keep_main_only=False)
    assert place(words, 11, both)[0] == [E, BOS, 10, 10, E, EOS, 11, 12, BOS, 10, P]


def test_late_text_leaves_zero_before_it_can_begin():
    rule = TextPlacement(text_shift=3 * FRAME)
    assert place([("a", 2)], 8, rule)[0] == [Z, Z, Z, P, E, 10, P, P]
    assert place([("a", 0)], 6, rule)[0] == [Z, Z, E, 10, P, P]


def test_early_text_keeps_words_that_would_begin_before_the_start():
    row, counts = place([("a", 1), ("bb", 5)], 7, TextPlacement(text_shift=-3 * FRAME))
    assert row == [E, 10, 11, 12, P, P, P]
    assert counts.shifted == 1 and counts.lost_tokens == 0


def test_jitter_moves_every_word():
    assert place([("a", 2), ("a", 5)], 9, jitter=FRAME)[0] == [P, P, E, 10, P, E, 10, P, P]


def test_every_token_is_placed_in_order_whatever_the_crowding():
    random = np.random.RandomState(0)
    for _ in range(300):
        names = random.choice(list(TOKENS), random.randint(0, 8))
        starts = np.sort(random.uniform(0, 20, len(names)))
        row, counts = place([(n, s) for n, s in zip(names, starts, strict=True)], 30)
        expected = [t for n in names for t in TOKENS[n]]
        assert [t for t in row if t > PAD] == expected
        assert counts.lost_tokens == 0 and counts.words == len(names)
        epads = [i for i, t in enumerate(row) if t == EPAD]
        assert all(row[i + 1] > PAD for i in epads)
        assert all(i == 0 or row[i - 1] != PAD for i, t in enumerate(row) if t > PAD)


def test_absurd_shift_is_refused():
    with pytest.raises(ConfigError, match="text_shift is 100"):
        TextPlacement(text_shift=100.0)
