"""Synthesised calls: exact times, exact repetition, overlaps and interruptions where the sidecar says."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("espeakng_loader")

from moshijax.data.checks import CheckRules, validate
from moshijax.data.manifest import read_manifest
from moshijax.data.synthesis import Dialogue, EspeakVoice, Utterance, draw_calls, parse_world, synthesize
from moshijax.data.synthesis.dialogue import GAP
from moshijax.data.synthesis.texts import load, parse
from moshijax.data.synthesis.world import CallRanges
from moshijax.errors import DataError, MoshijaxError
from moshijax.shipped import folder as shipped

RATE = 24_000
SCRIPT = """
== calm
user: What is the weather like in the city?
model +0.5: It is sunny, and 21 degrees - warmer than in 1998.

== busy
user: I was thinking about the long way over the hills and back along the river
model @0.3: right.
model !0.6: Sorry, that road is closed
user -0.2: Oh no
"""


def bytes_of(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def read(folder: Path, name: str):
    audio, rate = soundfile.read(folder / "audio" / f"{name}.wav", dtype="float32")
    assert rate == RATE and audio.ndim == 2
    return audio, json.loads((folder / "audio" / f"{name}.json").read_text(encoding="utf-8"))


def level(audio, start, end):
    return float(np.sqrt(np.square(audio[round(start * RATE) : round(end * RATE)]).mean()))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calls")
    synthesize(parse(SCRIPT), folder, seed=3, workers=1)
    return folder


def test_same_seed_same_bytes_in_any_order_and_number_of_processes(made, tmp_path):
    again = synthesize(reversed(parse(SCRIPT)), tmp_path / "again", seed=3, workers=2)
    assert again.items == 2
    one, two = bytes_of(made), bytes_of(tmp_path / "again")
    assert {k: v for k, v in one.items() if k != "manifest.jsonl"} == {
        k: v for k, v in two.items() if k != "manifest.jsonl"
    }
    other = synthesize(parse(SCRIPT), tmp_path / "other", seed=4)
    assert other.items == 2 and bytes_of(tmp_path / "other") != one


def test_every_word_is_there_in_order(made):
    _, sidecar = read(made, "calm")
    model = [word for word, _, speaker in sidecar["alignments"] if speaker == "SPEAKER_MAIN"]
    assert " ".join(model) == "It is sunny, and 21 degrees - warmer than in 1998."
    times = [times for _, times, speaker in sidecar["alignments"] if speaker == "SPEAKER_MAIN"]
    assert all(start < end for start, end in times)
    assert all(a[1] <= b[0] + 1e-6 for a, b in zip(times, times[1:], strict=False))


def test_sound_is_where_the_words_are_and_nowhere_else(made):
    for name in ("calm", "busy"):
        audio, sidecar = read(made, name)
        for column, label in enumerate(("SPEAKER_MAIN", "SPEAKER_USER")):
            words = [times for _, times, speaker in sidecar["alignments"] if speaker == label]
            spoken = np.zeros(len(audio), bool)
            for start, end in words:
                # Shorter words may be all silence of a stop; a pause inside a word would be wrong.
                assert end - start < 0.12 or level(audio[:, column], start, end) > 0.01
                spoken[round((start - 0.06) * RATE) : round((end + 0.06) * RATE)] = True
            assert np.abs(audio[~spoken, column]).max() < 0.02
            energy = np.square(audio[:, column])
            assert energy[spoken].sum() > 0.98 * energy.sum()


def test_true_ends_leave_pauses_between_words(made):
    _, sidecar = read(made, "calm")
    words = {word: times for word, times, _ in sidecar["alignments"]}
    assert words["and"][0] - words["sunny,"][1] > 0.05
    question_end = max(t[1] for _, t, s in sidecar["alignments"] if s == "SPEAKER_USER")
    assert words["It"][0] - question_end == pytest.approx(0.5, abs=0.06)


def test_overlap_interruption_and_backchannel_are_real_and_written_down(made):
    audio, sidecar = read(made, "busy")
    events = {
        kind: [e for e in sidecar["events"] if e[0] == kind] for kind in ("backchannel", "interruption", "overlap")
    }
    ((_, (start, end), speaker),) = events["backchannel"]
    assert speaker == "SPEAKER_MAIN"
    assert level(audio[:, 0], start, end) > 0.01 and level(audio[:, 1], start, end) > 0.01
    ((_, (start, _), speaker),) = events["interruption"]
    assert speaker == "SPEAKER_MAIN"
    user = [(w, t) for w, t, s in sidecar["alignments"] if s == "SPEAKER_USER"]
    before = [w for w, t in user if t[0] < start + 1.0 and w not in ("Oh", "no")]
    assert before[0] == "I" and before[-1] not in ("river", "the")  # the speaker gave way
    stopped = max(t[1] for w, t in user if w in before)
    assert start < stopped < start + 1.0
    assert events["overlap"]
    for _, (a, b), _ in events["overlap"]:
        assert level(audio[:, 0], a, b) > 0.002 and level(audio[:, 1], a, b) > 0.002
    for kind, (a, b), _ in sidecar["events"]:
        if kind == "pause":
            assert np.abs(audio[round((a + 0.06) * RATE) : round((b - 0.01) * RATE)]).max() < 0.02


def test_phonemes_lie_in_their_words(made):
    _, sidecar = read(made, "calm")
    for label in ("SPEAKER_MAIN", "SPEAKER_USER"):
        words = [t for _, t, s in sidecar["alignments"] if s == label]
        phonemes = [t for _, t, s in sidecar["phonemes"] if s == label]
        assert len(phonemes) > 2 * len(words) - 4
        for start, end in phonemes:
            middle = (start + end) / 2
            assert any(a - 0.06 <= middle <= b + 0.06 for a, b in words)


def test_a_set_passes_its_own_checks(made):
    report = validate(read_manifest(made).items, CheckRules(strict=True))
    assert report.usable == 2 and not report.flags


def test_gain_noise_lead_and_duration(tmp_path):
    call = Dialogue("a", (Utterance("user", "hello there"),), duration=3.0, lead=1.0)
    noisy = replace(call, id="b", gain_db=-12.0, snr_db=10.0)
    synthesize([call, noisy, Dialogue("quiet", duration=1.0)], tmp_path)
    plain, sidecar = read(tmp_path, "a")
    assert len(plain) == 3 * RATE
    start, end = sidecar["alignments"][0][1][0], sidecar["alignments"][-1][1][1]
    assert start == pytest.approx(1.0, abs=0.1)
    other, _ = read(tmp_path, "b")
    noise = level(other[:, 1], 0.0, 0.9)
    assert noise == pytest.approx(0.08 * 10 ** (-22 / 20), rel=0.03)
    assert level(other[:, 1], start, end) == pytest.approx(level(plain[:, 1], start, end) * 10 ** (-12 / 20), rel=0.15)
    assert not other[:, 0].any()
    silent, sidecar = read(tmp_path, "quiet")
    assert not silent.any() and sidecar["alignments"] == []


def test_the_model_begins_on_a_grid(tmp_path):
    turns = tuple(Utterance(speaker, "hello there") for speaker in ("user", "model"))
    synthesize([Dialogue("a", turns, lead=0.3, grid=0.08), Dialogue("b", turns, lead=0.3)], tmp_path)
    times = {name: read(tmp_path, name)[1]["alignments"] for name in ("a", "b")}
    (_, (free, _), _), (_, (moved, _), _) = (times[name][2] for name in ("b", "a"))
    begins = times["b"][1][1][1] + GAP  # of the sound: a gap after the user's last word
    assert times["a"][:2] == times["b"][:2] and 0.005 < -begins % 0.08 < 0.075
    assert moved - free == pytest.approx(-begins % 0.08, abs=1e-3)
    with pytest.raises(DataError, match="grid of -1"):
        Dialogue("c", turns, grid=-1)


def test_second_run_keeps_what_is_done_and_makes_what_is_missing(made, tmp_path):
    synthesize(parse(SCRIPT), tmp_path, seed=3)
    before = bytes_of(tmp_path)
    stamp = (tmp_path / "audio" / "busy.wav").stat().st_mtime_ns
    (tmp_path / "audio" / "calm.json").unlink()
    (tmp_path / "manifest.jsonl").unlink()
    seen = []
    synthesize(parse(SCRIPT), tmp_path, seed=3, progress=lambda done, total: seen.append((done, total)))
    assert bytes_of(tmp_path) == before
    assert (tmp_path / "audio" / "busy.wav").stat().st_mtime_ns == stamp
    assert seen == [(1, 2), (2, 2)]


def test_bad_dialogues_are_named_and_the_rest_is_made(tmp_path):
    good = Dialogue("good", (Utterance("user", "hello"),))
    bad = [
        replace(good, id="variant", user_voice=EspeakVoice(variant="f9")),
        replace(good, id="language", user_voice=EspeakVoice(language="xx")),
        replace(good, id="long", duration=0.5),
        replace(good, id="mute", utterances=(Utterance("user", "..."),)),
    ]
    result = synthesize([*bad, good], tmp_path)
    assert result.items == 1 and len(read_manifest(tmp_path).items) == 1
    reasons = dict(result.rejected)
    assert "'f9' is not in espeak-ng" in reasons["variant"] and "f3" in reasons["variant"]
    assert "'xx' is not in espeak-ng" in reasons["language"]
    assert "after its duration of 0.50 s" in reasons["long"]
    assert "nothing is spoken in '...'" in reasons["mute"]
    with pytest.raises(DataError, match="none of the 4 dialogues"):
        synthesize(bad, tmp_path / "none")
    assert not (tmp_path / "none" / "manifest.jsonl").exists()
    with pytest.raises(DataError, match="'good' occurs 2 times"):
        synthesize([good, good], tmp_path)


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MoshijaxError, match="cannot write "):
        synthesize(parse(SCRIPT), tmp_path / "file" / "x")


def test_worlds_are_drawn_deterministically(tmp_path):
    world = parse_world("# comment\nWhat is two plus two? => four\nWho is it? => me\nnice weather\n")
    calls = draw_calls(world, 4, 2, 1, seed=5)
    assert calls == draw_calls(world, 4, 2, 1, seed=5) != draw_calls(world, 4, 2, 1, seed=6)
    assert [c.meta["kind"] for c in calls] == ["question"] * 4 + ["unrelated"] * 2 + ["silence"]
    assert len({c.user_voice for c in calls}) == 7 and len({c.model_voice for c in calls}) == 1
    result = synthesize(calls, tmp_path)
    assert result.items == 7 and result.seconds == pytest.approx(7 * 4.8)
    _, sidecar = read(tmp_path, "call-00000")
    assert sidecar["meta"] == {"kind": "question", "question": "What is two plus two?", "answer": "four"}
    assert [w for w, _, s in sidecar["alignments"] if s == "SPEAKER_MAIN"] == ["four"]
    with pytest.raises(DataError, match="line 1: .*has no question or no answer"):
        parse_world("=> four")


def test_spliced_sentences_begin_like_one_and_end_like_another_and_are_no_question():
    world = parse_world("What is two plus two? => four\nWho is it? => me\nnice weather today\nall of us sing\n")
    sentences = [text.split() for text in ("What is two plus two?", "Who is it?", *world.unrelated)]
    questions = {"What is two plus two?", "Who is it?"}
    calls = draw_calls(world, 0, 200, 0, seed=1, ranges=CallRanges(spliced=0.5))
    texts = [call.meta["question"] for call in calls]
    assert 60 <= sum(text not in world.unrelated for text in texts) <= 140 and not questions & set(texts)
    for text in set(texts) - set(world.unrelated):
        words = text.split()
        assert len(words) <= 9 and any(
            words[:n] == first[:n] and words[n:] == last[len(last) - len(words) + n :]
            for first in sentences
            for last in sentences
            for n in range(1, len(words))
        )


def test_script_errors_name_file_and_line():
    for text, message in (
        ("user: hi", "x.txt, line 1: text before the first"),
        ("== a\nuser hi", r"x.txt, line 2: 'user hi' is not a line"),
        ("== a\nuser @1.5: hi", "x.txt, line 2: utterance starts at 1.5"),
        ("== a\nvoice user: en-us+f3 speed=3", "x.txt, line 2: voice setting 'speed=3'"),
        ("== a\n", "x.txt: dialogue 'a' has no utterances"),
        ("== a/b\nuser: hi", "x.txt: dialogue id 'a/b' cannot name a file"),
    ):
        with pytest.raises(DataError, match=message):
            parse(text, "x.txt")


def test_shipped_dialogues_can_all_be_spoken(tmp_path):
    dialogues = load(shipped("data/dialogues"), seed=1)
    assert len(dialogues) >= 30
    result = synthesize(dialogues, tmp_path)
    assert result.rejected == () and result.items == len(dialogues)
    kinds = {u.kind for d in dialogues for u in d.utterances}
    assert kinds == {"turn", "backchannel", "interruption"}
    assert any((u.gap or 0) < 0 for d in dialogues for u in d.utterances)


def test_a_dying_process_is_tried_again_and_then_named(tmp_path, monkeypatch):
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\necho started >> {tmp_path}/starts\nexit 7\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    message = r"none of the 2 dialogues .*'calm': speaking it ended its process \(exit code 7\), tried 2 times"
    with pytest.raises(DataError, match=message):
        synthesize(parse(SCRIPT), tmp_path / "out", workers=1)
    assert (tmp_path / "starts").read_text().count("started") == 4
