"""Word times: what is repaired, counted, and refused."""

from __future__ import annotations

import json
import pickle

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


def test_unknown_speakers_stop_and_are_named_together_with_the_option():
    labels = ("SPEAKER_7", "John's", "SPEAKER_7", MAIN, "")
    entries = [["a", [number, number + 0.5], label] for number, label in enumerate(labels)]
    message = (
        "unknown speakers, 'SPEAKER_7' (2 words), 1 word without a speaker, \"John's\" (1 word): say of each whether "
        "it is the user or the model, as in --speaker SPEAKER_7=user --speaker =model"
    )
    with pytest.raises(UnknownSpeaker) as caught:
        parse(entries)
    assert str(caught.value) == str(pickle.loads(pickle.dumps(caught.value))) == message
    words, _ = parse(entries, speakers={"SPEAKER_7": "user", MAIN: "model", "": "user", "John's": "model"})
    assert [word.speaker for word in words] == ["user", "model", "user", "model", "user"]


def test_many_unknown_speakers_make_no_endless_message():
    with pytest.raises(UnknownSpeaker, match=r"'26' \(1 word\) and 30 more: say of each") as caught:
        parse([["a", [0.0, 0.1], label] for label in range(50)], speakers={MAIN: "model"})
    assert len(caught.value.labels) == 50


@pytest.mark.parametrize(("label", "text"), [(0, "0"), (1.5, "1.5"), (True, "true"), (None, ""), ("", "")])
def test_labels_are_compared_as_text(label, text):
    words, _ = parse([["a", [0.0, 0.1], label]], speakers={text: "user"})
    assert words[0].speaker == "user"


def test_word_outside_the_recording_is_refused():
    for times in ([12.0, 12.5], [10.5, 10.6], [-0.6, 0.2]):
        with pytest.raises(DataError, match=r"word 'a' at .* s lies outside the recording of 10.00 s"):
            parse([["a", times, MAIN]])
    words, counts = parse([["a", [9.8, 10.2], MAIN]])
    assert words[0].end == 10.0 and counts == {"clamped": 1}


def test_an_end_after_the_recording_is_its_end():
    """Recognisers let the last word last until the end of their 30 s."""
    words, counts = parse([["a", [1.0, 1.2], MAIN], ["b", [9.0, 30.0], MAIN], ["c", [9.5, 30.0], USER]])
    assert [(w.start, w.end) for w in words] == [(1.0, 1.2), (9.0, 10.0), (9.5, 10.0)] and counts == {"clamped": 2}


def test_times_and_scores_that_are_written_as_text():
    words, counts = parse([["a", ["0.96", "1.20"], MAIN, "0.9"], ["b", ["2", " "], MAIN], ["c", ["", None], MAIN]])
    assert [(w.start, w.end) for w in words[:1]] == [(0.96, 1.2)] and words[1].start == 2.0
    assert counts == {"estimated_start": 1, "estimated_end": 2}


@pytest.mark.parametrize("time", ["0,96", "00:00:01", "soon", True, [1.0]])
def test_times_that_are_no_numbers_are_refused_by_name(time):
    with pytest.raises(DataError, match=r"alignment 0 is \['a', .*it must be"):
        parse([["a", [time, 2.0], MAIN]])


def test_a_transcript_without_most_times_is_refused():
    entries = [["a", [1.0, 1.1], MAIN], ["b", None, MAIN]]
    assert parse(entries)[1] == {"estimated_start": 1, "estimated_end": 1}
    with pytest.raises(DataError, match="2 of 3 words have no start time: align"):
        parse([*entries, ["c", [None, 3.0], USER]])


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
        (b"[3]", 'has no list "alignments"'),
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
