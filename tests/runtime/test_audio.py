"""Audio files of `moshijax run`: WAV without any package, the rest through soundfile and soxr."""

from __future__ import annotations

import builtins
import wave

import numpy as np
import pytest

from moshijax.errors import ConfigError, DataError, MoshijaxError
from moshijax.runtime import audio


@pytest.fixture
def no_audio_packages(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name in ("soundfile", "soxr"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)


def test_wave_round_trip_without_packages(tmp_path, no_audio_packages):
    samples = np.random.RandomState(0).uniform(-1, 1, (1000, 2)).astype(np.float32)
    audio.write(tmp_path / "a.wav", samples, 24000)
    back, rate = audio.read(tmp_path / "a.wav")
    assert rate == 24000 and back.shape == (1000, 2)
    np.testing.assert_allclose(back, samples, atol=1.5 / 32768 + 1e-4)
    assert not list(tmp_path.glob("*.partial"))


def test_samples_outside_the_range_are_clipped(tmp_path):
    audio.write(tmp_path / "a.wav", np.array([3.0, -3.0], np.float32), 24000)
    back, _ = audio.read(tmp_path / "a.wav")
    assert back.max() > 0.99 and back.min() < -0.99


def test_other_formats_and_rates(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    pytest.importorskip("soxr")
    time = np.arange(16000) / 16000
    soundfile.write(tmp_path / "a.flac", 0.5 * np.sin(2 * np.pi * 440 * time), 16000)
    samples = audio.read_channel(tmp_path / "a.flac", 24000)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(24000) / 24000)
    assert samples.shape == (24000,) and samples.dtype == np.float32
    np.testing.assert_allclose(samples[1000:-1000], expected[1000:-1000], atol=2e-3)


def test_missing_packages_are_named(tmp_path, no_audio_packages):
    with pytest.raises(MoshijaxError, match="16000 Hz to 24000 Hz needs soxr: pip install soxr"):
        audio.resample(np.zeros(10, np.float32), 16000, 24000)
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 1, 24000, 0, "NONE", ""))
        file.writeframes(b"\x80" * 100)
    with pytest.raises(MoshijaxError, match="need soundfile: pip install soundfile"):
        audio.read(tmp_path / "a.wav")


def test_no_such_file(tmp_path):
    with pytest.raises(ConfigError, match="no audio file at"):
        audio.read(tmp_path / "a.wav")


def test_not_audio(tmp_path):
    pytest.importorskip("soundfile")
    (tmp_path / "a.wav").write_text("hello")
    with pytest.raises(DataError, match="a.wav cannot be read as audio"):
        audio.read(tmp_path / "a.wav")
    for name in ("empty.wav", "empty.mp3"):
        (tmp_path / name).touch()
        with pytest.raises(DataError, match=rf"{name} cannot be read as audio \(it is empty\)"):
            audio.read(tmp_path / name)


def test_empty_recording(tmp_path):
    audio.write(tmp_path / "a.wav", np.zeros((0, 1), np.float32), 24000)
    with pytest.raises(DataError, match="holds no samples"):
        audio.read(tmp_path / "a.wav")


def test_stereo_needs_a_choice(tmp_path):
    samples = np.stack([np.full(100, 0.25), np.full(100, -0.5)], 1).astype(np.float32)
    audio.write(tmp_path / "a.wav", samples, 24000)
    with pytest.raises(DataError, match="2 channels.*choose --channel left or right"):
        audio.read_channel(tmp_path / "a.wav", 24000)
    assert abs(audio.read_channel(tmp_path / "a.wav", 24000, "right")[0] + 0.5) < 1e-3
    audio.write(tmp_path / "b.wav", samples[:, :1], 24000)
    with pytest.raises(DataError, match="no right one"):
        audio.read_channel(tmp_path / "b.wav", 24000, "right")


def test_float_samples_in_the_scale_of_integers_are_refused(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    for peak in (1.5, 3000.0):
        soundfile.write(tmp_path / f"{peak}.wav", np.array([0.0, peak, -peak]), 24000, subtype="FLOAT")
    assert audio.read(tmp_path / "1.5.wav")[0].max() == 1.5
    with pytest.raises(DataError, match="3000.0.wav holds samples up to 3000, of another scale"):
        audio.read(tmp_path / "3000.0.wav")
