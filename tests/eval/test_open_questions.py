"""Open questions: tables and manifests, accepted answers, the forced EPAD, and an absent ear."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from moshijax.errors import ConfigError, DataError
from moshijax.eval.open_questions import OpenQuestions
from moshijax.eval.question_sets import OpenQuestion, read_questions
from moshijax.runtime import audio
from moshijax.runtime.play import play
from moshijax.tokens import EPAD
from tests.eval.test_activity import tone

RATE = 8000


def test_an_answer_holds_the_words_of_an_accepted_one():
    one = OpenQuestion("a", None, "", ("Paris", "the city of light"))
    assert one.accepts("It is Paris, I think.") and one.accepts("the City of Light!")
    assert not one.accepts("comparison") and not one.accepts("the light of the city") and not one.accepts("")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Llama Questions as OpenAudioBench has it."""
    folder = tmp_path_factory.mktemp("llama_questions")
    (folder / "audios").mkdir()
    for n in range(2):
        audio.write(folder / "audios" / f"{n}.wav", tone(0.5 + 0.1 * n, RATE, (0.1, 0.4))[:, None], RATE)
    (folder / "llama_questions.csv").write_text(
        'Questions,Answer,audio_filename\n"Where, then?",Paris,0.wav\nWho?,"[""Ada"", ""Ada Lovelace""]",1.wav\n'
    )
    return folder / "llama_questions.csv"


def test_tables_and_manifests_are_read(table, tmp_path):
    found, sha256 = read_questions(table)
    assert [(one.asked, one.answers, one.audio.name) for one in found] == [
        ("Where, then?", ("Paris",), "0.wav"),
        ("Who?", ("Ada", "Ada Lovelace"), "1.wav"),
    ]
    other = table.with_name("trivia.csv")
    other.write_text("question,answers,audio_filename\nWho?,\"{'value': 'Ada', 'aliases': ['A. L.', 'Ada']}\",0.wav\n")
    assert read_questions(other)[0][0].answers == ("Ada", "A. L.")
    audio.write(tmp_path / "a.wav", tone(0.5, RATE, (0.1, 0.4))[:, None], RATE)
    (tmp_path / "manifest.jsonl").write_text(json.dumps({"path": "a.wav", "duration": 0.5}))
    (tmp_path / "a.json").write_text(json.dumps({"alignments": [], "meta": {"question": "Who?", "answer": ["Ada"]}}))
    (one,), other = read_questions(tmp_path)
    assert one.answers == ("Ada",) and len(sha256) == 64 and sha256 != other


FAULTS = {
    "Questions,Answer,audio_filename\nWhere?,,0.wav\n": "1 questions have no answer, such as 1 0",
    "Questions,Answer,audio_filename\nWhere?,[],0.wav\n": "1 questions have no answer",
    "Questions,audio_filename\nWhere?,0.wav\n": "has the columns Questions, audio_filename, none for the answer",
    "Questions,Answer,audio_filename\nWhere?,Paris,7.wav\n": "1 recordings are not there, such as .*7.wav",
    "Questions,Answer,audio_filename\n": "holds no questions",
}


@pytest.mark.parametrize("text", FAULTS)
def test_a_set_that_cannot_be_used_is_named(text, table):
    bad = table.with_name("bad.csv")
    bad.write_text(text)
    with pytest.raises(DataError, match=FAULTS[text]):
        read_questions(bad)


def test_text_is_forced_at_its_column(rows4):
    users = [np.zeros(8 * rows4.artifact.frame_size, np.float32) + 0.01 * n for n in range(2)]
    (free, other), _ = play(rows4, users)
    (same, forced), _ = play(rows4, users, forced=[{}, {5: EPAD}])
    assert np.array_equal(free.text_tokens, same.text_tokens)
    assert forced.text_tokens[5] == EPAD and np.array_equal(forced.text_tokens[:5], other.text_tokens[:5])
    again = int(other.text_tokens[5])  # what it would say anyway changes nothing
    (_, kept), _ = play(rows4, users, forced=[{}, {5: again}])
    assert np.array_equal(kept.text_tokens, other.text_tokens) and np.array_equal(kept.codes, other.codes)


def test_a_command_asks_and_an_absent_ear_leaves_its_column_empty(artifact_dir, table, tmp_path, cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    fields = {"artifact": artifact_dir, "questions": table, "answer_seconds": 1.0}
    arguments = [f"--gin.evaluation.{name}={value}" for name, value in fields.items()]
    code, out, err = cli("eval", "eval/open_questions.gin", "--out", tmp_path, *arguments)
    assert code == 0, err
    found = json.loads((tmp_path / "results.json").read_text())
    assert set(found["values"]) == {"text/accuracy", "answered"} and found["values"]["text/accuracy"] == 0
    assert "heard answers are not scored: package 'faster_whisper'" in found["notes"][0]
    answers = json.loads((tmp_path / "answers.json").read_text())
    assert [one["question"] for one in answers] == ["Where, then?", "Who?"] and answers[0]["heard"] is None
    page = (tmp_path / "report.html").read_text()
    assert page.count("<audio") == 2 and "in what is heard</td><td>-" in page


def test_impossible_settings_are_named():
    with pytest.raises(ConfigError, match="answer_seconds 0 and shown 6"):
        OpenQuestions("artifact", "questions.csv", answer_seconds=0.0)
