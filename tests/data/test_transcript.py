"""Word times: what is repaired, counted, and refused."""

from __future__ import annotations

import json

import pytest

from moshijax.data.transcript import UnknownSpeaker, Word, parse_alignments, read_sidecar
from moshijax.errors import DataError

MAIN, USER = "SPEAKER_MAIN", "SPEAKER_USER"


def parse(entries, duration=10.0, **options):
    words, counts = parse_alignments(entries, duration, **options)
    return words, dict(counts)


def test_good_words_are_kept_as_they_are():
    words, counts = parse([["Hi", [0.5, 0.8], MAIN], ["there", [1.0, 1.25], USER]])
    assert words == [Word("Hi", 0.5, 0.8, "model"), Word("there", 1.0, 1.25, "user")]
    assert counts == {}


@pytest.mark.parametrize("times", [[None, None], None, [float("nan"), None]])
def test_word_without_times_is_interpolated(times):
    words, counts = parse([["a", [1.0, 1.2], MAIN], ["2", times, MAIN], ["b", [2.0, 2.2], MAIN]])
    assert [w.text for w in words] == ["a", "2", "b"]
    assert words[1].start == pytest.approx(1.6) and words[1].end == pytest.approx(2.0)
    assert counts == {"estimated_start": 1, "estimated_end": 1}


def test_missing_end_is_the_next_start_capped():
    words, counts = parse([["a", [1.0, None], MAIN], ["b", [1.5, None], MAIN], ["c", [8.0, 8.2], MAIN]])
    assert [w.end for w in words] == [1.5, 2.5, 8.2]
    assert counts == {"estimated_end": 2}


def test_reversed_times_are_repaired_and_counted():
    words, counts = parse([["a", [9.92, 9.72], MAIN]])
    assert words[0].start == 9.92 and 9.92 < words[0].end <= 10.0
    assert counts == {"reversed": 1}


def test_zero_length_word_is_not_dropped():
    words, counts = parse([["a", [1.0, 1.0], MAIN], ["b", [1.3, 1.5], MAIN]])
    assert (words[0].start, words[0].end) == (1.0, 1.3)
    assert counts == {"zero_length": 1}


def test_unsorted_words_are_sorted_and_counted():
    words, counts = parse([["b", [2.0, 2.2], MAIN], ["a", [1.0, 1.2], MAIN]])
    assert [w.text for w in words] == ["a", "b"]
    assert counts == {"unsorted": 1}


def test_repeated_words_and_low_scores_are_counted():
    slip = [["the", [i * 0.2, i * 0.2 + 0.1], MAIN, 0.1] for i in range(5)]
    _, counts = parse(slip, min_score=0.5)
    assert counts == {"repeated_words": 1, "low_score": 5}


def test_unknown_speaker_stops_and_names_the_option():
    with pytest.raises(UnknownSpeaker, match=r"speaker 'SPEAKER_7' of word 'a' .*--speaker SPEAKER_7=model"):
        parse([["a", [0.0, 0.1], "SPEAKER_7"]])
    words, _ = parse([["a", [0.0, 0.1], "SPEAKER_7"]], speakers={"SPEAKER_7": "user"})
    assert words[0].speaker == "user"


def test_word_outside_the_recording_is_refused():
    with pytest.raises(DataError, match=r"word 'a' at 12.00 to 12.50 s lies outside the recording of 10.00 s"):
        parse([["a", [12.0, 12.5], MAIN]])
    words, counts = parse([["a", [9.8, 10.2], MAIN]])
    assert words[0].end == 10.0 and counts == {"clamped": 1}


@pytest.mark.parametrize("entry", ["word", ["a", [0.0]], ["a"], [3, [0.0, 0.1], MAIN], None])
def test_entry_of_another_form_is_refused(entry):
    with pytest.raises(DataError, match=r"alignment 0 is .*it must be \[word, \[start, end\], speaker\]"):
        parse([entry])


def test_scripts_of_all_kinds_survive(tmp_path):
    texts = ["שלום", "مرحبا", "🙂", "日本語", "cafe\u0301", "a\u00a0b"]
    entries = [[text, [i * 1.0, i + 0.5], MAIN] for i, text in enumerate(texts)]
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"alignments": entries}, ensure_ascii=False), encoding="utf-8")
    words, counts = parse(read_sidecar(path)["alignments"])
    assert [w.text for w in words] == ["שלום", "مرحبا", "🙂", "日本語", "café", "a b"]
    assert counts == {}


def test_sidecar_that_is_not_utf8_or_json_is_named(tmp_path):
    path = tmp_path / "x.json"
    for content, message in (
        (b'{"alignments": [["caf\xe9"', "is not UTF-8"),
        (b"{", "is not JSON"),
        (b"[]", 'has no list "alignments"'),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"x.json {message}"):
            read_sidecar(path)
    with pytest.raises(DataError, match=r"missing.json does not exist"):
        read_sidecar(tmp_path / "missing.json")


@pytest.mark.parametrize("entry", [["a", [0, 1], ["A"]], ["\ud83d", [0, 1], "model"], ["a", [10**400, 1], "model"]])
def test_labels_texts_and_times_that_no_file_can_hold_reject_the_recording(entry):
    with pytest.raises(DataError, match="alignment 0 is .*: it must be"):
        parse_alignments([entry], 2.0)
