"""Word lists that other programs write, in place of our own sidecars."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from moshijax.data import records
from moshijax.data.checks import CheckRules, validate
from moshijax.data.manifest import read_manifest
from moshijax.data.prepare import prepare
from moshijax.data.teacher import FeaturePlan, PhonemeTeacher
from moshijax.data.transcript import parse_alignments, read_sidecar
from moshijax.errors import DataError
from tests.data.sets import LevelEncoder, write_item, write_manifest

# "Hello," of A from 0.3 to 0.6 s and "yes." of B from 1.0 to 1.3 s.
OPENAI = {
    "task": "transcribe", "language": "english", "duration": 2.0, "text": "Hello, yes.",
    "segments": [{"id": 0, "start": 0.0, "end": 2.0, "text": " Hello, yes."}],
    "words": [{"word": "Hello,", "start": 0.3, "end": 0.6}, {"word": "yes.", "start": 1.0, "end": 1.3}],
}  # fmt: skip
WHISPERX = {
    "segments": [
        {"start": 0.3, "end": 0.6, "text": " Hello,", "speaker": "A",
         "words": [{"word": "Hello,", "start": 0.3, "end": 0.6, "score": 0.9}]},
        {"start": 1.0, "end": 1.3, "text": " yes.", "speaker": "A",
         "words": [{"word": "yes.", "start": 1.0, "end": 1.3, "score": 0.8, "speaker": "B"}]},
    ],
    "word_segments": [], "language": "en",
}  # fmt: skip
TIMESTAMPED = {
    "text": " Hello, yes.",
    "segments": [
        {"id": 0, "seek": 0, "start": 0.3, "end": 1.3, "text": " Hello, yes.", "tokens": [1], "confidence": 0.9,
         "words": [{"text": "Hello,", "start": 0.3, "end": 0.6, "confidence": 0.9},
                   {"text": "yes.", "start": 1.0, "end": 1.3, "confidence": 0.8}]},
    ],
    "language": "en",
}  # fmt: skip
FASTER = {
    "segments": [{"start": 0.3, "end": 1.3, "text": " Hello, yes.",
                  "words": [{"word": " Hello,", "start": 0.3, "end": 0.6, "probability": 0.9},
                            {"word": " yes.", "start": 1.0, "end": 1.3, "probability": 0.8}]}]
}  # fmt: skip
NEMO = {
    "status": "Success", "session_id": "call", "transcription": "Hello, yes.", "speaker_count": 2,
    "words": [{"word": "Hello,", "start_time": 0.3, "end_time": 0.6, "speaker_label": "A"},
              {"word": "yes.", "start_time": 1.0, "end_time": 1.3, "speaker": "B"}],
    "sentences": [{"sentence": "Hello,", "start_time": 0.3, "end_time": 0.6, "speaker": "A"}],
}  # fmt: skip
LHOTSE = [
    {"id": "call-0", "recording_id": "call", "start": 0.3, "duration": 0.3, "channel": 1, "text": "Hello,",
     "speaker": "A", "alignment": {"word": [["Hello,", 0.3, 0.3, 0.9]], "phone": [["h", 0.3, 0.1, None]]}},
    {"id": "call-1", "recording_id": "call", "start": 1.0, "duration": 0.3, "channel": 0, "text": "yes.",
     "speaker": "B", "alignment": {"word": [{"symbol": "yes.", "start": 1.0, "duration": 0.3}]}},
]  # fmt: skip
CTM = ";; made by an aligner\ncall A 0.30 0.30 Hello, 0.9\ncall B 1.00 0.30 yes. NA lex B\n\nother A 0.1 0.1 no 1.0\n"


def read(folder, content, suffix=".json"):
    path = folder / f"call{suffix}"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return read_sidecar(folder / "call.json")


@pytest.mark.parametrize(
    ("content", "speakers", "scores"),
    [
        (WHISPERX, "AB", [0.9, 0.8]),
        (NEMO, "AB", []),
        (NEMO["words"], "AB", []),
        ({"alignments": NEMO["words"]}, "AB", []),
        (LHOTSE, "AB", [0.9]),
        ({"id": "cut", "start": 0, "duration": 2.0, "supervisions": LHOTSE}, "AB", [0.9]),
        (CTM, "AB", [0.9]),
        (OPENAI, ("", ""), []),
        (OPENAI["words"], ("", ""), []),
        (TIMESTAMPED, ("", ""), [0.9, 0.8]),
        (FASTER, ("", ""), [0.9, 0.8]),
        ([{key: value for key, value in one.items() if key != "speaker"} for one in LHOTSE], "10", [0.9]),
    ],
    ids=str.split("whisperx nemo bare ours lhotse cut ctm openai words timestamped faster channels"),
)
def test_words_of_every_form(tmp_path, content, speakers, scores):
    entries = read(tmp_path, content, ".ctm" if content is CTM else ".json")["alignments"]
    user, model = speakers
    words, counts = parse_alignments(entries, 2.0, {user: "user", model: "model"})
    assert [word.text for word in words] == ["Hello,", "yes."] and not counts
    assert [(word.start, word.end) for word in words] == [pytest.approx((0.3, 0.6)), pytest.approx((1.0, 1.3))]
    assert [word.speaker for word in words] == (["user", "model"] if user != model else ["model", "model"])
    assert [float(entry[3]) for entry in entries if len(entry) > 3 and entry[3] is not None] == scores


def test_the_example_of_the_page(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    (example,) = re.findall(r'^```json\n(\{"segments".*?)```', page, flags=re.M | re.S)
    words, counts = parse_alignments(
        read(tmp_path, example)["alignments"], 2.0, {"SPEAKER_00": "user", "SPEAKER_01": "model"}
    )
    assert [(word.text, word.speaker) for word in words] == [("hello", "user"), ("good", "model")] and not counts


def test_words_without_times_and_speakers_are_kept(tmp_path):
    """WhisperX aligns no numbers, and assigns no speaker to a word in a pause of the diarization."""
    words = [{"word": "in", "start": 0.3, "end": 0.4, "speaker": "A"}, {"word": "2014."}, {"word": "or", "start": 1.0}]
    content = {"segments": [{"start": 0.3, "end": 1.3, "text": " in 2014. or", "words": words}]}
    entries = read(tmp_path, content)["alignments"]
    assert entries[1] == ["2014.", [None, None], None, None]
    words, counts = parse_alignments(entries, 2.0, {"A": "user", "": "user"})
    assert [word.text for word in words] == ["in", "2014.", "or"]
    assert dict(counts) == {"estimated_start": 1, "estimated_end": 2}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"segments": [{"start": 0, "end": 1, "text": " Hello."}]}, r"segment 0 ' Hello.' has no \"words\": ask for"),
        ([{**LHOTSE[0], "alignment": {}}], "supervision 'call-0' has no alignment \"word\": align it"),
        ([{**LHOTSE[0], "alignment": {"word": [["Hello,"]]}}], "supervision .* is not one of lhotse"),
        ([{**LHOTSE[0], "alignment": {"word": 3}}], "supervision .* is not one of lhotse"),
        ({"segments": 3}, 'has no list "alignments"'),
        ({"text": "Hello, yes."}, 'has no list "alignments"'),
        ("3", 'has no list "alignments"'),
        ('[["Hello", 0.3]]', 'has no list "alignments"'),
    ],
)
def test_what_has_no_times_of_words_is_refused_by_name(tmp_path, content, message):
    with pytest.raises(DataError, match=f"transcript .*call.json:? {message}"):
        read(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("call A 0.3 Hello\n", "call.ctm, line 1: .* is not `recording channel start duration word`"),
        ("call A 0,3 0.3 Hello\n", "call.ctm, line 1: .* is not `recording"),
        ("a A 0.3 0.3 Hello\nb A 1 1 yes\n", "call.ctm is of 2 other recordings .a, b, ....: it must be of call"),
    ],
)
def test_a_bad_ctm_file_is_named(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, content, ".ctm")


def test_a_ctm_file_that_changes_is_read_again(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    manifest = write_manifest(folder, [write_item(folder, "call")])
    (folder / "call.json").unlink()
    (folder / "call.ctm").write_text("some-name SPEAKER_USER 0.3 0.3 Hello,\nsome-name SPEAKER_MAIN 1.0 0.3 yes.\n")
    items = read_manifest(manifest)
    assert validate(items.items, CheckRules(strict=True)).words == 2
    prepare(items, tmp_path / "out", LevelEncoder())
    assert prepare(items, tmp_path / "out", LevelEncoder()).written == 0
    (folder / "call.ctm").write_text("some-name SPEAKER_USER 0.3 0.3 Hello,\n")
    assert prepare(items, tmp_path / "out", LevelEncoder()).written == 1
    (record,) = records.RecordSource(tmp_path / "out")
    assert [word[0] for word in record["words"]] == ["Hello,"]
    assert folder / "call.ctm" in FeaturePlan(1, False, PhonemeTeacher(), CheckRules()).reads(items.items[0])


def test_a_segment_whose_words_were_not_aligned_is_refused_and_empty_lists_hide_no_words(tmp_path):
    path = tmp_path / "call.json"
    unaligned = {"start": 0.0, "end": 0.3, "text": " Well,", "words": []}
    for words in ([], ["Well,"]):
        path.write_text(json.dumps({"segments": [{**unaligned, "words": words}, *WHISPERX["segments"]]}))
        with pytest.raises(DataError, match='segment 0 .*Well.* has no "words"'):
            read_sidecar(path)
    path.write_text(json.dumps({**WHISPERX, "words": []}))
    assert [word for word, *_ in read_sidecar(path)["alignments"]] == ["Hello,", "yes."]
    path.write_text(json.dumps({"words": []}))
    assert read_sidecar(path)["alignments"] == []


def test_times_of_a_cut_count_from_its_start(tmp_path):
    path = tmp_path / "call.json"
    path.write_text(json.dumps({"id": "cut", "start": 10.0, "duration": 2.0, "supervisions": LHOTSE}))
    assert [times[0] for _, times, *_ in read_sidecar(path)["alignments"]] == pytest.approx([10.3, 11.0])
