"""Words heard through a codec, opinion scores, and judges that are absent."""

from __future__ import annotations

import json

import numpy as np
import pytest

from moshijax import optional
from moshijax.eval import evaluation, signals
from moshijax.eval.codec import CodecEvaluation
from moshijax.runtime import audio
from moshijax.testing.tiny import tiny_models
from tests.codec.small import noise
from tests.eval.saved_models import save


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A codec of random weights, and a folder of calls."""
    folder = tmp_path_factory.mktemp("codec_words")
    save(folder / "codec", "codec", *tiny_models()[0])
    calls = folder / "calls"
    calls.mkdir()
    lines = []
    for name, words in (("a", ["yes"]), ("b", ["no", "yes"]), ("mute", [])):
        audio.write(calls / f"{name}.wav", 0.3 * noise(0, 6400, 2), 8000)
        sidecar = {"alignments": [[word, [0.1, 0.3], "model"] for word in words]}
        (calls / f"{name}.json").write_text(json.dumps(sidecar))
        lines.append(json.dumps({"path": f"{name}.wav", "duration": 0.8}))
    (calls / "manifest.jsonl").write_text("\n".join(lines))
    return str(folder / "codec"), str(calls)


class Ear:
    """Hears one word where there is sound."""

    def __init__(self, model="tiny.en"):
        pass

    def hear(self, pcm, sample_rate):
        return "yes" if np.abs(pcm).max() > 1e-3 else ""


def test_words_are_heard_through_the_codec(world, tmp_path, monkeypatch):
    monkeypatch.setattr("moshijax.eval.codec.Whisper", Ear)
    settings = CodecEvaluation(*world, clips=1, seconds=0.8, transcribed=world[1])
    results = evaluation.run(settings, tmp_path / "out")
    assert results.calls["recording/word_error_rate"] == {"a": (0.0, 1.0), "b": (1.0, 2.0)}
    assert results.values["recording/word_error_rate"] == pytest.approx(1 / 3)
    assert "4_codebooks/word_error_rate" in results.values and "transcribed" in results.provenance["data"]
    assert "words heard wrong" in (tmp_path / "out" / "report.html").read_text()


def test_judges_that_are_absent_leave_their_columns_empty(world, tmp_path, monkeypatch):
    load = optional.load

    def absent(module):
        if module in ("librosa", "faster_whisper", "pystoi"):
            raise optional.missing(module)
        return load(module)

    monkeypatch.setattr(optional, "load", absent)
    settings = CodecEvaluation(*world, clips=1, seconds=0.8, transcribed=world[1])
    results = evaluation.run(settings, tmp_path)
    assert not any(name.endswith(("dnsmos", "word_error_rate", "stoi")) for name in results.values)
    for name, extra in (("dnsmos", "mos"), ("word_error_rate", "hear"), ("stoi", "eval")):
        assert any(
            note.startswith(f"{name} is not measured") and f"moshijax[{extra}]" in note for note in results.notes
        )
    page = (tmp_path / "report.html").read_text()
    assert (
        all(f"<th>{label}</th>" in page for label in ("DNSMOS", "words heard wrong", "STOI")) and "<td>-</td>" in page
    )


def test_dnsmos_is_an_opinion_from_1_to_5_and_none_of_silence():
    pytest.importorskip("librosa")
    pytest.importorskip("speechmos")
    loud = 0.1 * noise(0, 24_000)
    assert 1 <= signals.dnsmos(loud, 8000) <= 5 and np.isnan(signals.dnsmos(np.zeros(24_000, np.float32), 8000))
