"""Words from files of other programs, and from a recognition artifact, through the stage that transcribes."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import soundfile

from moshijax.data.manifest import read_recordings
from moshijax.data.transcribe import Transcription, transcribe
from moshijax.data.word_sources import Heard, WordFiles
from moshijax.errors import ConfigError

RATE = 16_000


def call(path, channels=2, seconds=4.0):
    path.parent.mkdir(exist_ok=True)
    signal = np.zeros((round(seconds * RATE), channels), np.float32)
    for channel in range(channels):
        first = RATE * (1 + channel)
        signal[first : first + RATE // 2, channel] = 0.3 * np.sin(np.arange(RATE // 2) * (0.1 + 0.1 * channel))
    soundfile.write(path, signal, RATE)


def whisperx(*words):
    """As whisperX writes it: a number has no times."""
    listed = [{"word": text, **({} if start is None else {"start": start, "end": end, "score": score})}
              for text, start, end, score in words]  # fmt: skip
    text = " ".join(word["word"] for word in listed)
    segments = [{"start": 0.9, "end": 2.7, "text": f" {text}", "words": listed}] if listed else []
    return {"segments": segments, "word_segments": listed, "language": "en"}


def timestamped(text, start, end, confidence):
    """As whisper-timestamped writes it."""
    words = [{"text": text, "start": start, "end": end, "confidence": confidence}]
    return {"text": f" {text}", "segments": [{"id": 0, "text": f" {text}", "words": words}], "language": "en"}


@pytest.fixture
def calls(tmp_path):
    call(tmp_path / "calls" / "one.wav")
    call(tmp_path / "calls" / "mono.flac", channels=1)
    words = tmp_path / "words"
    words.mkdir()
    (words / "one.0.json").write_text(
        json.dumps(whisperx(("hello", 1.0, 1.2, 0.9), ("7", None, None, None), ("men", 1.3, 1.5, 1.0)))
    )
    (words / "one.1.wav.words.json").write_text(json.dumps(timestamped("yes", 2.0, 2.4, 0.5)))
    (words / "mono.json").write_text(json.dumps(whisperx(("hi", 1.1, 1.2, 0.7))))
    return tmp_path / "calls"


def words_of(path):
    return [(text, label, *score) for text, _, label, *score in json.loads(path.read_text())["alignments"]]


def run(calls, source, **settings):
    return transcribe(read_recordings(calls), source, Transcription(**settings))


def test_files_of_whisperx_and_whisper_timestamped_become_sidecars(calls):
    report = run(calls, WordFiles(calls.parent / "words"))
    assert report.usable == 2 and report.words == 5 and report.flags["estimated_start"] == 1
    assert words_of(calls / "one.json") == [
        ("hello", "SPEAKER_MAIN", 0.9), ("7", "SPEAKER_MAIN"), ("men", "SPEAKER_MAIN", 1.0),
        ("yes", "SPEAKER_USER", 0.5),
    ]  # fmt: skip
    assert words_of(calls / "mono.json") == [("hi", "SPEAKER_MAIN", 0.7)]
    before = (calls / "one.json").read_bytes()
    run(calls, WordFiles(calls.parent / "words"))
    assert (calls / "one.json").read_bytes() == before
    # A file that has changed since.
    (calls.parent / "words" / "mono.json").write_text(json.dumps(whisperx(("ho", 1.1, 1.2, 0.7))))
    run(calls, WordFiles(calls.parent / "words"))
    assert words_of(calls / "mono.json") == [("ho", "SPEAKER_MAIN", 0.7)]


def test_a_recording_whose_word_file_cannot_be_used_is_rejected_with_its_name(calls):
    words = calls.parent / "words"
    (words / "one.1.wav.words.json").unlink()
    report = run(calls, WordFiles(words), max_rejected=1.0)
    assert dict(report.kinds) == {"transcript": 1} and report.usable == 1
    assert "has no word file for channel 1" in report.rejected[0][1] and "one.1.json" in report.rejected[0][1]
    (words / "one.1.json").write_text('{"segments": [{"text": "no times"}]}')
    assert "one.1.json" in run(calls, WordFiles(words), max_rejected=1.0).rejected[0][1]
    (words / "one.1.words.json").write_text("{}")
    assert "are both of channel 1" in run(calls, WordFiles(words), max_rejected=1.0).rejected[0][1]
    with pytest.raises(ConfigError, match="no folder of word files"):
        WordFiles(words / "none")


@pytest.mark.slow
def test_an_artifact_of_ours_is_a_recogniser(tmp_path):
    from moshijax import lm
    from moshijax.data.artifact_recognizer import ArtifactRecognizer
    from moshijax.export import artifact
    from moshijax.lm import policies
    from moshijax.runtime.play import play, transcript
    from moshijax.runtime.rows import CallOptions, Rows
    from moshijax.testing import tiny

    config = dataclasses.replace(tiny.LM, layout=lm.layouts.recognition(3), depth=None)
    policy = policies.Recognition(text_delay=0.4, silence=0.16)
    out = artifact.build(*tiny.tiny_models(lm_config=config), tmp_path / "hearing", policy=policy, prefill_lengths=(4,))
    ear = ArtifactRecognizer(out)
    wave = np.random.RandomState(0).randn(8000).astype(np.float32) * 0.3
    found = ear.words(wave, 8000)
    rows = Rows(ear.artifact, 1)
    [heard], _ = play(rows, [wave], [CallOptions(0, {"text_temperature": 0.0})])
    expected = transcript(ear.artifact, heard)["words"]
    assert [word.text for word in found] == [word["word"] for word in expected] and found
    assert all(word.start <= word.end <= 1.0 for word in found)
    signal = np.zeros((32_000, 1), np.float32)
    signal[8000:16_000, 0] = wave[:8000]
    (tmp_path / "calls").mkdir()
    soundfile.write(tmp_path / "calls" / "one.wav", signal, 8000)
    report = run(tmp_path / "calls", Heard(ear))
    made = json.loads((tmp_path / "calls" / "one.json").read_text())["transcribed"]
    assert report.usable == 1 and report.words > 0 and made["settings"]["recognizer"]["kind"] == "artifact"
    talking = artifact.build(*tiny.tiny_models(), tmp_path / "talking", prefill_lengths=(4,))
    with pytest.raises(ConfigError, match="is an artifact for conversation: name one"):
        ArtifactRecognizer(talking)
