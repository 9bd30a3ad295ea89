"""`moshijax data align`, `diarize`, `separate`, `widen` and `fisher`: what the commands print, and what they refuse."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest
import soundfile

from moshijax.data import recognizer
from tests.data.audiosr_stand_in import write_audiosr
from tests.data.test_fisher import corpus

RATE = 16_000


class Ear:
    """Finds known words one after the other, from the first sound on."""

    version = "ear 1"

    def __init__(self, model, language, device):
        self.settings = {"kind": "ear", "language": language}

    def words(self, samples, rate):
        return []

    def align(self, samples, rate, words):
        start = float(np.flatnonzero(np.abs(samples) > 0.05)[0]) / rate
        return [recognizer.TimedWord(word, start + 0.1 * n, start + 0.1 * n + 0.1, 0.8) for n, word in enumerate(words)]


@pytest.fixture
def calls(tmp_path):
    folder = tmp_path / "calls"
    folder.mkdir()
    signal = np.zeros((3 * RATE, 1), np.float32)
    signal[RATE : 2 * RATE, 0] = 0.3 * np.sin(np.arange(RATE) / 9)
    soundfile.write(folder / "one.wav", signal, RATE)
    return folder


def test_align_writes_words_of_subtitles(cli, calls, monkeypatch):
    monkeypatch.setattr(recognizer, "Whisper", Ear)
    (calls / "one.srt").write_text("1\n00:00:00,900 --> 00:00:02,000\nGood day\n")
    code, out, err = cli("data", "align", calls, "--language", "en")
    assert code == 0, err
    assert "1 of 1 items usable: 0.1 minutes, 2 words" in out and "align.report.json" in out
    assert [word for word, *_ in json.loads((calls / "one.json").read_text())["alignments"]] == ["Good", "day"]
    (calls / "one.json").unlink()
    (calls / "one.srt").unlink()
    code, _, err = cli("data", "align", calls)
    assert code == 3 and "has no text for channel 0" in err and err.count("\n") == 1


def test_words_of_files_take_no_model(cli, calls, tmp_path):
    words = tmp_path / "words"
    words.mkdir()
    (words / "one.json").write_text('[{"word": "hi", "start": 1.1, "end": 1.3}]')
    code, out, err = cli("data", "transcribe", calls, "--words", words)
    assert code == 0 and "1 words" in out, err
    for option, value in (("--model", "tiny.en"), ("--piece-seconds", "20")):
        code, _, err = cli("data", "transcribe", calls, "--words", words, option, value)
        assert code == 2 and f"{option} means nothing with --words" in err
    code, _, err = cli("data", "transcribe", calls, "--words", tmp_path / "none")
    assert code == 2 and "is no folder of word files" in err


def test_models_that_are_not_there_are_named(cli, calls, tmp_path):
    code, _, err = cli("data", "separate", calls, tmp_path / "out", "--model", tmp_path)
    assert code == 2 and "is no folder with hyperparams.yaml" in err
    (tmp_path / "vad.onnx").write_bytes(b"none")
    code, _, err = cli("data", "diarize", calls, "--model", tmp_path, "--voice-activity", tmp_path / "vad.onnx")
    assert code in (1, 2) and ("cannot be used by onnxruntime" in err or "moshijax[diarize]" in err)
    assert err.count("\n") == 1


def test_narrow_calls_are_heard_before_and_after(cli, calls, tmp_path, monkeypatch):
    pytest.importorskip("faster_whisper")
    weights = write_audiosr(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    command = ("data", "widen", calls, tmp_path / "wide", "--audiosr", sys.executable)
    code, _, err = cli(*command)
    assert code == 2 and "AudioSR cannot be started with" in err and err.count("\n") == 1
    weights.write_bytes(b"weights")
    code, out, err = cli(*command)
    assert code == 0 and "hours kept; wrote" in out and (tmp_path / "wide" / "manifest.jsonl").exists(), err


def test_fisher_makes_a_folder_ready_for_align(cli, tmp_path):
    folders = corpus(tmp_path)
    code, out, err = cli("data", "fisher", *folders, tmp_path / "out")
    assert code == 0 and "2 of 2 items usable" in out and "manifest.jsonl" in out, err
    next(folders[1].rglob("*.txt")).unlink()
    code, _, err = cli("data", "fisher", *folders, tmp_path / "again")
    assert code == 3 and "has no transcript fe_03_0000" in err
    code, _, err = cli("data", "fisher", *folders, folders[0])
    assert code == 2
