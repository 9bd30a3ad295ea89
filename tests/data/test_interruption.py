"""Turns that the user cuts short, and speakers that change sides: exact grids, and what is counted."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from moshijax import files
from moshijax.data import records
from moshijax.data.grids import GridData, GridMaker, Window, grid_batches
from moshijax.data.interleave import TextPlacement
from moshijax.data.interruption import Cut, interrupt, turns
from moshijax.data.text import train_tokenizer
from moshijax.data.transcript import Word
from moshijax.errors import ConfigError
from moshijax.lm import layouts
from moshijax.lm.delays import delay
from moshijax.tokens import EPAD, PAD, ZERO
from moshijax.train.tasks.lm import log_placement

RATE, FRAME = 12.5, 0.08
SILENCE = [7, 8]
LAYOUT = layouts.dialogue(2, 1)


def said(speaker, *frames, length=2):
    return [Word("ab", frame * FRAME, (frame + length) * FRAME, speaker) for frame in frames]


# The model speaks in frames 0 to 22 and, after a pause, from 50 on; the user comes in at 8, for more than a second.
MODEL, LATER = said("model", 0, 4, 8, 12, 16, 20), said("model", 50, 54)
USER = said("user", 8, 12, 16, 19)
WORDS = sorted([*MODEL, *LATER, *USER], key=lambda word: word.start)


def cuts_of(words, most=0, probability=1.0, seed=0):
    return interrupt(words, RATE, probability, most, np.random.default_rng(seed))


def test_turns_end_at_a_pause_of_a_second():
    assert turns(WORDS, "model") == [MODEL, LATER] and turns(WORDS, "user") == [USER]
    assert len(turns(said("model", 0, 14), "model")) == 1 and len(turns(said("model", 0, 15), "model")) == 2


def test_the_rest_of_the_turn_is_cut_and_counted():
    left, cuts = cuts_of(WORDS)
    assert cuts == [Cut(8 * FRAME, 8, 29, 4)]  # the last word ends in frame 22, and half of the pause has 6.25
    assert [word for word in left if word.speaker == "model"] == [*MODEL[:2], *LATER]
    assert [word for word in left if word.speaker == "user"] == USER


def test_the_model_speaks_on_for_up_to_so_many_frames():
    found = {}
    for seed in range(40):
        left, (cut,) = cuts_of(WORDS, 5, seed=seed)
        found[cut.first] = cut.words
        assert len(left) + cut.words == len(WORDS)
    assert found == {8: 4, 9: 3, 10: 3, 11: 3, 12: 3, 13: 2}


@pytest.mark.parametrize(
    "user",
    [
        said("user", 8, 11, length=3),  # two words, shorter than a second
        said("user", 30, 34, 38),  # the model is silent
        said("user", 0, 4, 8),  # begins with the model
        said("user", 21, 25, 29),  # no word of the turn is left
    ],
)
def test_backchannels_and_turns_in_silence_cut_nothing(user):
    words = sorted([*MODEL, *LATER, *user], key=lambda word: word.start)
    assert cuts_of(words) == (words, [])


def test_every_begin_has_the_probability():
    yielded = sum(len(cuts_of(WORDS, 3, 0.3, seed)[1]) for seed in range(1000))
    assert yielded / 1000 == pytest.approx(0.3, abs=0.04)
    assert cuts_of(WORDS, 3, 0.0)[1] == []


# On the grid ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["ab ab"], 10, byte_fallback=False)


def record_of(words=WORDS, frames=64):
    codes = np.arange(frames, dtype=np.int16) + 100 * np.arange(1, 5, dtype=np.int16).reshape(2, 2, 1)
    return {"id": "a", "codes": codes, "words": [[w.text, w.start, w.end, w.speaker] for w in words]}


def maker_of(tokenizer, layout=LAYOUT, silence=SILENCE, **options):
    config = GridData(("unused",), **{"num_frames": 64, "interruption": 1.0, "interruption_frames": 0, **options})
    return GridMaker(layout, tokenizer, config, RATE, 2, silence=silence)


def test_a_cut_on_the_grid_cell_by_cell(tokenizer):
    """From frame 8 to 28 the model is silent and its text PAD; the user and all other cells stay as they were."""
    record = record_of()
    cut, plain = maker_of(tokenizer), maker_of(tokenizer, interruption=0.0)
    chosen = cut.choose(record, 0, np.random.default_rng(0))
    grid = cut.window(record, chosen)
    before = plain.window(record, plain.choose(record, 0, np.random.default_rng(0)))
    assert (grid[0, 8:48] == PAD).all() and (before[0, 8:22] != PAD).any()
    assert (grid[1, 8:29] == 7).all() and (grid[2, 8:29] == 8).all()
    np.testing.assert_array_equal(grid[3:], before[3:])
    outside = np.r_[0:7, 29:64]
    np.testing.assert_array_equal(grid[:, outside], before[:, outside])
    np.testing.assert_array_equal(grid[1:3, 7], before[1:3, 7])
    assert before[0, 7] == EPAD and grid[0, 7] == PAD
    # The delays of the layout move rows afterwards, those that are silent as all others.
    late = np.asarray(delay(grid[None], LAYOUT.delays, [ZERO] * 5))[0]
    (first, second) = (np.flatnonzero(late[row] == SILENCE[row - 1])[0] for row in (1, 2))
    assert (first, second) == (8, 8 + LAYOUT.delays[2]) and LAYOUT.delays[2] == 1


@pytest.mark.parametrize("shift", [-0.24, 0.24])
def test_windows_and_shifted_text_are_pieces_of_the_whole(tokenizer, shift):
    record, rule = record_of(), TextPlacement(text_shift=shift)
    whole = maker_of(tokenizer, placement=rule, num_frames=67)
    chosen = whole.choose(record, 0, np.random.default_rng(0))
    grid = whole.window(record, chosen)
    silent = np.flatnonzero((grid[1] == 7) & (grid[2] == 8))
    np.testing.assert_array_equal(silent, np.arange(8, 29) + (3 if shift < 0 else 0))
    words = np.flatnonzero((grid[0] != PAD) & (grid[0] != ZERO) & (grid[0] != EPAD))
    assert not ((8 + 3 * (shift > 0) <= words) & (words < 50)).any() and words[-1] > 50
    small = maker_of(tokenizer, placement=rule, num_frames=20)
    for start in (0, 1, 5, 11, 20, 33, 47):
        piece = small.window(record, Window("a", start, cuts=chosen.cuts, words=chosen.words))
        np.testing.assert_array_equal(piece, grid[:, start : start + 20])


def test_exchanging_the_speakers_twice_changes_nothing(tokenizer):
    record = record_of()
    names = {"model": "user", "user": "model"}
    other = {**record, "codes": record["codes"][::-1], "words": [[*w[:3], names[w[3]]] for w in record["words"]]}
    maker = maker_of(tokenizer, interruption=0.0)

    def grid(of, swap):
        return maker.window(of, Window("a", 0, swap, words=maker.words(of, swap)))

    np.testing.assert_array_equal(grid(other, True), grid(record, False))
    np.testing.assert_array_equal(grid(other, False), grid(record, True))
    np.testing.assert_array_equal(grid(record, True)[1:3], record["codes"][1])
    assert not np.array_equal(grid(record, True), grid(record, False))


def test_who_is_cut_is_who_plays_the_model(tokenizer):
    """Exchanged, the user's words are the model's: it is not spoken over, and nothing is cut."""
    maker = maker_of(tokenizer, swap_speakers=1.0)
    chosen = maker.choose(record_of(), 0, np.random.default_rng(0))
    assert chosen.swap and chosen.cuts == () and len(chosen.words) == len(WORDS)
    longer = [*said("model", 0, 4, 8, 12, 16), *said("user", 6, 10, 14, 18, 22)]
    words = sorted([*longer, *said("model", 14.5, 17.5)], key=lambda word: word.start)
    assert len(maker_of(tokenizer).choose(record_of(words), 0, np.random.default_rng(0)).cuts) == 1


def test_data_that_cannot_be_cut_is_refused(tokenizer):
    for options in ({"silence": None}, {"layout": layouts.recognition(2)}):
        with pytest.raises(ConfigError, match="interruption is 1.0, which takes a layout with the model's audio"):
            maker_of(tokenizer, **options)
        maker_of(tokenizer, **options, interruption=0.0)
    for fields, message in (({"interruption": 1.1}, "probability"), ({"interruption_frames": -1}, "use 0 or more")):
        with pytest.raises(ConfigError, match=message):
            GridData(("a",), **fields)


def test_batches_say_what_was_drawn(tmp_path, tokenizer, caplog):
    name = records.shard_name(0, 1)
    records.write_shard(tmp_path / name, [{**record_of(), "duration": 5.12, "provenance": {}}])
    codec = {"sha256": "x", "num_codebooks": 2, "sample_rate": 24_000, "frame_size": 1920, "silence": SILENCE}
    shards = [{"file": name, "records": 1, "frames": [64]}]
    index = {"format_version": records.FORMAT_VERSION, "kind": "dialogue", "codec": codec, "sha256": "s"}
    files.write_json(tmp_path / records.INDEX, {**index, "shards": shards})

    def source(**options):
        return grid_batches(GridData((str(tmp_path),), 8, 64, **options), LAYOUT, tokenizer, seed=1)

    options = {"swap_speakers": 0.5, "interruption": 0.5, "interruption_frames": 3}
    one, other = source(**options), source(**options)
    np.testing.assert_array_equal(other.batch(5)["codes"], one.batch(5)["codes"])
    assert one.drawn(5) == other.drawn(5) != one.drawn(6)
    seen = set()
    for n in range(6):
        for grid, drawn in zip(one.batch(n)["codes"], one.drawn(n), strict=True):
            assert drawn.swap == (grid[3, 0] == 100)
            silent = np.flatnonzero(grid[1] == 7)
            assert [cut.first for cut in drawn.cuts] == list(silent[:1])
            seen.add((drawn.swap, len(drawn.cuts)))
    assert seen == {(True, 0), (False, 0), (False, 1)}
    # What is not cut is drawn as if nothing could be.
    plain = source(swap_speakers=0.5)
    for n in range(3):
        np.testing.assert_array_equal(one.batch(n)["codes"][:, 3:], plain.batch(n)["codes"][:, 3:])
    with caplog.at_level(logging.INFO, "moshijax"):
        log_placement(one)
    rows = [row for n in range(32) for row in one.drawn(n)]
    cuts = [cut for row in rows for cut in row.cuts]
    assert f"in the first 256 rows, {sum(row.swap for row in rows)} with speakers exchanged" in caplog.text
    assert (
        f"{len(cuts)} turns of the model are cut short; {sum(cut.words for cut in cuts)} words dropped" in caplog.text
    )
