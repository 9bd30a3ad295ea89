"""Bad recordings: every one is named, counted and reported; none stops the rest."""

from __future__ import annotations

import json
import struct
import tracemalloc

import numpy as np
import pytest
import soundfile

from moshijax.data import audio, checks
from moshijax.data.checks import CheckRules, judge, validate
from moshijax.data.findings import Report
from moshijax.data.manifest import read_manifest
from moshijax.data.prepare import PrepareConfig, prepare
from moshijax.data.signal import SignalStatistics
from moshijax.data.teacher import compute_features
from moshijax.data.transcript import SPEAKERS, UnknownSpeaker
from moshijax.data.twins import overlap, twins
from moshijax.errors import DataError
from tests.data.sets import (
    RATE,
    WORDS,
    LevelEncoder,
    damage_middle,
    endanger,
    tones,
    write_item,
    write_manifest,
    write_set,
)


def check(folder, line, rules=None):
    """Report on one item beside a good one, which must stay usable."""
    good = write_item(folder, "good", audio=tones(WORDS, 2.1))
    report = validate(read_manifest(write_manifest(folder, [line, good])).items, rules or CheckRules())
    assert report.items == 2
    assert not any(name == "good" for name, _ in report.rejected)
    return report


def only_rejection(report, kind):
    assert dict(report.kinds) == {kind: 1} and report.usable == 1
    ((name, reason),) = report.rejected
    assert name == "bad" and "bad" in reason and "\n" not in reason
    return reason


def test_clean_set(tmp_path):
    report = validate(read_manifest(write_set(tmp_path)).items, CheckRules(strict=True))
    assert (report.items, report.usable, report.words) == (5, 5, 10)
    assert report.rejected == [] and dict(report.flags) == {}


def damage_nothing_like_audio(path):
    path.write_bytes(b"<html>not found</html>" * 20)


def damage_header(path):
    content = bytearray(path.read_bytes())
    content[12:16] = b"fmt "
    content[16:20] = struct.pack("<I", 3)
    path.write_bytes(content)


def damage_empty(path):
    path.write_bytes(b"")


def damage_tiny(path):
    path.write_bytes(path.read_bytes()[:30])


def damage_missing(path):
    path.unlink()


@pytest.mark.parametrize(
    "damage",
    [damage_nothing_like_audio, damage_header, damage_empty, damage_tiny, damage_missing],
    ids=lambda f: f.__name__,
)
def test_unreadable_files_are_rejected_by_name(tmp_path, damage):
    line = write_item(tmp_path, "bad")
    damage(tmp_path / "bad.wav")
    reason = only_rejection(check(tmp_path, line), "unreadable")
    assert str(tmp_path / "bad.wav") in reason


