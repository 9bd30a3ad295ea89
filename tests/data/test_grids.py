"""Batches of grids: rows by layout, windows, text, and batch n as a function of data, seed and n alone."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from moshijax import files
from moshijax.data import records
from moshijax.data.grids import GridData, grid_batches
from moshijax.data.interleave import TextPlacement, place_text
from moshijax.data.manifest import read_manifest
from moshijax.data.prepare import PrepareConfig, prepare
from moshijax.data.records import read_index
from moshijax.data.text import train_tokenizer
from moshijax.data.transcript import Word
from moshijax.errors import ConfigError, DataError
from moshijax.lm import layouts
from moshijax.tokens import EPAD, PAD, ZERO
from moshijax.train.tasks.lm import log_placement
from tests.data.sets import LevelEncoder, write_set

LAYOUT = layouts.dialogue(3, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grids")
    prepare(read_manifest(write_set(folder / "in", 9)), folder / "out", LevelEncoder(), PrepareConfig(shard_items=4))
    return folder / "out"


def write_long(folder, length, first=0):
    """One recording whose codes are the frame numbers from `first` and whose words begin every fourth frame."""
    folder.mkdir(exist_ok=True)
    frames = np.arange(first, first + length, dtype=np.int16)
    codes = np.stack(
        [np.stack([frames + 1000 * q for q in range(3)]), np.stack([frames + 1000 * q + 500 for q in range(3)])]
    )
    words = [["ab", 4 * i * 0.08, 4 * i * 0.08 + 0.2, "model"] for i in range(length // 4)]
    record = {"id": "long", "codes": codes, "words": words, "duration": length * 0.08, "provenance": {}}
    name = records.shard_name(0, 1)
    records.write_shard(folder / name, [record])
    codec = {"sha256": "x", "num_codebooks": 3, "sample_rate": 24_000, "frame_size": 1920}
    index = {
        "format_version": records.FORMAT_VERSION, "kind": "dialogue", "codec": codec, "sha256": f"long {first}",
        "shards": [{"file": name, "records": 1, "frames": [length]}],
    }  # fmt: skip
    files.write_json(folder / records.INDEX, index)
    return folder


@pytest.fixture(scope="module")
def long_folder(tmp_path_factory):
    return write_long(tmp_path_factory.mktemp("long"), 300)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["hello yes ab"], 30, byte_fallback=False)


def source(folder, tokenizer, seed=1, layout=LAYOUT, **options):
    return grid_batches(GridData((str(folder),), 4, **{"num_frames": 30, **options}), layout, tokenizer, seed)


def test_what_there_is_is_said_and_where(folder, long_folder, tokenizer):
    found = source(long_folder, tokenizer)
    assert found.content == "1 recordings, 0.4 minutes"
    assert found.files == {f"{long_folder}/{records.shard_name(0, 1)}": long_folder / records.shard_name(0, 1)}
    assert source(folder, tokenizer).content.startswith("9 recordings, ") and len(source(folder, tokenizer).files) == 3


def digest(batches):
    return [hashlib.sha256(batch["codes"].tobytes()).hexdigest() for batch in batches]


def test_rows_are_what_the_layout_says(folder, tokenizer):
    by_words = {record["codes"].tobytes(): record for record in records.RecordSource(folder)}
    assert len(by_words) == 9
    batch = source(folder, tokenizer, num_frames=80).batch(0)["codes"]
    assert batch.shape == (4, 7, 80) and batch.dtype == np.int32
    for grid in batch:
        frames = int((grid[1] != ZERO).sum())
        codes = np.stack([grid[1:4, :frames], grid[4:7, :frames]]).astype(np.int16)
        record = by_words[codes.tobytes()]
        words = [Word(*word) for word in record["words"]]
        expected, _ = place_text(words, frames, 12.5, tokenizer.encode)
        np.testing.assert_array_equal(grid[0, :frames], expected)
        assert (grid[:, frames:] == ZERO).all()
        assert tokenizer.decode(grid[0]) == "yes"


def test_other_layouts(folder, tokenizer):
    single = source(folder, tokenizer, layout=layouts.single_stream(2), num_frames=80).batch(0)["codes"]
    assert single.shape[1] == 3 and tokenizer.decode(single[0, 0]) == "yes"
    heard = source(folder, tokenizer, layout=layouts.recognition(3), num_frames=80).batch(0)["codes"]
    assert heard.shape[1] == 4 and tokenizer.decode(heard[0, 0]) == "hello"


def test_swapped_and_masked(folder, tokenizer):
    plain = source(folder, tokenizer, num_frames=80).batch(0)["codes"]
    swapped = source(folder, tokenizer, num_frames=80, swap_speakers=1.0).batch(0)["codes"]
    np.testing.assert_array_equal(plain[:, 1:4], swapped[:, 4:7])
    assert {tokenizer.decode(row) for row in swapped[:, 0]} == {"hello"}
    masked = source(folder, tokenizer, num_frames=80, text_mask=1.0).batch(0)["codes"]
    assert (masked[:, 0] == ZERO).all()
    np.testing.assert_array_equal(plain[:, 1:], masked[:, 1:])


def test_windows_of_a_long_recording(long_folder, tokenizer):
    """Text in a window is what placing the whole recording gives: nothing is lost or changed at the edges."""
    record = records.RecordSource(long_folder)[0]
    whole, counts = place_text([Word(*w) for w in record["words"]], 300, 12.5, tokenizer.encode)
    assert counts.words == 75 and counts.lost_tokens == 0
    batches = source(long_folder, tokenizer, num_frames=40)
    covered = set()
    for n in range(25):
        for grid in batches.batch(n)["codes"]:
            start = int(grid[1, 0])
            np.testing.assert_array_equal(grid[1], np.arange(start, start + 40))
            np.testing.assert_array_equal(grid[5], np.arange(start, start + 40) + 1500)
            np.testing.assert_array_equal(grid[0], whole[start : start + 40])
            covered.update(range(start, start + 40))
    assert covered == set(range(300))


def test_jitter_moves_text_and_not_audio(long_folder, tokenizer):
    plain = source(long_folder, tokenizer).batch(0)["codes"]
    moved = source(long_folder, tokenizer, text_jitter=0.6).batch(0)["codes"]
    np.testing.assert_array_equal(plain[:, 1:], moved[:, 1:])
    assert (plain[:, 0] != moved[:, 0]).any()


def test_jitter_is_uniform_in_both_directions(long_folder, tokenizer):
    """Up to 1.5 frames, rounded down: by -2, -1, 0 and 1 frames with probabilities 1, 2, 2 and 1 of 6."""
    moved, shifts = source(long_folder, tokenizer, num_frames=40, text_jitter=0.12), []
    for n in range(150):
        for grid in moved.batch(n)["codes"]:
            begins = np.flatnonzero(grid[0] == EPAD) + 1 + grid[1, 0]  # undisturbed, every fourth frame
            (shift,) = set(begins[1:-1] % 4)
            shifts.append(shift)
    np.testing.assert_allclose(np.bincount(shifts, minlength=4) / 600, np.array([2, 1, 1, 2]) / 6, atol=0.05)


def test_the_user_has_gaps_and_the_model_has_none(long_folder, tokenizer):
    """Single cells, drawn one by one, or the upper codebooks of a row; the semantic one stays."""
    plain, gaps, levels = (
        np.concatenate([source(long_folder, tokenizer, **options).batch(n)["codes"] for n in range(40)])
        for options in ({}, {"user_mask": 0.25}, {"user_levels": True})
    )
    for changed in (gaps, levels):
        np.testing.assert_array_equal(changed[:, :4], plain[:, :4])
        user = changed[:, 4:]
        np.testing.assert_array_equal(user, np.where(user == ZERO, ZERO, plain[:, 4:]))
    np.testing.assert_allclose((gaps[:, 4:] == ZERO).mean(axis=(0, 2)), 0.25, atol=0.02)
    assert ((gaps[:, 4] == ZERO) != (gaps[:, 5] == ZERO)).any(axis=1).all()
    kept = (levels[:, 4:] != ZERO).all(axis=2)
    assert (kept == (levels[:, 4:] != ZERO).any(axis=2)).all() and (np.diff(kept.astype(int), axis=1) <= 0).all()
    np.testing.assert_allclose(np.bincount(kept.sum(axis=1), minlength=4) / 160, [0, 1 / 3, 1 / 3, 1 / 3], atol=0.1)


def test_text_shift_is_the_recipes_and_late_text_outlasts_the_audio(long_folder, tokenizer):
    plain = source(long_folder, tokenizer, num_frames=310).batch(0)["codes"][0]
    rule = TextPlacement(text_shift=0.8)
    late = source(long_folder, tokenizer, num_frames=310, placement=rule).batch(0)["codes"][0]
    np.testing.assert_array_equal(plain[1:], late[1:])
    assert (late[1:, 300:] == ZERO).all()
    assert (late[0, :9] == ZERO).all()
    np.testing.assert_array_equal(plain[0, 10:300], late[0, 20:310])


def test_next_hundred_batches_depend_on_data_seed_and_number_only(folder, tokenizer):
    first = source(folder, tokenizer, text_jitter=0.3)
    expected = digest(first.batch(n) for n in range(100))
    assert len(set(expected)) == 100
    resumed = source(folder, tokenizer, text_jitter=0.3)
    assert digest(resumed.batch(n) for n in range(60, 100)) == expected[60:]
    assert digest([resumed.batch(7)]) == expected[7:8]
    assert digest(source(folder, tokenizer, seed=2, text_jitter=0.3).batch(n) for n in range(100)) != expected


def test_any_number_of_processes_feeds_the_same_batch(folder, tokenizer):
    for n in (0, 3):
        whole = source(folder, tokenizer).batch(n)["codes"]
        for processes in (1, 2, 4):
            share = 4 // processes
            rows = [slice(first, first + share) for first in range(0, 4, share)]
            parts = [source(folder, tokenizer).batch(n, own)["codes"] for own in rows]
            np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_every_recording_once_an_epoch(folder, tokenizer):
    batches = source(folder, tokenizer, num_frames=80)
    items = np.concatenate([batches.batch(n)["codes"] for n in range(9)])
    epochs = items.reshape(4, 9, -1)
    orders = []
    for epoch in epochs:
        assert len({item.tobytes() for item in epoch}) == 9
        orders.append([item.tobytes() for item in epoch])
    assert orders[0] != orders[1]


def test_mixture_by_weights(folder, long_folder, tokenizer):
    mix = GridData((str(folder), str(long_folder)), 4, 30, weights=(3.0, 1.0))
    codec = read_index(folder)["codec"]["sha256"]
    with pytest.raises(DataError, match=f"encoded by different codecs, {codec} and x: prepare them with one"):
        grid_batches(mix, LAYOUT, tokenizer, 0)


@pytest.mark.parametrize(("weights", "share"), [((1.0, 3.0), 0.25), ((), 0.75)])
def test_a_mixture_has_the_shares_of_its_weights(long_folder, tmp_path, tokenizer, weights, share):
    """Else of the windows: 12 and 4 of 25 frames."""
    other = write_long(tmp_path, 100, first=400)
    mix = grid_batches(GridData((str(long_folder), str(other)), 4, 25, weights=weights), LAYOUT, tokenizer, 0)
    assert mix.items == 16
    for begin in (0, 4):
        first = np.concatenate([mix.batch(n)["codes"][:, 1, 0] for n in range(begin, begin + 4)])
        assert (first < 400).mean() == share


def test_over_a_thousand_batches_the_shares_are_what_was_asked(tmp_path, tokenizer):
    """To the row, wherever the thousand begin; logged, with the share of padding; the same in a source of its own."""
    lengths = (300, 100, 20)
    paths = tuple(str(write_long(tmp_path / str(n), length, 400 * n)) for n, length in enumerate(lengths))
    config = GridData(paths, 2, 25, weights=(5.0, 3.0, 2.0))
    mix = grid_batches(config, LAYOUT, tokenizer, 0)
    assert mix.content.endswith(
        f"; rows: 50.00% {paths[0]}, 30.00% {paths[1]}, 20.00% {paths[2]}; 4.00% of the places are padding, which is "
        "not scored"
    )  # a fifth of the window of the third set
    begin = 12_345
    batches = [mix.batch(n)["codes"] for n in range(begin, begin + 1000)]
    sets = np.bincount(np.concatenate([codes[:, 1, 0] for codes in batches]) // 400, minlength=3)
    assert np.abs(sets - np.array([1000, 600, 400])).max() <= 2
    assert np.mean([codes[:, 1] == ZERO for codes in batches]) == pytest.approx(0.04, abs=3e-4)
    other = grid_batches(config, LAYOUT, tokenizer, 0)
    parts = [other.batch(begin + 999, slice(first, first + 1))["codes"] for first in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(parts), batches[-1])


def test_refusals(folder, tokenizer, tmp_path):
    with pytest.raises(ConfigError, match=r"wants codebook 3, but the data has 3"):
        source(folder, tokenizer, layout=layouts.dialogue(4))
    with pytest.raises(DataError, match=r"nowhere holds no dataset.json"):
        source(tmp_path / "nowhere", tokenizer)
    with pytest.raises(DataError, match=r"missing holds no dataset.json"):
        grid_batches(GridData((str(folder), str(tmp_path / "missing"))), LAYOUT, tokenizer, 0)
    with pytest.raises(ConfigError, match="give a tuple"):
        GridData("x")
    with pytest.raises(ConfigError, match="text_mask is 2"):
        GridData(("x",), text_mask=2.0)


def write_unknown_word(folder, others=40):
    """Many short recordings of "yes", and in one of them a word that the tokenizer cannot write beside it."""
    given = [[["yes", 0.1, 0.3, "model"]] for _ in range(others)]
    given[7] = [["naïve", 0.1, 0.3, "model"], ["yes", 0.5, 0.7, "model"]]
    return write_words(folder, given)


def write_words(folder, given):
    """Short recordings with the words that are given for each."""
    folder.mkdir()
    others, codes = len(given), np.zeros((2, 3, 12), np.int16)
    found = [
        {"id": f"call-{n}", "codes": codes, "words": words, "duration": 0.96, "provenance": {}}
        for n, words in enumerate(given)
    ]
    name = records.shard_name(0, 1)
    records.write_shard(folder / name, found)
    codec = {"sha256": "x", "num_codebooks": 3, "sample_rate": 24_000, "frame_size": 1920}
    index = {
        "format_version": records.FORMAT_VERSION, "kind": "dialogue", "codec": codec, "sha256": "unknown",
        "shards": [{"file": name, "records": others, "frames": [12] * others}],
        "report": {"rejected": [], "flags": {}},
    }  # fmt: skip
    files.write_json(folder / records.INDEX, index)
    return folder


def test_a_word_that_the_tokenizer_lacks_is_left_out_and_named_wherever_it_is(tmp_path, tokenizer, caplog):
    batches = source(write_unknown_word(tmp_path / "data"), tokenizer, num_frames=12)
    number, counts = batches.placement_counts(most=2)  # which does not look at that recording
    assert counts.words == number and not counts.unknown and not caplog.records
    rows = np.concatenate([batches.batch(n)["codes"][:, 0] for n in range(30)])
    assert {tokenizer.decode(row) for row in rows} == {"yes"}
    ((record),) = caplog.records
    said = "recording call-7: 'naïve' has characters that the tokenizer lacks; it is left out of the text"
    assert record.getMessage() == said
    number, counts = batches.placement_counts()
    assert number == counts.words == 40 and counts.unknown == {"naïve": 1}


def test_a_tokenizer_that_lacks_most_words_is_refused(tmp_path, tokenizer):
    folder = write_unknown_word(tmp_path / "data")
    log_placement(source(folder, tokenizer))
    with pytest.raises(DataError, match="lacks characters of 40 of 41 words, such as 'yes': use the one that belongs"):
        log_placement(source(folder, train_tokenizer(["naïve"], 20, byte_fallback=False)))


def test_transcripts_with_more_words_than_their_recordings_can_hold_are_refused(tmp_path, tokenizer, caplog):
    caplog.set_level("INFO", "moshijax")
    each = len(tokenizer.encode("yes"))
    room = 11 // each  # the first frame is EPAD's
    yes = [["yes", 0.1, 0.3, "model"]]
    # One token in a hundred or so has no room: it is counted, and the run continues.
    fine = source(write_words(tmp_path / "fine", [yes * room] * 39 + [yes * (room + 5)]), tokenizer, num_frames=12)
    log_placement(fine)
    _, counts = fine.placement_counts()
    assert counts.tokens == each * (40 * room + 5) and counts.crowded == {"call-39": counts.lost_tokens}
    (line,) = [record for record in caplog.records if "tokens without room" in record.message]
    assert line.levelname == "WARNING" and f" {counts.lost_tokens} tokens without room" in line.message
    long = source(write_words(tmp_path / "long", [yes] * 3 + [yes * 40, yes * 60]), tokenizer, num_frames=12)
    lost = long.placement_counts()[1].crowded["call-4"]
    with pytest.raises(DataError, match=rf"of {each * 103} tokens have no room in the 5 .* {lost} of them in call-4"):
        log_placement(long)


def test_recordings_without_words_are_padding_and_counted(tmp_path, tokenizer, caplog):
    caplog.set_level("INFO", "moshijax")
    said, heard = [["yes", 0.1, 0.3, "model"]], [["yes", 0.1, 0.3, "user"]]
    for name, given, level in (("few", [said, said, []], "INFO"), ("most", [[], heard, said], "WARNING")):
        batches = source(write_words(tmp_path / name, given), tokenizer, num_frames=12)
        log_placement(batches)
        wordless = sum(words != said for words in given)
        line = caplog.records[-1]
        assert line.levelname == level and f"; {wordless} recordings have no words" in line.message
        rows = np.concatenate([batches.batch(n)["codes"][:, 0] for n in range(20)])
        assert {tokenizer.decode(row) for row in rows} == {"yes", ""} and (rows >= 0).all()
        assert any((row == PAD).all() for row in rows)


def test_counts_of_moved_words(long_folder, tokenizer):
    _, counts = source(long_folder, tokenizer).placement_counts()
    assert counts.words == 75 and counts.lost_tokens == 0
    assert PAD != EPAD
