"""The evaluation of duplex dynamics: recordings by level and by words, an artifact, and inputs that cannot be used."""

from __future__ import annotations

import json

import numpy as np
import pytest

from moshijax.errors import ConfigError, DataError
from moshijax.eval import evaluation
from moshijax.eval.duplex import DuplexDynamics
from moshijax.runtime import audio
from tests.eval.test_activity import tone

RATE = 8000
MODEL, USER = ((2.0, 6.0), (9.0, 9.6)), ((0.4, 1.5), (3.0, 3.4), (7.0, 8.0))
EVENTS = [["turn", [0.4, 1.5], "SPEAKER_USER"], ["backchannel", [3.0, 3.4], "SPEAKER_USER"], ["pause", [6, 7], None]]


def write_calls(folder, model=MODEL, user=USER, events=EVENTS, words=True, seconds=10.0, channels=2):
    folder.mkdir()
    pcm = np.stack([tone(seconds, RATE, *model), tone(seconds, RATE, *user)], axis=1)
    audio.write(folder / "a.wav", pcm[:, :channels], RATE)
    (folder / "manifest.jsonl").write_text(json.dumps({"path": "a.wav", "duration": seconds}))
    alignments = [["word", span, speaker] for speaker, spans in (("model", model), ("user", user)) for span in spans]
    if words:
        content = {"alignments": alignments} | ({"events": events} if events is not None else {})
        (folder / "a.json").write_text(json.dumps(content))
    return str(folder)


@pytest.fixture
def calls(tmp_path):
    return write_calls(tmp_path / "calls")


def test_recordings_are_measured_beside_the_reference(calls, tmp_path):
    reference = write_calls(tmp_path / "reference", events=None)
    results = evaluation.run(DuplexDynamics(calls, reference), tmp_path / "report")
    saved = json.loads((tmp_path / "report" / "results.json").read_text())
    for name in ("calls", "reference"):
        values = {key.removeprefix(f"{name}/"): value for key, value in saved["values"].items() if key.startswith(name)}
        assert values["ipu/seconds_per_minute"] == pytest.approx(6 * 7.1, abs=0.5)
        assert values["gap/seconds_per_minute"] == pytest.approx(6 * 2.5, abs=0.5)
        assert values["overlap/seconds_per_minute"] == pytest.approx(6 * 0.4, abs=0.3)
        assert values["pause/per_minute"] == 0 and values["backchannels/count"] == 1
        assert values["response/rate"] == 1 and values["response/latency"] == pytest.approx(0.75, abs=0.05)
        assert values["backchannels/ignored"] == 1 and values["yield/interruptions"] == 0
        assert f"{name}/yield/rate" not in saved["values"]
    assert set(saved["provenance"]["data"]) == {"calls", "reference"} and results.notes == []
    assert saved["calls"]["calls/response/rate"] == {"a": [2.0, 2.0]} and "calls/yield/rate" not in saved["calls"]
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("<img") == 2 and "the reference set" in page and "51.1" in page


def test_words_give_the_same_activity(calls, tmp_path):
    by = {name: DuplexDynamics(calls, activity=name).run(tmp_path).values for name in ("level", "words")}
    assert by["words"] == pytest.approx(by["level"], abs=0.3)
    with pytest.raises(DataError, match="transcript .*a.json does not exist"):
        DuplexDynamics(write_calls(tmp_path / "bare", words=False), activity="words").run(tmp_path)


def test_without_marks_short_units_count_and_a_note_says_so(tmp_path):
    results = DuplexDynamics(write_calls(tmp_path / "calls", events=None)).run(tmp_path)
    assert results.values["calls/backchannels/count"] == 1 and "has events" in results.notes[0]


@pytest.mark.parametrize("activity", ["level", pytest.param("words", marks=pytest.mark.slow)])
def test_an_artifact_answers_in_place_of_the_left_channel(artifact_dir, calls, tmp_path, activity):
    settings = DuplexDynamics(calls, artifact=str(artifact_dir), activity=activity, threshold_db=-60.0)
    results = settings.run(tmp_path)
    assert results.values["model/ipu/per_minute"] != results.values["calls/ipu/per_minute"]
    assert results.values["model/ipu/seconds_per_minute"] > 6 * 2.5  # the user alone speaks so long
    assert len(results.provenance["model"]) == 64 and results.provenance["sampling"]


def test_a_silent_model_is_named(tmp_path):
    results = DuplexDynamics(write_calls(tmp_path / "calls", model=())).run(tmp_path)
    assert "the recordings: the model says nothing in 1 of 1 calls" in results.notes
    assert results.values["calls/response/rate"] == 0 and "calls/response/latency" not in results.values


def test_inputs_that_cannot_be_used_are_named(tmp_path, calls):
    with pytest.raises(ConfigError, match="activity 'vad' must be one of level, words"):
        DuplexDynamics(calls, activity="vad")
    with pytest.raises(ConfigError, match="threshold_db 3 must be"):
        DuplexDynamics(calls, threshold_db=3)
    with pytest.raises(DataError, match="no right channel has any speech of a user: lower threshold_db, which is -2"):
        DuplexDynamics(calls, threshold_db=-2).run(tmp_path)
    with pytest.raises(DataError, match=r"a.wav has 1 channel\(s\), a call has two"):
        DuplexDynamics(write_calls(tmp_path / "mono", channels=1)).run(tmp_path)
    with pytest.raises(DataError, match='"events" must be a list of'):
        DuplexDynamics(write_calls(tmp_path / "events", events=[["backchannel", 3]])).run(tmp_path)
