"""Health of an artifact over a long call, and the parts that need none: stalls, voices."""

from __future__ import annotations

import json

import numpy as np
import pytest

from moshijax import optional
from moshijax.errors import ConfigError
from moshijax.eval import health, health_report, speakers
from moshijax.eval.activity import segments
from moshijax.eval.evaluation import Results
from moshijax.eval.health import Health
from moshijax.optional import MissingPackage
from moshijax.report.page import Page
from moshijax.runtime import audio
from tests.eval.test_duplex import write_calls

NONE = segments([])


class Pitch:
    """Tells voices apart by the loudest frequency."""

    packages = ("numpy",)

    def embed(self, pcm, sample_rate):
        spectrum = np.abs(np.fft.rfft(pcm, 4096))
        return np.eye(2049)[spectrum.argmax()]


def test_a_stall_is_an_answer_that_never_comes():
    asked = segments([(1, 2), (30, 31)])
    assert health.stalls(NONE, asked, 60.0).tolist() == [[2, 30], [31, 60]]
    assert health.stalls(segments([(5, 6)]), asked, 40.0).tolist() == []  # (answered, and the second waits 9 s)
    # Silence after the model has spoken is the user's to end.
    assert health.stalls(segments([(5, 6), (33, 34)]), asked, 90.0).tolist() == []
    # A model that spoke through the end of the turn has not answered it.
    assert health.stalls(segments([(1.5, 1.8)]), asked[:1], 20.0).tolist() == [[2, 20]]


def voice(*spans, rate=8000):
    """Tones of a frequency in Hz over (start, end)."""
    pcm = np.zeros(round(rate * max(end for _, end, _ in spans)), np.float32)
    for start, end, hz in spans:
        n = np.arange(round(start * rate), round(end * rate))
        pcm[n] = 0.3 * np.sin(2 * np.pi * hz * n / rate)
    return pcm


def test_voices_are_compared_with_both_beginnings():
    model = voice((0, 4, 400), (5, 6, 400), (8, 13, 400), (20, 25, 700), (30, 36, 400))
    user = voice((0, 5, 700))
    spoken = segments([(0, 4), (5, 6), (8, 13), (20, 25), (30, 36)])
    found = speakers.consistency(Pitch(), model, user, 8000, spoken, segments([(0, 5)]))
    assert found == {8.0: (1.0, 0.0), 20.0: (0.0, 1.0), 30.0: (1.0, 0.0)}
    assert speakers.figures(found) == {"voice/own": (2.0, 3.0), "voice/similarity": (2.0, 3.0)}
    assert speakers.within(found, 0, 25) == 0.5 and np.isnan(speakers.within(found, 40, 60))
    assert speakers.consistency(Pitch(), model, user, 8000, spoken[:1], segments([(0, 5)])) == {}


def test_a_command_plays_a_long_call_and_draws_its_drift(artifact_dir, tmp_path, cli, monkeypatch):
    monkeypatch.setattr(speakers, "EMBEDDERS", {"resemblyzer": Pitch})
    monkeypatch.setattr(speakers, "SEGMENT_SECONDS", 0.2)
    calls = write_calls(tmp_path / "calls")
    fields = {"artifact": artifact_dir, "calls": calls, "minutes": 0.5, "bin_minutes": 0.2, "threshold_db": -70.0}
    arguments = [f"--gin.evaluation.{name}={value}" for name, value in fields.items()]
    code, out, err = cli("eval", "eval/health.gin", "--out", tmp_path / "out", *arguments)
    assert code == 0, err
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    values = found["values"]
    # 375 frames: 4 windows behind the one that fills the past.
    assert found["calls"]["artefact_free"]["call 1"][1] == 4 and 0 <= values["artefact_free"] <= 1
    bins = {f"bin_{n}/{name}" for n in (1, 2, 3) for name in ("text_entropy", "voice_similarity", "level_db")}
    assert bins <= values.keys() and "bin_4/text_entropy" not in values
    assert 0 <= values["voice/own"] <= 1 and list(found["provenance"]["judges"]) == ["numpy"] and not found["notes"]
    pcm, rate = audio.read(tmp_path / "out" / "call.wav")
    assert len(pcm) == 30 * rate and pcm.shape[1] == 2
    user = audio.read_channel(f"{calls}/a.wav", rate, "right")
    np.testing.assert_allclose(pcm[: 10 * rate, 1], user, atol=1e-3)
    np.testing.assert_allclose(pcm[20 * rate :, 1], user, atol=1e-3)
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<img") == 2 and "Drift" in page


def test_without_the_judge_of_voices_its_columns_are_empty_and_a_note_says_so(monkeypatch):
    def absent(module):
        raise optional.missing(module)

    monkeypatch.setattr(optional, "load", absent)
    results = Results("Health")
    assert health._embedder("resemblyzer", results) is None
    (note,) = results.notes
    assert note.startswith("voices are not compared: package 'resemblyzer'") and "moshijax[voices]" in note
    for name, parts in speakers.figures({}).items():
        results.add(name, {"call 1": parts})
    page = Page("Health")
    health_report.figures(page, results)
    assert results.values == {} and "than to the user</td><td>-" in page.render()


def test_long_calls_begin_with_different_users_and_have_their_length():
    users = [np.full(3, 1.0), np.full(2, 2.0)]
    assert health._chained(users, 0, 7).tolist() == [1, 1, 1, 2, 2, 1, 1]
    assert health._chained(users, 1, 4).tolist() == [2, 2, 1, 1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"minutes": 1.0}, "minutes 1, bin_minutes 5, count 1: bins"),
        ({"count": 0}, "count 0"),
        ({"speakers": "ears"}, "speakers 'ears' must be None or one of resemblyzer"),
    ],
)
def test_impossible_settings_are_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        Health("artifact", "calls", **fields)


def test_resemblyzer_tells_two_voices_apart():
    pytest.importorskip("resemblyzer")
    try:
        embedder = speakers.Resemblyzer()
    except MissingPackage as error:
        pytest.skip(str(error))
    rng = np.random.default_rng(0)
    vectors = [embedder.embed((0.1 * rng.standard_normal(48_000)).astype(np.float32), 24_000) for _ in range(2)]
    assert vectors[0].shape == (256,) and vectors[0] @ vectors[1] > 0.9
