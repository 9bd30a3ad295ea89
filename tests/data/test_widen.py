"""Highs for narrow recordings: level, length, words before and after, resuming, and AudioSR's driver."""

from __future__ import annotations

import json
import sys
from collections import Counter

import numpy as np
import pytest
import soundfile

from moshijax.data.manifest import read_manifest, read_recordings
from moshijax.data.recognizer import TimedWord
from moshijax.data.widen import REPORT, widen, widened
from moshijax.data.widener import AudioSR
from moshijax.errors import ConfigError, DataError, MoshijaxError
from tests.data.audiosr_stand_in import write_audiosr

RATE = 24_000


def tones(seconds, level=0.2):
    """Half a second of 440 Hz, half a second of silence, and so on."""
    time = np.arange(round(seconds * RATE)) / RATE
    return (level * np.sin(2 * np.pi * 440 * time) * (time % 1 < 0.5)).astype(np.float32)


class Highs:
    """Adds a tone of 9 kHz, and loses the level, as AudioSR does."""

    version, rate, piece_seconds = "highs 1", RATE, 4.0

    def __init__(self, **settings):
        self.settings, self.calls = {"kind": "highs", **settings}, 0

    def widen(self, samples):
        self.calls += 1
        high = 0.3 * np.abs(samples).max() * np.sin(2 * np.pi * 9000 * np.arange(len(samples)) / RATE)
        wide = np.concatenate([samples + high, np.zeros(1000)])
        return (0.5 * wide / np.abs(wide).max()).astype(np.float32)


class Ear:
    """Hears a word wherever a tone is; in what has highs, some of them sound different."""

    kind, hears, version, settings = "recognizer", True, "ear 1", {"kind": "ear"}

    def __init__(self, wrong=0):
        self.wrong, self.calls = wrong, 0

    def reads(self, item):
        return ()

    def words_of(self, channel, found):
        self.calls += 1
        wide = self.calls % 2 == 0
        for number in range(int(channel.info.duration)):
            word = "no" if wide and number < self.wrong else f"word{number}"
            yield TimedWord(word, number + 0.0, number + 0.5, 0.9)


def band(samples, low, high):
    spectrum = np.abs(np.fft.rfft(samples)) ** 2
    hertz = np.fft.rfftfreq(len(samples), 1 / RATE)
    return spectrum[(hertz >= low) & (hertz < high)].sum() / spectrum.sum()


@pytest.fixture
def calls(tmp_path):
    folder = tmp_path / "calls"
    (folder / "day").mkdir(parents=True)
    for name, seconds in (("one", 9.0), ("day/two", 3.0)):
        soundfile.write(folder / f"{name}.wav", tones(seconds), RATE)
    (folder / "one.json").write_text('{"alignments": [["hello", [0.1, 0.4], "SPEAKER_MAIN"]]}')
    return folder


def test_every_channel_keeps_its_level_and_length():
    both = np.stack([tones(10.3), tones(10.3, 0.05)], 1)
    widener = Highs()
    made = np.concatenate(list(widened(iter(np.split(both, [7, 30_000])), widener)))
    assert made.shape == both.shape and widener.calls == 6
    for column in range(2):
        assert band(made[:, column], 8900, 9100) > 0.05
        kept = made[:, column] @ both[:, column] / (both[:, column] @ both[:, column])
        assert kept == pytest.approx(1, abs=0.02)


def test_a_piece_without_sound_is_not_touched():
    widener = Highs()
    made = np.concatenate(list(widened(iter([np.zeros((RATE, 1), np.float32)]), widener)))
    assert widener.calls == 0 and not made.any()


def test_what_is_unlike_the_recording_is_refused():
    class Noise(Highs):
        def widen(self, samples):
            return np.random.default_rng(0).standard_normal(len(samples)).astype(np.float32)

    with pytest.raises(DataError, match="highs 1 returns something unlike the recording .correlation -?0.0"):
        list(widened(iter([tones(1.0)[:, None]]), Noise()))