def test_truncated_flac_is_rejected(tmp_path):
    line = write_item(tmp_path, "bad")
    soundfile.write(tmp_path / "bad.flac", tones(WORDS), RATE)
    content = (tmp_path / "bad.flac").read_bytes()
    (tmp_path / "bad.flac").write_bytes(content[: len(content) // 2])
    report = check(tmp_path, {**line, "path": "bad.flac"})
    assert "bad.flac" in only_rejection(report, "unreadable")


@pytest.mark.parametrize("suffix", ["mp3", "flac", "ogg"])
def test_damage_in_the_middle_is_rejected(tmp_path, suffix):
    line = write_item(tmp_path, "bad")
    path = tmp_path / f"bad.{suffix}"
    soundfile.write(path, np.tile(tones(WORDS), (10, 1)), RATE)
    damage_middle(path)
    report = check(tmp_path, {"path": path.name, "duration": 10 * line["duration"]})
    assert path.name in only_rejection(report, "unreadable")


def test_foreign_container_names_the_tool(tmp_path):
    line = write_item(tmp_path, "bad")
    (tmp_path / "bad.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(1000))
    assert "ffmpeg" in only_rejection(check(tmp_path, {**line, "path": "bad.mp4"}), "unreadable")
    (tmp_path / "bad.sph").write_bytes(b"shorten" + bytes(1000))
    assert "sph2pipe" in only_rejection(check(tmp_path, {**line, "path": "bad.sph"}), "unreadable")


def test_mono_and_many_channels(tmp_path):
    stereo = tones(WORDS)
    line = write_item(tmp_path, "bad", audio=stereo[:, 0])
    assert "is mono: record two channels" in only_rejection(check(tmp_path, line), "channels")
    line = write_item(tmp_path, "bad", audio=np.stack([stereo[:, 1] * 0, stereo[:, 0], stereo[:, 1]], 1))
    assert "3 channels: name two with --channels" in only_rejection(check(tmp_path, line), "channels")
    report = validate(read_manifest(write_manifest(tmp_path, [line])).items, CheckRules(channels=(1, 2), strict=True))
    assert report.usable == 1


def test_swapped_channels_and_one_signal_twice(tmp_path):
    stereo = tones(WORDS)
    reason = only_rejection(check(tmp_path, write_item(tmp_path, "bad", audio=stereo[:, ::-1])), "swapped")
    assert "--channels 1,0" in reason
    both = np.repeat(stereo.sum(axis=1, keepdims=True), 2, axis=1)
    only_rejection(check(tmp_path, write_item(tmp_path, "bad", audio=both)), "same_channels")


def test_one_signal_with_another_sign_level_or_time(tmp_path):
    mono = tones(WORDS).sum(axis=1)
    for other in (-mono, -0.5 * mono, np.roll(mono, 24), -0.3 * np.roll(mono, -24), np.roll(mono, 200)):
        line = write_item(tmp_path, "bad", audio=np.stack([mono, other], 1))
        report = check(tmp_path, line)
        only_rejection(report, "same_channels")
        assert dict(report.flags) == {}  # no flag that is not so
    for block in (500, 7000, len(mono)):
        statistics = SignalStatistics(RATE)
        for start in range(0, len(mono), block):
            statistics.add(np.stack([mono, np.roll(mono, 24)], 1)[start : start + block])
        assert statistics.findings([])[1] == "same_channels"


def test_channels_that_cancel_are_no_mixed_recording(tmp_path):
    mono = tones(WORDS).sum(axis=1)
    rules = CheckRules(streams="mixed")
    line = write_item(tmp_path, "bad", [], np.stack([mono, -mono], 1))
    only_rejection(check(tmp_path, line, rules), "same_channels")
    assert check(tmp_path, write_item(tmp_path, "bad", audio=np.stack([mono, -0.5 * mono], 1)), rules).usable == 2
    assert check(tmp_path, write_item(tmp_path, "bad", [], np.zeros((RATE, 2))), rules).usable == 2


def test_a_dc_offset_is_no_sound_and_no_likeness(tmp_path):
    words = [*WORDS, ["imagined", [1.9, 1.95], "SPEAKER_USER"]]
    for offset in (0.01, 0.03, 0.3, -0.3):
        report = check(tmp_path, write_item(tmp_path, "bad", words, tones(WORDS) + np.float32(offset)))
        assert report.usable == 2 and report.words == 4
        assert report.flags == {"unheard_word": 1} | ({"dc_offset": 1} if abs(offset) > 0.05 else {})
    report = check(tmp_path, write_item(tmp_path, "bad", audio=tones(WORDS) / 8 + np.float32(0.3)))
    assert report.usable == 2 and report.words == 4
    report = check(tmp_path, write_item(tmp_path, "bad", [], np.full((RATE, 2), 0.03)))
    assert report.flags == {"silent_channel": 1, "no_words": 1}


def test_manifest_duration_is_verified(tmp_path):
    line = write_item(tmp_path, "bad")
    assert check(tmp_path, {**line, "duration": line["duration"] + 0.07}).flags["duration_mismatch"] == 0
    report = check(tmp_path, {**line, "duration": line["duration"] + 3})
    assert report.flags["duration_mismatch"] == 1 and report.usable == 2
    only_rejection(check(tmp_path, {**line, "duration": 9.0}, CheckRules(strict=True)), "duration_mismatch")


def test_bad_signals(tmp_path):
    stereo = tones(WORDS)
    line = write_item(tmp_path, "bad")
    soundfile.write(tmp_path / "bad.wav", np.where(np.arange(len(stereo))[:, None] == 7, np.nan, stereo), RATE, "FLOAT")
    assert "1 samples are NaN" in only_rejection(check(tmp_path, line), "not_finite")
    soundfile.write(tmp_path / "bad.wav", np.where(np.arange(len(stereo))[:, None] == 7, np.inf, stereo), RATE, "FLOAT")
    assert "infinite" in only_rejection(check(tmp_path, line), "not_finite")
    only_rejection(check(tmp_path, write_item(tmp_path, "bad", audio=stereo * 0)), "silent")
    assert check(tmp_path, write_item(tmp_path, "bad", audio=np.clip(stereo * 20, -1, 1))).flags["clipped"] == 1
    assert check(tmp_path, write_item(tmp_path, "bad", audio=stereo + 0.1)).flags["dc_offset"] == 1
    assert check(tmp_path, write_item(tmp_path, "bad", alignments=[], audio=stereo * 0)).flags["silent_channel"] == 1


def test_short_and_empty_recordings(tmp_path):
    report = check(tmp_path, write_item(tmp_path, "bad", alignments=[], audio=np.full((100, 2), 0.01, np.float32)))
    assert report.usable == 2
    only_rejection(check(tmp_path, write_item(tmp_path, "bad", [], np.zeros((0, 2), np.float32))), "unreadable")


def test_transcripts(tmp_path):
    line = write_item(tmp_path, "bad")
    (tmp_path / "bad.json").unlink()
    assert "bad.json does not exist" in only_rejection(check(tmp_path, line), "transcript")
    late = [["hi", [50.0, 51.0], "SPEAKER_MAIN"]]
    reason = only_rejection(check(tmp_path, write_item(tmp_path, "bad", late, tones(WORDS))), "transcript")
    assert "lies outside the recording" in reason and "bad.json" in reason
    report = check(tmp_path, write_item(tmp_path, "bad", [], tones(WORDS)))
    assert report.flags["no_words"] == 1 and report.usable == 2
    early = [["hello", [0.0, 0.2], "SPEAKER_USER"], ["you", [1.2, 1.5], "SPEAKER_USER"]]
    report = check(tmp_path, write_item(tmp_path, "bad", early, tones([["x", [1.0, 1.6], "SPEAKER_USER"]])))
    assert report.flags["drift"] == 1
    low = [[*word, 0.1] for word in WORDS]
    rules = CheckRules(min_score=0.5)
    (tmp_path / "bad.json").write_text(json.dumps({"alignments": low}))
    soundfile.write(tmp_path / "bad.wav", tones(WORDS), RATE)
    only_rejection(check(tmp_path, line, rules), "low_score")


def test_words_that_nobody_spoke_are_left_out_and_counted(tmp_path):
    """Recognisers write "thanks for watching" over silence."""
    imagined = [["thanks", [1.9, 1.95], "SPEAKER_USER"], ["watching", [1.0, 1.2], "SPEAKER_USER"]]
    line = write_item(tmp_path, "bad", [*WORDS, imagined[0]], tones(WORDS))
    report = check(tmp_path, line)
    assert report.flags["unheard_word"] == 1 and report.usable == 2 and report.words == 4
    # Half a second beside a sound is drift, not imagination; and the other channel's sound is no excuse.
    assert check(tmp_path, write_item(tmp_path, "bad", [*WORDS, imagined[1]], tones(WORDS))).words == 5
    far = [["watching", [1.2, 1.3], "SPEAKER_USER"]]
    assert check(tmp_path, write_item(tmp_path, "bad", [*WORDS, *far], tones(WORDS))).words == 4
    only_rejection(check(tmp_path, line, CheckRules(strict=True)), "unheard_word")


def test_unknown_label_stops_the_job(tmp_path):
    line = write_item(tmp_path, "bad", [["hi", [0.1, 0.2], "A"]], tones(WORDS))
    with pytest.raises(UnknownSpeaker, match=r"bad.json: unknown speakers, 'A' \(1 word\): say"):
        check(tmp_path, line)


def test_the_unknown_labels_of_a_whole_set_are_named_at_once(tmp_path):
    labels = ([0, "SPEAKER_MAIN"], [None, 0], ["Bob", "SPEAKER_USER"])
    lines = []
    for number, pair in enumerate(labels):
        words = [[w, times, label] for (w, times, _), label in zip(WORDS, pair, strict=True)]
        lines.append(write_item(tmp_path, f"call-{number}", words, tones(WORDS)))
    write_item(tmp_path, "broken")
    (tmp_path / "broken.json").write_text("{")
    manifest = read_manifest(write_manifest(tmp_path, [{"path": "broken.wav"}, *lines]))
    known = "call-0.json: unknown speakers, '0' .2 words., 1 word without a speaker, 'Bob' .1 word.: say of each"
    for stopped in (
        lambda: validate(manifest.items, CheckRules()),
        lambda: prepare(manifest, tmp_path / "out", LevelEncoder()),
        lambda: compute_features(manifest, tmp_path / "teacher"),
    ):
        with pytest.raises(UnknownSpeaker, match=known):
            stopped()
    speakers = {**SPEAKERS, "0": "user", "": "model", "Bob": "user"}
    assert not validate(manifest.items, CheckRules(speakers=speakers)).kinds.keys() - {"transcript", "swapped"}


def test_nothing_usable_and_strict_are_errors(tmp_path):
    line = write_item(tmp_path, "bad", audio=tones(WORDS)[:, 0])
    report = validate(read_manifest(write_manifest(tmp_path, [line])).items, CheckRules())
    with pytest.raises(DataError, match=r"none of the 1 items of x is usable; .*bad.wav is mono"):
        report.require_usable("x")
    report = check(tmp_path, line)
    report.require_usable("x")
    with pytest.raises(DataError, match=r"1 of 2 items of x are rejected"):
        report.require_usable("x", strict=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"path\n", r'line 1: .*is not \{"path"'),
        (b'{"duration": 3}\n', "line 1"),
        (b'{"path": "a.wav", "duration": "3"}\n', "duration is '3'"),
        (b'{"path": "."}\n', "line 1: path is '.': give the path of a recording"),
        (b'{"path": "/"}\n', "line 1: path is '/': give the path of a recording"),
        (b'{"path": "a\\u0000.wav"}\n', "line 1: path is .*: give the path of a recording"),
        (b'{"path": "a.wav"}\n{"path": "a.flac"}\n', "'a' occurs twice"),
        (b'{"path": "caf\xe9.wav"}\n', "not UTF-8"),
    ],
)
def test_bad_manifests(tmp_path, content, message):
    path = tmp_path / "manifest.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_manifest(path)


def test_missing_manifest(tmp_path):
    with pytest.raises(DataError, match=r"nowhere.jsonl cannot be read"):
        read_manifest(tmp_path / "nowhere.jsonl")


def test_one_recording_under_several_names(tmp_path):
    lines = [write_item(tmp_path, "a"), write_item(tmp_path, "other", audio=tones(WORDS) / 2)]
    for suffix in (".wav", ".json"):
        (tmp_path / f"copy{suffix}").write_bytes((tmp_path / f"a{suffix}").read_bytes())
        (tmp_path / f"link{suffix}").symlink_to(f"a{suffix}")
    (tmp_path / "x").mkdir()
    lines += [{**lines[0], "path": path} for path in ("copy.wav", "link.wav", "x/../a.wav")]
    manifest = read_manifest(write_manifest(tmp_path, lines))
    assert twins(manifest.items) == {"copy": "a", "link": "a", "x/../a": "a"}
    report = validate(manifest.items, CheckRules())
    assert report.usable == 5 and report.flags == {"same_recording": 3}
    report = validate(manifest.items, CheckRules(strict=True))
    assert report.usable == 2 and report.kinds == {"same_recording": 3}
    assert "copy.wav is a under another name: remove it" in report.rejected[0][1]
    with pytest.raises(DataError, match="3 recordings are there under another name too, such as copy = a"):
        prepare(manifest, tmp_path / "out", LevelEncoder(), PrepareConfig(CheckRules(strict=True)))
    assert not (tmp_path / "out").exists()


def test_whatever_a_recording_raises_rejects_it_alone(tmp_path, monkeypatch):
    def fail(self, block):
        raise ZeroDivisionError("by its sample rate")

    (item,) = read_manifest(write_manifest(tmp_path, [write_item(tmp_path, "bad")])).items
    monkeypatch.setattr(SignalStatistics, "add", fail)
    checked, _, signal = judge(item, CheckRules(), keep_seconds=10)
    assert checked.kind == "unreadable" and signal is None
    assert checked.rejected == f"{item.audio} cannot be used (ZeroDivisionError: by its sample rate)"


def test_recordings_in_two_sets_are_found(tmp_path):
    first = read_manifest(write_set(tmp_path / "train", 3))
    second = read_manifest(write_set(tmp_path / "other", 2))
    assert overlap(second.items, first.items) == [("call-0", "call-0"), ("call-1", "call-1")]
    write_item(tmp_path / "other", "call-1", audio=tones(WORDS, 3.0))
    assert overlap(second.items, first.items) == [("call-0", "call-0")]


def test_an_hour_is_read_in_bounded_memory(tmp_path):
    path = tmp_path / "hour.wav"
    with soundfile.SoundFile(path, "w", 8000, 2, "PCM_16") as file:
        for _ in range(60):
            file.write(np.full((60 * 8000, 2), 0.1, np.float32))
    statistics = SignalStatistics(RATE)
    tracemalloc.start()
    for block in audio.blocks(path, RATE):
        statistics.add(block)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert abs(statistics.num_samples - 3600 * RATE) <= 1
    assert peak < 40e6  # the whole recording would take 691 MB


def risky_judge(item, *more):
    endanger(item.audio)
    return judge(item, *more)


@pytest.mark.slow  # 24 s of waiting
def test_crash_and_hang_reject_the_item_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "_TIME_LIMIT", 10.0)
    monkeypatch.setattr(checks, "judge", risky_judge)
    names = ("first", "segfault", "hang", "last")
    items = read_manifest(write_manifest(tmp_path, [write_item(tmp_path, name) for name in names])).items
    report = validate(items, CheckRules())
    assert report.items == 4 and report.usable == 2 and dict(report.kinds) == {"decoder": 2}
    reasons = dict(report.rejected)
    assert "segfault.wav ended its process (exit code -11), tried 2 times: " in reasons["segfault"]
    assert "hang.wav gave no answer within 12 s, tried 2 times: " in reasons["hang"]
    assert all("convert it to WAV" in reason for reason in reasons.values())


def test_findings_apart_are_the_same(tmp_path):
    items = read_manifest(write_set(tmp_path)).items
    here = Report()
    for item in items:
        here.add(judge(item, CheckRules())[0])
    assert validate(items, CheckRules()).to_json() == here.to_json()
    line = write_item(tmp_path, "labels", [[WORDS[0][0], WORDS[0][1], "Bob"]])
    stranger = read_manifest(write_manifest(tmp_path, [line])).items
    for judged in (lambda: validate(stranger, CheckRules()), lambda: judge(stranger[0], CheckRules())):
        with pytest.raises(UnknownSpeaker, match="Bob"):
            judged()
