"""Recordings to RTTM files: what is kept, left out and rejected; silero's detector on speech; pyannote's adapter."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile

from moshijax.data import voice_activity
from moshijax.data.diarization import Segment, read_segments
from moshijax.data.diarize import REPORT, diarize, spoken
from moshijax.data.diarizer import Pyannote
from moshijax.data.manifest import read_recordings
from moshijax.errors import ConfigError, DataError
from moshijax.optional import MissingPackage

RATE = 16_000


class Loud:
    """Stands for silero: speech is where it is loud."""

    settings = {"kind": "loud"}

    def speech(self, blocks):
        loud = np.concatenate([np.abs(block) > 0.05 for block in blocks]).reshape(-1, 1600).any(axis=1)
        return [(a / 10, b / 10) for a, b in np.flatnonzero(np.diff(np.r_[False, loud, False])).reshape(-1, 2)]


class Halves:
    """The first half is A's, the second one B's, and C is heard where nobody is."""

    version = "halves 1"

    def __init__(self, **settings):
        self.settings, self.calls = {"kind": "halves", **settings}, 0

    def segments(self, path):
        self.calls += 1
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.subtype) == (RATE, 1, "PCM_16")
        end = info.duration
        return [Segment("B", end / 2, end), Segment("A", 0.0, end / 2), Segment("C c", 0.0, 0.4)]


def record(path, seconds=4.0, level=0.3, rate=24_000, channels=2):
    signal = np.zeros((round(seconds * rate), channels), np.float32)
    for start in (0.5, seconds - 1):
        signal[round(start * rate) : round((start + 0.5) * rate)] = (
            level * np.sin(np.arange(round(rate / 2)) / 9)[:, None]
        )
    soundfile.write(path, signal, rate)


def run(folder, diarizer=None, **options):
    return diarize(read_recordings(folder), diarizer or Halves(), Loud(), **{"max_rejected": 1.0, **options})


def test_segments_with_speech_are_written_as_prepare_reads_them(tmp_path):
    record(tmp_path / "a call.wav")
    report = run(tmp_path)
    item = read_recordings(tmp_path).items[0]
    segments, counts = read_segments(item, {})
    assert segments == [Segment("A", 0.0, 2.0), Segment("B", 2.0, 4.0)] and not counts
    assert report.usable == 1 and report.flags["segment_without_speech"] == 1
    first = (tmp_path / "a call.rttm").read_text().splitlines()[0]
    made = json.loads(first.removeprefix(";; moshijax "))
    assert made["by"] == "halves 1" and made["found"] == {"segment_without_speech": 1}
    assert json.loads((tmp_path / REPORT).read_text())["report"] == json.loads(json.dumps(report.to_json()))


def test_a_job_continues_and_keeps_what_others_wrote(tmp_path):
    for name in ("one", "two", "theirs", "sidecar"):
        record(tmp_path / f"{name}.wav")
    (tmp_path / "theirs.rttm").write_text("SPEAKER theirs 1 0.1 0.5 <NA> <NA> Z <NA> <NA>\n")
    (tmp_path / "sidecar.json").write_text('{"alignments": [], "diarization": [["Z", [0.1, 0.5]]]}')
    diarizer = Halves()
    report = run(tmp_path, diarizer)
    assert diarizer.calls == 2 and report.flags["own_diarization"] == 2 and report.usable == 4
    again = Halves()
    assert run(tmp_path, again).to_json() == report.to_json() and again.calls == 0
    (tmp_path / "one.rttm").write_text((tmp_path / "one.rttm").read_text().replace(" A ", " Anna "))  # corrected
    record(tmp_path / "two.wav", 6.0)
    changed = Halves()
    assert run(tmp_path, changed).flags["own_diarization"] == 3 and changed.calls == 1
    run(tmp_path, other := Halves(speakers=2))
    assert (
        other.calls == 1 and "Z" in (tmp_path / "theirs.rttm").read_text() and not (tmp_path / "sidecar.rttm").exists()
    )


def test_recordings_that_cannot_be_diarized_are_rejected_by_a_reason(tmp_path):
    class Nobody(Halves):
        def segments(self, path):
            return []

    record(tmp_path / "good.wav")
    record(tmp_path / "silent.wav", level=0.0)
    (tmp_path / "broken.wav").write_bytes(b"RIFF" + bytes(100))
    record(tmp_path / "torn.wav")
    (tmp_path / "torn.rttm").write_text("SPEAKER torn 1 soon 0.5 <NA> <NA> Z <NA> <NA>\n")
    report = run(tmp_path)
    assert dict(report.kinds) == {"unreadable": 1, "no_speech": 1, "diarization": 1} and report.usable == 1
    assert all(str(tmp_path / name) in reason for name, reason in report.rejected)
    (tmp_path / "good.rttm").unlink()
    with pytest.raises(DataError, match="finds no speaker, though there is speech from 0.50 s on"):
        [path.unlink() for path in tmp_path.glob("*.wav") if path.stem != "good"]
        run(tmp_path, Nobody())
    with pytest.raises(ConfigError, match="max_rejected is 2"):
        run(tmp_path, max_rejected=2)


def test_speech_without_a_speaker_is_counted():
    segments, counts = spoken([Segment("A", 0, 10), Segment("B", 3, 3)], [(1, 2), (11, 12), (20, 21)])
    assert segments == [Segment("A", 0, 10)]
    assert counts == {"segment_without_speech": 1, "speech_without_speaker": 2}


def test_the_detector_finds_speech_in_blocks_of_any_length_as_in_one(tmp_path):
    for package in ("onnxruntime", "faster_whisper", "espeakng_loader"):
        pytest.importorskip(package)
    from moshijax.data.synthesis import EspeakVoice
    from moshijax.data.synthesis.espeak import Espeak

    speech = Espeak(0).speak("The museum opens at half past nine.", EspeakVoice("en-us"))
    places = np.arange(len(speech.samples) * RATE // speech.sample_rate) * speech.sample_rate / RATE
    voice = np.interp(places, np.arange(len(speech.samples)), speech.samples).astype(np.float32)
    noise = 0.003 * np.random.default_rng(0).normal(size=20 * RATE).astype(np.float32)
    signal = noise.copy()
    signal[2 * RATE : 2 * RATE + len(voice)] += voice
    signal[15 * RATE : 15 * RATE + len(voice)] += voice
    detectors = [voice_activity.SileroVad()]
    package = importlib.util.find_spec("silero_vad")
    if package is not None:  # where it is, it is the one that is used; test that of faster-whisper too
        other = Path(importlib.util.find_spec("faster_whisper").submodule_search_locations[0])
        detectors.append(voice_activity.SileroVad(other / "assets" / "silero_vad_v6.onnx"))
    for vad in detectors:
        found = vad.speech([signal])
        starts, ends = [t for t, _ in found], [t for _, t in found]
        spans = [2 + speech.words[0][1], 15 + speech.words[0][1]], [2 + speech.words[-1][2], 15 + speech.words[-1][2]]
        np.testing.assert_allclose([starts[0], max(t for t in starts if t < 15.5 and t > 10)], spans[0], atol=0.2)
        np.testing.assert_allclose([max(t for t in ends if t < 10), ends[-1]], spans[1], atol=0.3)
        cut = np.split(signal, [1, 700, 701, 50_000, 300_001])
        np.testing.assert_array_equal(vad.probabilities(cut), vad.probabilities([signal]))
        assert vad.speech([noise]) == [] and vad.speech([]) == []
    (tmp_path / "none.onnx").write_bytes(b"none")
    with pytest.raises(ConfigError, match="cannot be used by onnxruntime"):
        voice_activity.SileroVad(tmp_path / "none.onnx")


def test_stretches_follow_the_rule_of_the_package():
    frame = 512 / RATE
    values = np.zeros(100)
    values[10:40], values[20:22], values[60:64], values[70:100] = 0.9, 0.2, 0.9, 0.9
    values[45:50] = 0.4
    assert voice_activity.stretches(values) == [
        pytest.approx((10 * frame - 0.03, 40 * frame + 0.03)), pytest.approx((70 * frame - 0.03, 100 * frame)),
    ]  # fmt: skip


def test_pyannote_is_given_a_file_and_its_turns_become_segments(tmp_path, monkeypatch):
    """With a stand-in that has the calls of pyannote.audio 4.0.7 and its answer; no pipeline is at hand."""
    calls = []

    class Pipeline:
        @classmethod
        def from_pretrained(cls, checkpoint):
            if "bad" in str(checkpoint):
                raise ValueError("no such model")
            calls.append(checkpoint)
            return cls()

        def to(self, device):
            calls.append(device)
            return self

        def __call__(self, file, num_speakers=None):
            calls.append((file, num_speakers))
            turns = [(types.SimpleNamespace(start=0.5, end=1.5), "x", "SPEAKER_01")]
            return types.SimpleNamespace(
                speaker_diarization=types.SimpleNamespace(itertracks=lambda yield_label: iter(turns))
            )

    module = types.ModuleType("pyannote.audio")
    module.Pipeline, module.__version__ = Pipeline, "4.0.7"
    torch = types.ModuleType("torch")
    torch.device = lambda name: f"device {name}"
    monkeypatch.setitem(sys.modules, "pyannote", types.ModuleType("pyannote"))
    monkeypatch.setitem(sys.modules, "pyannote.audio", module)
    monkeypatch.setitem(sys.modules, "torch", torch)
    for name in ("model", "bad"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("pipeline: {}")
    diarizer = Pyannote(str(tmp_path / "model"), "cpu", 2)
    assert diarizer.segments(tmp_path / "mono.wav") == [Segment("SPEAKER_01", 0.5, 1.5)]
    assert calls == [tmp_path / "model", "device cpu", (str(tmp_path / "mono.wav"), 2)]
    assert diarizer.version == "pyannote.audio 4.0.7" and diarizer.settings["speakers"] == 2
    before = diarizer.settings["model"]
    (tmp_path / "model" / "config.yaml").write_text("pipeline: {other}")
    assert Pyannote(str(tmp_path / "model")).settings["model"] != before
    with pytest.raises(ConfigError, match="cannot be used as a pipeline of pyannote on cpu .*no such model"):
        Pyannote(str(tmp_path / "bad"))
    with pytest.raises(ConfigError, match="nothing is downloaded"):
        Pyannote("nobody/nothing-here")
    monkeypatch.setitem(sys.modules, "pyannote", None)
    monkeypatch.setitem(sys.modules, "pyannote.audio", None)
    with pytest.raises((MissingPackage, ModuleNotFoundError)):
        Pyannote(str(tmp_path / "model"))
