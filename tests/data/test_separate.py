"""Two voices on one channel to two: pieces that are joined, resuming, rejections, and SpeechBrain's adapter."""

from __future__ import annotations

import json
import sys
import types
from collections import Counter

import numpy as np
import pytest
import soundfile

from moshijax.data.manifest import read_manifest, read_recordings
from moshijax.data.separate import REPORT, joined, separate
from moshijax.data.separator import SepFormer
from moshijax.errors import ConfigError

RATE = 8000


class Bands:
    """Tells a low voice from a high one, in an order and with a scale that change from piece to piece."""

    version, rate = "bands 1", RATE

    def __init__(self, **settings):
        self.settings, self.calls, self.longest = {"kind": "bands", **settings}, 0, 0

    def separate(self, samples):
        self.calls, self.longest = self.calls + 1, max(self.longest, len(samples))
        spectrum = np.fft.rfft(samples)
        low = np.where(np.arange(len(spectrum)) * RATE / len(samples) < 500, spectrum, 0)
        voices = np.stack([np.fft.irfft(part, len(samples)) for part in (low, spectrum - low)], 1)
        return (voices[:, :: -1 if self.calls % 2 else 1] * [0.5 * self.calls, -3]).astype(np.float32)


def voices(seconds):
    """Two voices that speak at once, and pause one after the other."""
    time = np.arange(round(seconds * RATE)) / RATE
    low = 0.2 * np.sin(2 * np.pi * 250 * time) * (np.sin(time) > -0.5)
    high = 0.2 * np.sin(2 * np.pi * 1000 * time) * (np.sin(0.7 * time) < 0.5)
    return np.stack([low, high], 1).astype(np.float32)


def test_voices_stay_on_their_channel_over_all_pieces():
    both = voices(70.3)
    separator, found = Bands(), Counter()
    blocks = np.split(both.sum(1), [5, 1000, 200_000])
    made = np.concatenate(list(joined(blocks, separator, found)))
    assert made.shape == both.shape and separator.calls == 8 and separator.longest == 12 * RATE
    if np.abs(made[:, 0] - both[:, 0]).mean() > np.abs(made[:, 1] - both[:, 0]).mean():
        made = made[:, ::-1]
    assert np.abs(made - both).mean() < 0.005 and not +found


@pytest.mark.parametrize("seconds", [0.01, 5.0, 12.0, 12.1, 21.0, 21.0001])
def test_no_sample_is_lost_or_added(seconds):
    signal = voices(seconds).sum(1)
    made = np.concatenate(list(joined([signal], Bands(), Counter())))
    assert len(made) == len(signal)
    np.testing.assert_allclose(made.sum(1), signal, atol=0.02)


def test_overlaps_that_tell_nothing_are_counted():
    found = Counter()
    signal = np.zeros(30 * RATE, np.float32)
    signal[:RATE] = voices(1.0).sum(1)
    list(joined([signal], Bands(), found))
    assert found["uncertain_join"] == 2


def test_a_folder_becomes_a_set_and_continues(tmp_path):
    calls, out = tmp_path / "calls", tmp_path / "out"
    (calls / "day").mkdir(parents=True)
    for name in ("one", "day/two"):
        soundfile.write(calls / f"{name}.flac", voices(4.0).sum(1), RATE)
    (calls / "broken.wav").write_bytes(b"RIFF" + bytes(100))
    separator = Bands()
    report = separate(read_recordings(calls), separator, out, max_rejected=0.5)
    assert report.usable == 2 and dict(report.kinds) == {"unreadable": 1} and separator.calls == 2
    assert [item.id for item in read_manifest(out).items] == ["day/two", "one"]
    info = soundfile.info(out / "one.wav")
    assert (info.channels, info.samplerate, info.frames) == (2, RATE, 4 * RATE)
    assert sorted(path.name for path in out.rglob("*") if path.is_file()) == [
        "manifest.jsonl", "one.separated.json", "one.wav", REPORT, "two.separated.json", "two.wav",
    ]  # fmt: skip
    again = Bands()
    assert separate(read_recordings(calls), again, out, max_rejected=0.5).to_json() == report.to_json()
    assert again.calls == 0
    soundfile.write(calls / "one.flac", voices(5.0).sum(1), RATE)
    separate(read_recordings(calls), again, out, max_rejected=0.5)
    assert again.calls == 1 and json.loads((out / "manifest.jsonl").read_text().splitlines()[1])["duration"] == 5.0
    separate(read_recordings(calls), other := Bands(size=2), out, max_rejected=0.5)
    assert other.calls == 2


def test_sepformer_is_given_a_batch_of_one(tmp_path, monkeypatch):
    """With a stand-in that has the calls of SpeechBrain 1.1.2 and its shapes; no weights are at hand."""
    torch = pytest.importorskip("torch")

    class Stand:
        hparams = types.SimpleNamespace(num_spks=2, sample_rate=16_000)

        @classmethod
        def from_hparams(cls, source, savedir, run_opts):
            if run_opts["device"] == "cuda":
                raise RuntimeError("no device")
            return cls()

        def separate_batch(self, mix):
            assert mix.dtype == torch.float32 and mix.ndim == 2
            return torch.stack([mix, -mix], -1)

    module, package = types.ModuleType("speechbrain.inference.separation"), types.ModuleType("speechbrain")
    module.SepformerSeparation, package.__version__ = Stand, "1.1.2"
    monkeypatch.setitem(sys.modules, "speechbrain", package)
    monkeypatch.setitem(sys.modules, "speechbrain.inference", types.ModuleType("speechbrain.inference"))
    monkeypatch.setitem(sys.modules, "speechbrain.inference.separation", module)
    with pytest.raises(ConfigError, match="is no folder with hyperparams.yaml"):
        SepFormer(tmp_path)
    (tmp_path / "hyperparams.yaml").write_text("num_spks: 2")
    separator = SepFormer(tmp_path)
    assert separator.rate == 16_000 and separator.version == "speechbrain 1.1.2"
    made = separator.separate(np.ones(5, np.float32))
    np.testing.assert_array_equal(made, np.stack([np.ones(5), -np.ones(5)], 1))
    with pytest.raises(ConfigError, match="cannot be used as a SepFormer on cuda .*no device"):
        SepFormer(tmp_path, "cuda")
    monkeypatch.setattr(Stand, "hparams", types.SimpleNamespace(num_spks=3, sample_rate=8000))
    with pytest.raises(ConfigError, match="is for 3 speakers: use a model for two"):
        SepFormer(tmp_path)
