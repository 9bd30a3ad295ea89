"""Spoken questions: figures from calls, and calls played to an artifact."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from moshijax.eval import spoken_qa
from moshijax.eval.calls import HeldOutCall
from moshijax.eval.spoken_qa import PlayedCalls, SpokenQA
from moshijax.runtime.hosting import Call
from moshijax.runtime.play import Timing

RATE, FRAME = 24_000, 1920


def result(kind: str, group: str, expected: str, answered: str, start: float = 1.0) -> HeldOutCall:
    words = tuple((word, start, start + 0.08) for word in answered.split())
    return HeldOutCall("x", group, kind, "asked", expected, answered, words, 0.3 if words else None)


def played(speaks: bool) -> Call:
    pcm = np.zeros(60 * FRAME, np.float32)
    if speaks:
        pcm[12 * FRAME : 17 * FRAME] = 0.1
    return Call(np.full(60, 3, np.int32), np.zeros((9, 60), np.int32), pcm, np.zeros_like(pcm))


def test_figures_keep_groups_and_kinds_apart():
    results = [
        result("question", "clear", "rain", "rain"),
        result("question", "clear", "cold", "small"),
        result("unrelated", "clear", "", ""),
        result("silence", "clear", "", "rain"),
        result("question", "rough", "rain", "rain"),
        result("unrelated", "rough", "", "rain"),
    ]
    untrained = [result("question", "clear", "rain", "cold cold")]
    timing = Timing(np.full(100, 0.002), 0.08)
    figures = spoken_qa.measure(results, untrained, [played(bool(r.words)) for r in results], RATE, FRAME, timing)
    clear, rough = figures["groups"]["clear"], figures["groups"]["rough"]
    assert (clear["exact"]["hits"], clear["exact"]["total"]) == (1, 2)
    assert clear["unrelated_answered"]["rate"] == 0.0 and rough["unrelated_answered"]["rate"] == 1.0
    assert rough["exact"]["rate"] == 1.0
    assert figures["silent_answered"] == {"hits": 1, "total": 1, "rate": 1.0}
    assert figures["untrained"]["exact"]["hits"] == 0 and figures["untrained"]["answered"]["hits"] == 1
    assert figures["answer_delay_seconds"] == 0.3
    by_call = spoken_qa.by_call(results)
    assert set(by_call["groups/clear/exact/rate"].values()) == {(1.0, 1.0), (0.0, 1.0)}
    assert {name: sum(above for above, _ in own.values()) for name, own in by_call.items()} == {
        "groups/clear/exact/rate": 1, "groups/clear/unrelated_answered/rate": 0, "silent_answered/rate": 1,
        "groups/rough/exact/rate": 1, "groups/rough/unrelated_answered/rate": 1,
    }  # fmt: skip
    energy = figures["energy"]
    assert energy["words_db"] == pytest.approx(-20, abs=0.1) and energy["silence_db"] == -100
    lines = list(spoken_qa.summary_lines(figures))
    assert lines[0].startswith("clear voices") and "1 of 2 questions answered exactly" in lines[0]
    assert any("untrained model 0 of 1" in line for line in lines)


def test_shown_calls_are_different_questions_right_ones_first():
    results = [
        result("question", "clear", "rain", "cold"),
        result("question", "rough", "in the far south", "in the far south"),
        result("question", "clear", "my name is Moshi", "my name is Moshi"),
        result("question", "clear", "my name is Moshi", "my name is Moshi"),
        result("question", "clear", "five", "five"),
        result("unrelated", "clear", "", ""),
    ]
    assert spoken_qa.choose(results, 4) == [2, 4, 0, 5]
    assert spoken_qa.choose(results, 3) == [2, 4, 5]


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Path:
    """Calls of noise for the tiny artifact, which needs no meaning."""
    folder = tmp_path_factory.mktemp("calls")
    rng, lines = np.random.default_rng(0), []
    said = [("how is it", "rain"), ("who is it", "moshi"), ("well", ""), ("", "")]
    for number, (question, answer) in enumerate(said):
        pcm = np.stack([np.zeros(7680), 0.1 * rng.standard_normal(7680)], axis=1).astype(np.float32)
        soundfile.write(folder / f"call-{number}.wav", pcm, 24_000)
        words = [[word, [0.1, 0.2], "SPEAKER_USER"] for word in question.split()]
        sidecar = {"alignments": words, "meta": {"question": question, "answer": answer}}
        (folder / f"call-{number}.json").write_text(json.dumps(sidecar))
        lines.append(json.dumps({"path": f"call-{number}.wav", "duration": 0.32}))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_questions_say_what_is_asked_and_when_the_user_stops(questions):
    found = spoken_qa.read_questions(questions)
    assert [q.meta["kind"] for q in found] == ["question", "question", "unrelated", "silence"]
    assert [q.user_end for q in found] == [0.2, 0.2, 0.2, None] and found[0].meta["group"] == "all"


def test_a_set_without_questions_is_bad_data(codec_speech, artifact_dir, tmp_path, cli):
    arguments = (f"--gin.evaluation.calls={codec_speech}", f"--gin.evaluation.artifact={artifact_dir}")
    code, _, err = cli("eval", "eval/spoken_qa.gin", "--out", tmp_path / "report", *arguments)
    assert code == 3 and err.count("\n") == 1 and '"question" and "answer"' in err


def test_a_command_plays_questions_to_an_artifact(questions, artifact_dir, tmp_path, cli):
    fields = {"artifact": artifact_dir, "calls": questions, "untrained": artifact_dir, "controls": 1}
    arguments = [f"--gin.evaluation.{name}={value}" for name, value in fields.items()]
    code, out, err = cli("eval", "eval/spoken_qa.gin", "--out", tmp_path, *arguments)
    assert code == 0, err
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["values"]["groups/all/exact/total"] == 2 and found["values"]["untrained/exact/total"] == 1
    assert found["values"]["silent_answered/total"] == 1 and "groups/all/exact/total 2" in out
    manifest = json.loads((artifact_dir / "artifact.json").read_text())
    assert found["provenance"]["sampling"] == manifest["sampling"]["defaults"]
    hashes = [found["provenance"]["model"], *found["provenance"]["data"].values()]
    assert [len(sha) for sha in hashes] == [64, 64, 64] and len(set(hashes)) == 3
    played = PlayedCalls.load(tmp_path)
    assert [call.asked for call in played.calls] == ["how is it", "who is it", "well", ""]
    assert len(played.untrained) == 1 and set(played.recordings) == set(played.shown)
    first = played.recordings[played.shown[0]]
    assert first.codes.shape[1] == len(first.text) and len(first.pcm) == len(first.user)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<audio") == len(played.shown) and "who is it" in page and "Provenance" in page
    assert (tmp_path / "reply.wav").stat().st_size > 1000
    again = spoken_qa.play(SpokenQA(str(artifact_dir), str(questions)), tmp_path / "again.wav")
    assert again.calls == played.calls and again.untrained is None
    assert (tmp_path / "again.wav").read_bytes() == (tmp_path / "reply.wav").read_bytes()
    assert any("silent user" in line for line in spoken_qa.summary_lines(again.figures))