def test_a_folder_becomes_a_set_with_its_transcripts_and_continues(calls, tmp_path):
    out, widener = tmp_path / "out", Highs()
    report = widen(read_recordings(calls), widener, Ear(), out)
    assert report.usable == 2 and [item.id for item in read_manifest(out).items] == ["day/two", "one"]
    info = soundfile.info(out / "one.wav")
    assert (info.channels, info.samplerate, info.frames) == (1, RATE, 9 * RATE)
    assert (out / "one.json").read_bytes() == (calls / "one.json").read_bytes()
    assert sorted(path.name for path in out.rglob("*") if path.is_file()) == [
        "manifest.jsonl", "one.json", "one.wav", "one.widened.json", "two.wav", "two.widened.json", REPORT,
    ]  # fmt: skip
    again = Highs()
    assert widen(read_recordings(calls), again, Ear(), out).to_json() == report.to_json() and again.calls == 0
    (out / "one.json").write_text('{"alignments": []}')  # corrected by hand
    widen(read_recordings(calls), again, Ear(), out)
    assert (out / "one.json").read_text() == '{"alignments": []}'
    (calls / "one.json").write_text('{"alignments": [["bye", [0.1, 0.4], "SPEAKER_MAIN"]]}')
    widen(read_recordings(calls), again, Ear(), out)
    assert "bye" in (out / "one.json").read_text() and again.calls == 0
    widen(read_recordings(calls), other := Highs(size=2), Ear(), out)
    assert other.calls > 0


def test_changed_words_reject_a_recording_for_good(calls, tmp_path):
    """One word of nine changed is within the limit, one of three is not."""
    out = tmp_path / "out"
    report = widen(read_recordings(calls), Highs(), Ear(wrong=1), out, max_changed=0.2, max_rejected=0.5)
    assert Counter(report.kinds) == {"changed_words": 1} and report.usable == 1
    assert "33% of the words sound different with highs, more than 20%: use it as it is" in report.rejected[0][1]
    assert not (out / "day" / "two.wav").exists() and [item.id for item in read_manifest(out).items] == ["one"]
    ear = Ear()
    again = widen(read_recordings(calls), Highs(), ear, out, max_changed=0.2, max_rejected=0.5)
    assert again.to_json() == report.to_json() and ear.calls == 0


def test_more_than_two_channels_are_refused(tmp_path):
    for name, channels in (("one", 1), ("six", 6)):
        soundfile.write(tmp_path / f"{name}.wav", np.repeat(tones(2.0)[:, None], channels, 1), RATE)
    report = widen(read_recordings(tmp_path), Highs(), Ear(), tmp_path / "out", max_rejected=0.5)
    assert dict(report.kinds) == {"channels": 1} and "has 6 channels: keep the one or two" in report.rejected[0][1]


def test_audiosr_runs_in_another_environment(tmp_path, monkeypatch):
    """With a stand-in that has the calls, shapes, level and padding of audiosr 0.0.7; no weights are at hand."""
    weights = write_audiosr(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ConfigError, match="cannot be started with .*FileNotFoundError.*--model_name speech"):
        AudioSR(sys.executable)
    weights.write_bytes(b"weights")
    with pytest.raises(ConfigError, match="no model 'music': choose speech or basic"):
        AudioSR(sys.executable, "music")
    with pytest.raises(ConfigError, match="nothing cannot be run .No such file"):
        AudioSR(tmp_path / "nothing")
    widener = AudioSR(sys.executable)
    try:
        assert widener.version == "audiosr 0.0.7" and json.dumps(widener.settings).count("speech") == 1
        samples = tones(1.0)
        made = widener.widen(samples)
        assert len(made) == 245_760 and np.abs(made).max() == pytest.approx(0.5)
        np.testing.assert_allclose(made[: len(samples)], samples * 2.5, atol=1e-6)
        with pytest.raises(DataError, match="cannot widen it .AssertionError: Waveform is too short, 50"):
            widener.widen(samples[:50])
        assert len(widener.widen(samples)) == 245_760  # it goes on after an error
        widener._process.kill()
        with pytest.raises(MoshijaxError, match="AudioSR ended with exit code -9: .*run the same command again"):
            widener.widen(samples)
    finally:
        widener.close()
