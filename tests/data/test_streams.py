"""Other streams than two channels: everybody in one, two cut out by diarization; and the user's channel augmented."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import soundfile

from moshijax.data import records
from moshijax.data.augmentation import Augmenter, UserAugmentation
from moshijax.data.checks import CheckRules
from moshijax.data.diarization import Segment, assign, main_mask, read_segments
from moshijax.data.manifest import read_manifest
from moshijax.data.prepare import PrepareConfig, prepare
from moshijax.data.transcript import Word
from moshijax.errors import ConfigError, DataError
from tests.data.sets import RATE, LevelEncoder, write_item, write_manifest, write_set

DIARIZED = CheckRules(streams="diarized")
WORDS = [["hello", [0.3, 0.6], "A"], ["yes", [1.0, 1.3], "B"], ["lost", [1.85, 1.95], "?"]]
SEGMENTS = [["A", [0.2, 0.7]], ["B", [0.9, 1.3]]]


def tone(seconds=2.0, level=0.2):
    return level * np.sin(2 * np.pi * 300 * np.arange(round(seconds * RATE)) / RATE).astype(np.float32)


def write_mono(folder, name="talk", **extra):
    folder.mkdir(parents=True, exist_ok=True)
    return write_item(folder, name, WORDS, tone()[:, None], **extra)


def made(folder, out, config, encoder=None):
    index, report, _ = prepare(read_manifest(folder / "manifest.jsonl"), out, encoder or LevelEncoder(), config)
    return index, report, list(records.RecordSource(out))


def test_mixed_is_one_stream_whose_labels_mean_nothing(tmp_path):
    lines = [write_mono(tmp_path / "in")]
    stereo = np.stack([tone(), np.zeros_like(tone())], axis=1)
    lines.append(write_item(tmp_path / "in", "two", WORDS, stereo))
    write_manifest(tmp_path / "in", lines)
    index, report, (mono, mean) = made(tmp_path / "in", tmp_path / "out", PrepareConfig(CheckRules(streams="mixed")))
    assert index["channels"] == ["mixed"] and report.usable == 2
    assert mono["codes"].shape == (1, 3, 25) and mean["codes"].shape == (1, 3, 25)
    assert [word[0] for word in mono["words"]] == ["hello", "yes", "lost"]
    np.testing.assert_allclose(mean["codes"], mono["codes"] / 2, atol=1)
    with pytest.raises(ConfigError, match="'mixed' mixes all channels: omit --channels"):
        CheckRules(streams="mixed", channels=(0, 1))


def test_a_diarized_recording_becomes_a_main_speaker_and_the_rest(tmp_path):
    write_manifest(tmp_path / "in", [write_mono(tmp_path / "in", diarization=SEGMENTS)])
    config = PrepareConfig(DIARIZED, copies=6)
    index, report, found = made(tmp_path / "in", tmp_path / "out", config)
    assert index["channels"] == ["model", "user"] and report.flags == {"word_without_speaker": 1}
    assert [record["id"] for record in found] == [f"talk#{n}" for n in range(6)] and report.usable == 1
    assert {record["provenance"]["main"] for record in found} == {"A", "B"}
    frame = 1920 / RATE
    for record in found:
        main = dict(SEGMENTS)[record["provenance"]["main"]]
        other = next(times for label, times in SEGMENTS if label != record["provenance"]["main"])
        words = {"hello": "model", "yes": "user"} if main == [0.2, 0.7] else {"hello": "user", "yes": "model"}
        assert {word[0]: word[3] for word in record["words"]} == words
        model, user = record["codes"][:, 0] > 0
        assert model[int(0.5 * sum(main) / frame)] and not user[int(0.5 * sum(main) / frame)]
        assert user[int(0.5 * sum(other) / frame)] and not model[int(0.5 * sum(other) / frame)]
        assert user[-1] and not model[-1]  # what is nobody's is part of the rest
    again = made(tmp_path / "in", tmp_path / "again", config)[2]
    assert [r["codes"].tobytes() for r in again] == [r["codes"].tobytes() for r in found]
    other = made(tmp_path / "in", tmp_path / "other", dataclasses.replace(config, seed=1))[2]
    assert [r["provenance"]["main"] for r in other] != [r["provenance"]["main"] for r in found]
    with pytest.raises(DataError, match="was made with draws"):
        made(tmp_path / "in", tmp_path / "out", dataclasses.replace(config, seed=1))


def test_long_recordings_are_cut_in_blocks(tmp_path, monkeypatch):
    from moshijax.data import prepare as module

    write_manifest(tmp_path / "in", [write_mono(tmp_path / "in", diarization=SEGMENTS)])
    config = PrepareConfig(DIARIZED, augmentation=UserAugmentation(gain=1.0, room=1.0), copies=2)
    short = made(tmp_path / "in", tmp_path / "short", config)[2]
    monkeypatch.setattr(module, "_LONG_SECONDS", 1.0)
    monkeypatch.setattr("moshijax.data.audio._BLOCK_SECONDS", 0.31)
    monkeypatch.setattr("moshijax.data.audio.blocks.__defaults__", ((0, 1), 0.31))
    long = made(tmp_path / "in", tmp_path / "long", config)[2]
    for a, b in zip(short, long, strict=True):
        np.testing.assert_allclose(a["codes"], b["codes"], atol=1)  # but for rounding


def test_rttm_beside_the_recording(tmp_path):
    write_manifest(tmp_path / "in", [write_mono(tmp_path / "in")])
    lines = [f"SPEAKER talk 1 {a} {b - a} <NA> <NA> {s} <NA> <NA>" for s, (a, b) in SEGMENTS]
    (tmp_path / "in" / "talk.rttm").write_text("\n".join(lines) + "\n")
    _, _, (record,) = made(tmp_path / "in", tmp_path / "out", PrepareConfig(DIARIZED))
    assert record["provenance"]["main"] in "AB"


RTTM = "SPEAKER talk 1 0.200 0.500 <NA> <NA> A <NA> <NA>\nSPEAKER talk 1 0.900 0.400 <NA> <NA> B <NA> <NA>\n"


@pytest.mark.parametrize(
    ("content", "counts", "labels"),
    [
        (RTTM, {}, "AB"),
        (b"\xef\xbb\xbf" + RTTM.encode(), {}, "AB"),
        (RTTM.replace(" A ", " André ").encode("latin-1"), {}, ["Andr\\xe9", "B"]),
        (RTTM.replace("\n", "\r\n").replace(" A ", " A\u2028"), {}, "AB"),
        (RTTM.replace("talk", "waveform"), {}, "AB"),
        (RTTM.replace("talk", "far/talk.wav"), {}, "AB"),
        ("SPKR-INFO talk 1 <NA> <NA> <NA> unknown A <NA> <NA>\n" + RTTM, {}, "AB"),
        (RTTM.replace("talk", "another").replace("0.200", "1.000") + RTTM, {"segment_of_another": 2}, "AB"),
        (RTTM + RTTM.replace("0.400", "0.000").replace("0.500", "-0.1"), {"empty_segment": 2}, "AB"),
        (RTTM.replace("0.200 0.500", "-0.008 0.708"), {"clamped_segment": 1}, "AB"),
    ],
)
def test_rttm_files_of_all_kinds(tmp_path, content, counts, labels):
    write_manifest(tmp_path, [write_mono(tmp_path)])
    (tmp_path / "talk.rttm").write_bytes(content if isinstance(content, bytes) else content.encode())
    (item,) = read_manifest(tmp_path).items
    segments, found = read_segments(item, {})
    assert [segment.speaker for segment in segments] == list(labels) and dict(found) == counts
    assert segments[0].start == (0.0 if "clamped_segment" in counts else 0.2) and segments[0].end == pytest.approx(0.7)
    # Each word is still its own speaker's.
    words = [Word("hello", 0.3, 0.6, "model"), Word("yes", 1.0, 1.3, "model")]
    assert [word.speaker for word in assign(words, segments, labels[0])[0]] == ["model", "user"]
    _, report, _ = made(tmp_path, tmp_path / "out", PrepareConfig(DIARIZED))
    assert report.usable == 1 and {name for name in report.flags if "segment" in name} == set(counts)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (RTTM.replace("0.200", "nan"), "must have finite times"),
        (RTTM.replace("0.200", "0,200"), "line 1: .* is not an RTTM line"),
        (RTTM.replace(" 1 0.200", " 0.200"), "line 1: .* is not an RTTM line"),
        ("", "names no speaker"),
        (
            RTTM.replace("talk", "a") + RTTM.replace("talk", "b"),
            r"is of 2 other recordings \(a, b, ",
        ),
    ],
)
def test_rttm_files_that_say_nothing_are_named(tmp_path, content, message):
    write_manifest(tmp_path, [write_mono(tmp_path)])
    (tmp_path / "talk.rttm").write_text(content)
    with pytest.raises(DataError, match=f"talk.rttm.*{message}"):
        read_segments(read_manifest(tmp_path).items[0], {})


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({}, 'has no "diarization" and there is no talk.rttm'),
        ({"diarization": []}, "names no speaker"),
        ({"diarization": "A"}, "must be a list of"),
        ({"diarization": [["A", [2.0, 1.0]], ["A", [1.0, 1.0]], ["A", [-2.0, -1.0]]]}, "names no speaker"),
        ({"diarization": [["A", [0.0, float("inf")]]]}, "must have finite times"),
        ({"diarization": [["A", ["0,2", 1.0]]]}, r"must be \[label, \[start, end\]\]"),
        ({"diarization": [[["A"], [0.2, 1.0]]]}, r"must be \[label, \[start, end\]\]"),
        ({"diarization": [["A", 1.0]]}, r"must be \[label, \[start, end\]\]"),
    ],
)
def test_recordings_that_cannot_be_cut_are_named(tmp_path, extra, message):
    write_manifest(tmp_path / "in", [write_mono(tmp_path / "in", **extra)])
    with pytest.raises(DataError, match=message):
        made(tmp_path / "in", tmp_path / "out", PrepareConfig(DIARIZED))


def test_words_go_to_whom_they_overlap_most():
    segments = [Segment("A", 0.0, 1.0), Segment("B", 0.8, 2.0)]
    words = [Word("a", 0.1, 0.4, "model"), Word("b", 0.7, 1.5, "model"), Word("near", 2.2, 2.4, "model")]
    found, counts = assign([*words, Word("far", 3.0, 3.1, "model")], segments, "A")
    assert [(w.text, w.speaker) for w in found] == [("a", "model"), ("b", "user"), ("near", "user")]
    assert counts == {"word_without_speaker": 1}
    np.testing.assert_array_equal(main_mask(segments, "A", 5, 8, 10), [1, 1, 1, 1, 1, 0, 0, 0])


# Augmentation -------------------------------------------------------------------------------------------------------


@pytest.fixture
def clips(tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    noise = np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    soundfile.write(folder / "noise.wav", 0.1 * noise, RATE, subtype="FLOAT")
    return str(folder)


def signal(seconds=4.0):
    return np.stack([tone(seconds, 0.3), np.roll(tone(seconds, 0.1), 40)], axis=1)


def changed(config, seed=0, size=None, pcm=None):
    pcm = signal() if pcm is None else pcm
    rms = float(np.sqrt(np.mean(np.square(pcm[:, 1]))))
    pieces = iter([pcm] if size is None else [pcm[i : i + size] for i in range(0, len(pcm), size)])
    blocks, names = Augmenter(config, RATE).apply(pieces, rms, np.random.default_rng(seed))
    return np.concatenate(list(blocks)), names


def test_the_model_is_never_changed_and_the_user_as_drawn(clips):
    everything = UserAugmentation(gain=1.0, noise=1.0, room=1.0, clips=clips)
    out, names = changed(everything)
    assert names == ("gain", "noise", "room") and out.dtype == np.float32
    np.testing.assert_array_equal(out[:, 0], signal()[:, 0])
    np.testing.assert_array_equal(out, changed(everything)[0])
    assert not np.array_equal(out, changed(everything, seed=1)[0])
    nothing = UserAugmentation(gain=0.0, noise=0.0, room=0.0)
    assert changed(nothing)[1] == () and np.array_equal(changed(nothing)[0], signal())


def test_blocks_of_any_size_give_the_same_signal(clips):
    config = UserAugmentation(gain=1.0, noise=1.0, room=1.0, clips=clips)
    whole = changed(config)[0]
    for size in (1000, 30_001):
        np.testing.assert_allclose(changed(config, size=size)[0], whole, atol=1e-6)


def test_levels_are_in_the_published_ranges(clips):
    before = np.sqrt(np.mean(np.square(signal()[:, 1])))
    gains = []
    for seed in range(20):
        out, _ = changed(UserAugmentation(gain=1.0, noise=0.0, room=0.0), seed)
        gains.append(20 * np.log10(np.sqrt(np.mean(np.square(out[:, 1]))) / before))
    assert -24 <= min(gains) < -12 and 3 < max(gains) <= 15
    levels = []
    for seed in range(12):
        out, _ = changed(UserAugmentation(gain=0.0, noise=1.0, room=0.0, pause=0.0, clips=clips), seed)
        levels.append(20 * np.log10(np.sqrt(np.mean(np.square(out[:, 1] - signal()[:, 1]))) / before))
    assert -30.5 <= min(levels) < max(levels) <= 6.5


def test_pauses_in_the_noise(clips):
    out, _ = changed(UserAugmentation(0.0, noise=1.0, room=0.0, pause_seconds=1.0, clips=clips), 3, pcm=signal(20.0))
    quiet = np.abs(out[:, 1] - signal(20.0)[:, 1]).reshape(-1, 2400).max(axis=1) == 0
    assert 0 < quiet.mean() < 1


def test_echo_and_reflections():
    """A click of the model returns late and weak; a click of the user is followed by reflections that die away."""
    click = np.zeros((2 * RATE, 2), np.float32)
    click[100, 0] = 1.0
    room = UserAugmentation(gain=0.0, noise=0.0, room=1.0)
    heard = np.abs(changed(room, pcm=click)[0][:, 1])
    first = int(np.argmax(heard > 1e-4)) - 100
    assert 0.1 * RATE <= first <= 0.5 * RATE and 0 < heard.max() <= 0.2
    click[:] = 0
    click[100, 1] = 1.0
    heard = np.abs(changed(room, pcm=click)[0][:, 1])
    assert heard[100] == pytest.approx(1.0, abs=1e-6)
    later = heard[101:] * (heard[101:] > 1e-6)
    arrivals = np.flatnonzero(later) + 1
    assert 0.009 * RATE <= arrivals[0] <= 0.033 * RATE and later.max() <= 0.9 and arrivals[-1] < 1.4 * RATE
    assert later[: RATE // 4].sum() > later[RATE // 4 :].sum()


def test_reflections_fall_by_60_db_in_rt60():
    """One train without jitter: a reflection every 20 ms, each weaker by the same factor."""
    click = np.zeros((2 * RATE, 2), np.float32)
    click[0] = 0.0, 1.0
    fixed = dict(echo=0.0, rt60=(0.5, 0.5), first_delay_ms=(20.0, 20.0), trains=1, jitter=0.0)
    heard = changed(UserAugmentation(gain=0.0, noise=0.0, room=1.0, **fixed), pcm=click)[0][:, 1]
    step = round(0.02 * RATE)
    reflections = heard[step::step]
    count = int((reflections > 1e-6).sum())
    np.testing.assert_allclose(reflections[1:count] / reflections[: count - 1], 10 ** (-3 * 0.02 / 0.5), rtol=1e-3)
    assert reflections[0] <= 0.3 and reflections[count - 1] >= 1e-3 > 10 ** (-3 * 0.02 / 0.5) * reflections[count - 1]
    between = np.delete(heard, np.arange(0, len(heard), step))
    assert np.abs(between).max() < 1e-6


def test_levels_are_in_decibels_of_amplitude(clips):
    for gain in (-20.0, 6.0):
        out, _ = changed(UserAugmentation(gain=1.0, gain_db=(gain, gain), noise=0.0, room=0.0))
        np.testing.assert_allclose(out[:, 1], signal()[:, 1] * 10 ** (gain / 20), atol=1e-6)
    noisy = UserAugmentation(gain=0.0, noise=1.0, noise_db=(-20.0, -20.0), pause=0.0, room=0.0, clips=clips)
    added = changed(noisy)[0][:, 1] - signal()[:, 1]
    rms = np.sqrt(np.square(signal()[:, 1]).mean())
    assert np.sqrt(np.square(added).mean()) == pytest.approx(0.1 * rms, rel=1e-3)


def test_bad_noise_is_named(tmp_path, caplog, clips):
    folder = tmp_path / "bad"
    folder.mkdir()
    soundfile.write(folder / "silent.wav", np.zeros(RATE), RATE)
    config = UserAugmentation(gain=0.0, noise=1.0, room=0.0, pause=0.0, clips=str(folder))
    with pytest.raises(DataError, match="8 noise clips in a row cannot be used: look at"):
        changed(config)
    assert "silent.wav is silent or damaged" in caplog.text
    for fields, message in (({"noise": 2.0}, "noise is 2"), ({"gain_db": (3.0, 1.0)}, "smaller end first")):
        with pytest.raises(ConfigError, match=message):
            UserAugmentation(**fields)


def test_augmented_copies_of_a_set(tmp_path, clips):
    write_set(tmp_path / "in", 3)
    config = PrepareConfig(augmentation=UserAugmentation(gain=1.0, noise=1.0, room=1.0, clips=clips), copies=2)
    _, report, found = made(tmp_path / "in", tmp_path / "out", config)
    plain = made(tmp_path / "in", tmp_path / "plain", PrepareConfig())[2]
    assert len(found) == 6 and report.usable == 3
    for number, record in enumerate(found):
        np.testing.assert_array_equal(record["codes"][0], plain[number // 2]["codes"][0])
        assert not np.array_equal(record["codes"][1], plain[number // 2]["codes"][1])
        assert record["provenance"]["augmented"] == ["gain", "noise", "room"]
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["plan"]["draws"]["copies"] == 2
    for fields, message in (
        ({"copies": 2}, "nothing is drawn"),
        ({"rules": CheckRules(streams="mixed"), "augmentation": UserAugmentation()}, "does not have"),
    ):
        with pytest.raises(ConfigError, match=message):
            PrepareConfig(**fields)


def test_the_command(tmp_path, monkeypatch, clips):
    from click.testing import CliRunner

    from moshijax.cli.main import cli

    monkeypatch.setattr("moshijax.data.encoder.CodecEncoder.load", lambda *_: LevelEncoder())
    manifest = str(write_manifest(tmp_path / "in", [write_mono(tmp_path / "in", diarization=SEGMENTS)]))

    def invoke(out, *options):
        args = ["data", "prepare", manifest, str(tmp_path / out), "--codec", "c", *options]
        return CliRunner().invoke(cli, args)

    found = invoke("out", "--streams", "diarized", "--copies", "3", "--seed", "1", "--augment", "--noise", clips)
    assert found.exit_code == 0 and "flagged word_without_speaker: 1 items" in found.output
    assert len(records.RecordSource(tmp_path / "out")) == 3
    assert "1 of 1 items usable" in invoke("mixed", "--streams", "mixed").output
    assert isinstance(invoke("x", "--noise", clips).exception, ConfigError)
