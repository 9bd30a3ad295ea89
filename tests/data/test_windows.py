"""Audio windows and teacher features: aligned, deterministic, mostly speech."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import soundfile

from moshijax.data import audio, records, teacher
from moshijax.data.manifest import read_manifest, read_recordings
from moshijax.data.teacher import PhonemeTeacher, TeacherFeatures, compute_features, make_teacher
from moshijax.data.windows import AudioData, AudioWindows, audio_batches
from moshijax.errors import ConfigError, DataError
from tests.data.sets import RATE, damage_middle, endanger, tones, write_item, write_manifest

PHONEMES = [["s", [0.3, 0.45], "SPEAKER_USER"], ["ˈaʊ", [0.45, 0.6], "SPEAKER_USER"], ["m", [1.0, 1.3], "SPEAKER_MAIN"]]
SPANS = [[symbol, times, speaker] for symbol, times, speaker in PHONEMES]


@pytest.fixture
def manifest(tmp_path):
    lines = [write_item(tmp_path, f"c{i}", SPANS, tones(SPANS, 2.0 + i), phonemes=PHONEMES) for i in range(4)]
    lines.append(write_item(tmp_path, "other", SPANS, tones(SPANS, 2.0, 16_000), 16_000, phonemes=PHONEMES))
    return write_manifest(tmp_path, lines)


def test_features_follow_the_phonemes(manifest):
    index, report, _ = compute_features(read_manifest(manifest))
    assert (index["kind"], index["rate"], report.usable) == ("phonemes", 50, 5)
    assert json.loads((manifest.parent / "teacher" / "teacher.json").read_text())["dim"] == PhonemeTeacher.dim
    features = TeacherFeatures(manifest.parent / "teacher").read("c0").astype(np.float32)
    assert features.shape == (2, 100, PhonemeTeacher.dim)
    silence = features[0, 0]
    assert (features[0, :49] == silence).all() and (features[0, 66:] == silence).all()
    assert (features[1, :14] == silence).all() and (features[1, 31:] == silence).all()
    similarity = lambda a, b: float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))  # noqa: E731
    assert similarity(features[1, 18], silence) < 0.1
    assert similarity(features[1, 24], features[1, 28]) < 0.9  # the two halves of a diphthong
    assert similarity(features[1, 18], features[1, 20]) > 0.99


class Stopping(PhonemeTeacher):
    """Is stopped, as by Ctrl-C, when it is asked for the features of one recording."""

    def __init__(self, stop):
        super().__init__()
        self.stop, self.asked = stop, []

    def features(self, item, duration, speakers):
        if item.id == self.stop:
            raise KeyboardInterrupt
        self.asked.append(item.id)
        return super().features(item, duration, speakers)


def test_features_go_on_where_they_were_stopped(manifest, tmp_path):
    content, whole, parts = read_manifest(manifest), tmp_path / "whole", tmp_path / "parts"
    index, report, _ = compute_features(content, whole, shard_items=2)
    with pytest.raises(KeyboardInterrupt):
        compute_features(content, parts, Stopping("c3"), shard_items=2)
    with pytest.raises(DataError, match=r"parts is unfinished \(1 shards, .*: run the same `data teacher` again"):
        TeacherFeatures(parts)
    rest = Stopping(None)
    assert compute_features(content, parts, rest, shard_items=2)[:2] == (index, report)
    assert rest.asked == ["c2", "c3", "other"]  # the first shard was there
    assert {p.name: p.read_bytes() for p in parts.iterdir()} == {p.name: p.read_bytes() for p in whole.iterdir()}
    done = Stopping("c0")
    assert compute_features(content, parts, done, shard_items=2) == (index, report, 0) and done.asked == []
    done.kind = "other"
    with pytest.raises(DataError, match="parts was made with kind = 'phonemes', now it is 'other': choose"):
        compute_features(content, parts, done, shard_items=2)


def test_windows_and_features_are_aligned(manifest):
    compute_features(read_manifest(manifest))
    config = AudioData(str(manifest), str(manifest.parent / "teacher"), 16, 12_000, RATE)
    batch = audio_batches(config, 0).batch(0)
    assert batch["audio"].shape == (16, 12_000) and batch["audio"].dtype == np.float32
    assert batch["teacher"].shape == (16, 25, PhonemeTeacher.dim) and batch["teacher"].dtype == np.float32
    loud = np.sqrt(np.square(batch["audio"].reshape(16, 25, 480)).mean(-1)) > 0.05
    silence = PhonemeTeacher()._vectors["silence"]
    quiet = np.abs(batch["teacher"] - silence).max(-1) < 1e-3
    # Where a whole 20 ms frame and its neighbours sound, features are of speech, and the other way round.
    inner = loud[:, 1:-1] & loud[:, :-2] & loud[:, 2:]
    outer = ~loud[:, 1:-1] & ~loud[:, :-2] & ~loud[:, 2:]
    assert inner.sum() > 40 and not quiet[:, 1:-1][inner].any()
    assert outer.sum() > 40 and quiet[:, 1:-1][outer].all()


def test_windows_of_one_channel_that_start_on_a_grid(manifest):
    compute_features(read_manifest(manifest))
    config = AudioData(str(manifest), str(manifest.parent / "teacher"), 8, 12_000, RATE, channel=1, start_grid=0.08)
    recordings = [audio.read(item.audio, RATE)[:, 1] for item in read_recordings(str(manifest)).items]
    drawn = audio_batches(config, 0).batch(0)["audio"]
    for window in drawn:
        starts = [
            at
            for recording in recordings
            for at in range(0, len(recording) - len(window) + 1, 480)
            if np.abs(recording[at : at + len(window)] - window).max() < 1e-3
        ]
        assert starts and any(start % 1920 == 0 for start in starts)
    other = dataclasses.replace(config, channel=0)
    assert np.abs(audio_batches(other, 0).batch(0)["audio"] - drawn).max() > 0.05
    with pytest.raises(DataError, match="has 2 channels, so none of number 2"):
        audio_batches(dataclasses.replace(config, channel=2), 0).batch(0)


def test_batches_depend_on_seed_and_number_only(manifest):
    config = AudioData(str(manifest), None, 4, 12_000, RATE, gain_db=(-6.0, 6.0))
    one, two = audio_batches(config, 5), audio_batches(config, 5)
    expected = [one.batch(n)["audio"].tobytes() for n in range(20)]
    assert [two.batch(n)["audio"].tobytes() for n in reversed(range(20))] == expected[::-1]
    assert "teacher" not in one.batch(0)
    assert audio_batches(config, 6).batch(0)["audio"].tobytes() != expected[0]


def test_a_window_reads_the_chunks_that_it_lies_in(manifest, monkeypatch):
    """The same values as of the whole recording, across the borders of chunks and beyond the end."""
    content, whole = read_manifest(manifest), manifest.parent / "whole"
    compute_features(content, whole)
    monkeypatch.setattr(teacher, "_CHUNK", 10)
    compute_features(content, manifest.parent / "teacher")
    long, short = TeacherFeatures(whole), TeacherFeatures(manifest.parent / "teacher")
    read, record = [], records.RecordSource.__getitem__
    monkeypatch.setattr(records.RecordSource, "__getitem__", lambda self, n: read.append(n) or record(self, n))
    for item, frames in (("c0", 100), ("c3", 250), ("other", 100)):
        expected = long.read(item)
        assert expected.shape == (2, frames, PhonemeTeacher.dim)
        np.testing.assert_array_equal(short.read(item), expected)
        for start in range(0, frames, 3):
            for length, most in ((1, 1), (9, 2), (10, 2), (25, 4)):
                read.clear()
                np.testing.assert_array_equal(short.read(item, start, start + length), expected[:, start:][:, :length])
                assert 1 <= len(read) <= most
    config = AudioData(str(manifest), str(whole), 16, 12_000, RATE)
    small = dataclasses.replace(config, teacher=str(manifest.parent / "teacher"))
    np.testing.assert_array_equal(*(audio_batches(one, 0).batch(3)["teacher"] for one in (config, small)))


def test_silent_windows_are_drawn_again(manifest):
    def share(speech_share):
        batch = audio_batches(AudioData(str(manifest), None, 64, 4800, RATE, speech_share), 0).batch(0)
        return float((np.abs(batch["audio"]).max(axis=1) > 0.05).mean())

    assert share(1.0) > 0.6 > 0.4 > share(0.0)


def test_windows_with_too_little_sound_are_drawn_again(manifest):
    def sounding(least_sound):
        config = AudioData(str(manifest), None, 64, 4800, RATE, speech_share=1.0, least_sound=least_sound)
        frames = audio_batches(config, 0).batch(0)["audio"].reshape(64, 10, 480)
        return (np.sqrt(np.square(frames).mean(-1)) > 0.05).mean(-1)

    any_sound, half, most = map(sounding, (0.0, 0.5, 0.8))
    assert (half >= 0.5).mean() > (any_sound >= 0.5).mean() + 0.05
    # Where 8 tries find no window that is good enough, the best of them is taken.
    assert any_sound.mean() < min(half.mean(), most.mean())
    assert (most > 0).sum() >= 0.95 * (any_sound > 0).sum()
    with pytest.raises(ConfigError, match="least_sound is 1.5"):
        AudioData(str(manifest), least_sound=1.5)


def test_after_a_short_recording_another_one_follows_and_nothing_trains_as_silence(tmp_path):
    """Recordings of a second, each of one level; also their features follow each other."""
    lines = []
    for number in range(5):
        sound = np.full((RATE + 100 * number, 2), 0.1 * (number + 1), np.float32)
        sound[::2] *= -1
        lines.append(write_item(tmp_path, f"c{number}", SPANS, sound, phonemes=PHONEMES))
    manifest = write_manifest(tmp_path, lines)
    compute_features(read_manifest(manifest))
    config = AudioData(str(manifest), str(tmp_path / "teacher"), 4, 3 * RATE + 240, RATE)
    source = audio_batches(config, 0)
    batch = source.batch(0)
    assert batch["audio"].shape == (4, 3 * RATE + 240) and batch["teacher"].shape[:2] == (4, 150)
    levels = np.abs(batch["audio"])
    assert levels.min() > 0.09 and len(np.unique(levels.round(1))) > 1
    parts = levels[:, : 3 * RATE].reshape(4, 3, RATE)
    assert (parts.max(axis=2) - parts.min(axis=2) < 1e-3).all()  # a recording each, whole steps of it
    features = TeacherFeatures(tmp_path / "teacher")
    for row in range(4):
        for part in range(3):
            expected = features.read(f"c{round(float(parts[row, part, 0]) * 10) - 1}").astype(np.float32)
            found = batch["teacher"][row, part * 50 : part * 50 + 50]
            assert any(np.array_equal(found, expected[channel, :50]) for channel in (0, 1))
    again = audio_batches(config, 0)
    np.testing.assert_array_equal(again.batch(5)["audio"], source.batch(5)["audio"])
    np.testing.assert_array_equal(again.batch(5, slice(1, 3))["audio"], source.batch(5)["audio"][1:3])


def test_refusals(manifest, tmp_path):
    with pytest.raises(DataError, match="nowhere holds no teacher.json: make it with `moshijax data teacher`"):
        audio_batches(AudioData(str(manifest), str(tmp_path / "nowhere")), 0)
    compute_features(read_manifest(manifest))
    manifest.write_text("".join(manifest.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(DataError, match="are of other recordings than"):
        audio_batches(AudioData(str(manifest), str(manifest.parent / "teacher")), 0)
    with pytest.raises(ConfigError, match="teacher 'other' is not known"):
        make_teacher("other")
    with pytest.raises(ConfigError, match="teacher 'wavlm' with model None"):
        make_teacher("wavlm")
    with pytest.raises(ConfigError, match="gain_db"):
        AudioData(str(manifest), gain_db=(3.0, 0.0))
    with pytest.raises(ConfigError, match="start_grid is 0.03 s: give a multiple of the 0.02 s"):
        AudioData(str(manifest), start_grid=0.03)
    with pytest.raises(ConfigError, match="channel is -1"):
        AudioData(str(manifest), channel=-1)


def test_items_without_phonemes_are_named(manifest):
    write_item(manifest.parent, "c1", SPANS, tones(SPANS, 3.0))
    _, report, _ = compute_features(read_manifest(manifest))
    assert report.usable == 4 and report.rejected[0][0] == "c1" and '"phonemes"' in report.rejected[0][1]
    config = AudioData(str(manifest), str(manifest.parent / "teacher"))
    source = audio_batches(config, 0)
    assert source.items == 4 and source.content == "4 recordings, 0.2 minutes (1 others have no features)"


def test_what_there_is_is_said_and_where(manifest, mixed):
    source = audio_batches(AudioData(str(manifest)), 0)
    assert source.content == "5 recordings, 0.3 minutes"
    assert source.files["other"] == manifest.parent / "other.wav" and len(source.files) == 5
    assert audio_batches(AudioData(str(mixed)), 0).content == "10 recordings"  # how long they are, nobody has said


def write_tones(folder, name, rate, channels=1, seconds=1.0, subtype="PCM_16"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * rate)) / rate
    soundfile.write(path, np.stack([0.2 * np.sin(2 * np.pi * 300 * time)] * channels, 1), rate, subtype=subtype)
    return path


def audio_windows(folder):
    return AudioWindows(AudioData(str(folder), None, 8, 2400), read_recordings(folder).items, None)


@pytest.fixture
def mixed(tmp_path):
    """A folder as people have them: any rate, any number of channels, and broken files among them."""
    folder = tmp_path / "speech"
    write_tones(folder, "a/one.wav", 8_000)
    write_tones(folder, "a/two.flac", 44_100, 2)
    write_tones(folder, "three.ogg", 48_000, subtype="VORBIS")
    write_tones(folder, "b/six.wav", 24_000, 6)
    write_tones(folder, "tiny.wav", 16_000, seconds=1 / 16_000)  # one sample
    cut = write_tones(folder, "bad/cut.wav", 24_000, seconds=2.0)
    cut.write_bytes(cut.read_bytes()[:5_000])
    (folder / "bad" / "text.wav").write_text("this is no audio, however long it may be made to look by more words")
    (folder / "bad" / "empty.mp3").write_bytes(b"")
    nan = np.full(24_000, np.nan, np.float32)
    soundfile.write(folder / "bad" / "nan.wav", nan, 24_000, subtype="FLOAT")
    soundfile.write(folder / "bad" / "none.wav", nan[:0], 24_000)
    (folder / "notes.txt").write_text("not audio")
    return folder


def test_any_folder_is_data_and_broken_files_are_named_counted_and_skipped(mixed, caplog):
    source = audio_batches(AudioData(str(mixed), None, 32, 4800, workers=4), 0)
    assert source.items == 10
    with caplog.at_level("WARNING", "moshijax"):
        batches = [source.batch(n)["audio"] for n in range(3)]
    for batch in batches:
        assert batch.shape == (32, 4800) and batch.dtype == np.float32 and np.isfinite(batch).all()
        spectrum = np.abs(np.fft.rfft(batch[np.abs(batch[:, 1000:]).max(1) > 0.1]))
        assert (spectrum.argmax(1) == 60).all()  # 300 Hz, whatever the file's rate
    names = ("cut.wav", "text.wav", "empty.mp3", "nan.wav", "none.wav")
    messages = [record.getMessage() for record in caplog.records]
    assert all(sum(name in message for message in messages) == 1 for name in names)
    assert "of 10 so far" in messages[0]
    assert sorted(source.skipped) == ["bad/cut", "bad/empty", "bad/nan", "bad/none", "bad/text", "tiny"]
    again = audio_batches(AudioData(str(mixed), None, 32, 4800, workers=0), 0)  # without processes: the same
    assert again.batch(2)["audio"].tobytes() == batches[2].tobytes()


READ_WINDOW = audio.read_window


def risky_read_window(path, *more):
    endanger(path)
    return READ_WINDOW(path, *more)


def test_a_file_that_crashes_its_decoder_is_skipped(tmp_path, monkeypatch, caplog):
    write_tones(tmp_path, "good.wav", RATE)
    write_tones(tmp_path, "segfault.wav", RATE)
    monkeypatch.setattr(audio, "read_window", risky_read_window)
    source = audio_batches(AudioData(str(tmp_path), None, 8, 2400, workers=2), 0)
    assert np.abs(source.batch(0)["audio"]).max(axis=1).min() > 0.1
    assert list(source.skipped) == ["segfault"]
    assert caplog.text.count("segfault.wav ended its process (exit code -11), tried 2 times: ") == 1


def test_a_few_good_recordings_among_many_broken_ones_are_enough(tmp_path, caplog):
    """Each broken one is opened once, and batches are the same to who knows them already."""
    for n in range(3):
        write_tones(tmp_path, f"good-{n}.wav", RATE)
    for n in range(27):
        (tmp_path / f"bad-{n}.wav").write_bytes(b"\0\5\x16\7 of another system" * 4)
    config, opened = AudioData(str(tmp_path), None, 8, 2400, workers=0), []
    source = audio_batches(config, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audio, "probe", lambda path, probe=audio.probe: opened.append(path) or probe(path))
        batches = [source.batch(n)["audio"].tobytes() for n in range(12)]
    assert len(source.skipped) == len(caplog.records) == 27
    assert sorted(opened) == sorted(tmp_path.iterdir())
    assert [source.batch(n)["audio"].tobytes() for n in range(12)] == batches
    assert audio_batches(config, 0).batch(11)["audio"].tobytes() == batches[11]


def test_many_failures_in_a_row_end_the_run(tmp_path, monkeypatch):
    """As when the disk is gone: the files were good."""
    for n in range(40):
        write_tones(tmp_path, f"{n}.wav", RATE)
    source = audio_batches(AudioData(str(tmp_path), None, 8, 2400, workers=0), 0)
    source.batch(0)
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"32 recordings in a row of .* cannot be used, \d+ in all; the last: "):
        source.batch(1)


def test_windows_that_break_off_come_from_another_file(tmp_path, monkeypatch, caplog):
    write_tones(tmp_path, "good.wav", RATE)
    write_tones(tmp_path, "worse.wav", RATE)
    whole = soundfile.SoundFile.read

    def read(file, frames, **how):
        return whole(file, frames, **how)[: frames // 2 if "worse" in str(file.name) else frames]

    monkeypatch.setattr(soundfile.SoundFile, "read", read)
    source = audio_batches(AudioData(str(tmp_path), None, 8, 2400, workers=0), 0)
    assert np.abs(source.batch(0)["audio"][:, -100:]).max(axis=1).min() > 0.1
    assert "worse.wav breaks off" in caplog.text


def test_a_file_that_breaks_off_in_the_middle(tmp_path):
    """Its header says how long it was, and its decoder would end early without a word."""
    path = write_tones(tmp_path, "half.mp3", RATE, seconds=20.0, subtype="MPEG_LAYER_III")
    assert np.abs(audio.read_window(path, 18.5, RATE, RATE, 0)).max() > 0.1
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"half\.mp3 breaks off after \d+ of 481536 samples"):
        audio.read_window(path, 18.5, RATE, RATE, 0)


def test_damage_in_the_middle_costs_the_windows_on_it(tmp_path, caplog):
    """Such a file only fails where it is damaged; the rest of it is as good as ever. (MP3 and Ogg decoders continue
    after the damage, and only reading the whole file shows it.)"""
    write_tones(tmp_path, "good.wav", RATE, seconds=20.0)
    path = write_tones(tmp_path, "worse.flac", RATE, seconds=20.0)
    damage_middle(path)
    windows = audio_windows(tmp_path)
    (worse,) = (item for item in windows.items if item.audio == path)
    with caplog.at_level("WARNING", "moshijax"):
        drawn = [windows.draw(worse, np.random.default_rng(n))["audio"] for n in range(24)]
    spectrum = np.abs(np.fft.rfft(np.stack(drawn)[:, 200:2200]))
    assert (spectrum.argmax(1) == 25).all()  # 300 Hz, from whichever file
    assert list(windows.skipped) == [worse.id] and str(path) in windows.skipped[worse.id].reason
    assert sum(str(path) in record.getMessage() for record in caplog.records) == 1


def test_a_folder_of_nothing_usable_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no audio"):
        audio_batches(AudioData(str(tmp_path)), 0)
    (tmp_path / "bad.wav").write_text("this is no audio, however long it may be made to look by more words")
    source = audio_batches(AudioData(str(tmp_path)), 0)
    for n in range(2):
        with pytest.raises(DataError, match="all 1 recordings of .* cannot be used, 1 in all; the last: .*bad.wav"):
            source.batch(n)
    write_tones(tmp_path, "bad.flac", RATE)
    with pytest.raises(DataError, match="have the same name"):
        audio_batches(AudioData(str(tmp_path)), 0)


def test_levels(tmp_path):
    write_tones(tmp_path, "a.wav", RATE)
    soundfile.write(tmp_path / "silent.wav", np.full(RATE, 1e-4), RATE)

    def draw(level):
        config = AudioData(str(tmp_path), None, 16, 4800, speech_share=0.0, level_db=level)
        return audio_batches(config, 0).batch(0)["audio"]

    rms = np.sqrt(np.square(draw(-20.0)).mean(1))
    np.testing.assert_allclose(rms[rms > 0.01], 0.1, rtol=0.01)
    assert (rms > 0.01).any() and (rms < 2e-4).any()  # silence stays what it is
    soundfile.write(tmp_path / "silent.wav", np.full(RATE, 0.02), RATE)  # and a DC offset is silence
    rms = np.sqrt(np.square(draw(-20.0)).mean(1))
    assert np.isclose(rms, 0.02, rtol=0.01).any() and np.isclose(rms, 0.1, rtol=0.01).any()
    assert 0.99 < np.abs(draw(-0.01)).max() <= 1  # never over full scale
    with pytest.raises(ConfigError, match="level_db"):
        AudioData("x", level_db=3.0)
