"""How high sound reaches: signals of known bands, whatever their sample rate; provenance, reports, and mixed sets."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile
import soxr

from moshijax.data import records
from moshijax.data.band import NO_SOUND, Bandwidth, name_of
from moshijax.data.checks import CheckRules, validate
from moshijax.data.manifest import read_manifest
from moshijax.data.prepare import prepare
from tests.data.sets import RATE, LevelEncoder, write_item, write_manifest


def noise(top: float, rate: int = RATE, seconds: float = 4.0, bottom: float = 50.0) -> np.ndarray:
    """Noise from `bottom` to `top` Hz and nothing else, [n] float32."""
    count = round(seconds * rate)
    frequencies = np.fft.rfftfreq(count, 1 / rate)
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(count))
    signal = np.fft.irfft(np.where((frequencies >= bottom) & (frequencies <= top), spectrum, 0), count)
    return (0.1 * signal / signal.std()).astype(np.float32)


def measured(signal: np.ndarray, rate: int, block: int = 10_007) -> int:
    bandwidth = Bandwidth(rate, signal.shape[1])
    for start in range(0, len(signal), block):
        bandwidth.add(signal[start : start + block])
    return bandwidth.hertz()


@pytest.mark.parametrize("rate", [8000, 16_000, 22_050, 24_000, 44_100, 48_000])
def test_the_band_is_that_of_the_signal_to_100_hz(rate):
    for top in (350, 3450, 3950, 7050, 10_950, 20_050):
        if top < rate / 2:
            signal = noise(top, rate)
            found = measured(signal[:, None], rate)
            assert top <= found <= top + 150
            loud_and_quiet = np.stack([signal, 0.01 * signal], 1)
            assert measured(loud_and_quiet, rate) == found == measured(loud_and_quiet, rate, block=999)
    assert measured(noise(rate / 2, rate)[:, None], rate) == rate // 2


def test_the_quietest_that_counts_is_55_db_below_the_strongest():
    for level, top in ((-53, 8), (-57, 3)):
        signal = noise(3000) + 10 ** (level / 20) * noise(7950, bottom=7050) * np.sqrt(900 / 2950)
        assert measured(signal[:, None].astype(np.float32), RATE) == pytest.approx(1000 * top, abs=100)
    assert measured(np.zeros((RATE, 2), np.float32), RATE) == 0 == measured(np.zeros((0, 2), np.float32), RATE)
    bad = noise(3000)[:, None].copy()
    bad[100] = np.nan
    assert measured(bad, RATE) > 0


def test_a_call_of_8_khz_in_a_file_of_24_khz_is_known_by_its_sound(tmp_path):
    """Of 16 bits, also at -40 dBFS."""
    call = soxr.resample(noise(4000, 8000), 8000, RATE)
    for gain in (1.0, 0.1):
        soundfile.write(tmp_path / "call.wav", gain * call, RATE, subtype="PCM_16")
        found = measured(soundfile.read(tmp_path / "call.wav", dtype="float32", always_2d=True)[0], RATE)
        assert 3700 <= found <= 4300, found and name_of(found) == "up to 4.5 kHz"
    assert [name_of(hertz) for hertz in (0, 100, 4500, 4600, 8500, 8600)] == [
        NO_SOUND, "up to 4.5 kHz", "up to 4.5 kHz", "up to 8.5 kHz", "up to 8.5 kHz", "above 8.5 kHz",
    ]  # fmt: skip


def test_provenance_has_the_band_and_reports_the_hours_of_each(tmp_path, cli):
    words, lines = [["yes", [0.5, 1.0], "SPEAKER_MAIN"]], []
    for name, top, seconds in (("call", 3450, 6.0), ("wide", 6950, 2.0), ("full", 11_950, 3.0), ("more", 3450, 1.0)):
        own = noise(top, seconds=seconds)
        lines.append(write_item(tmp_path, name, words, np.stack([own, 0.1 * own[::-1]], 1)))
    manifest = write_manifest(tmp_path, lines)
    report = validate(read_manifest(manifest).items, CheckRules())
    wanted = {"up to 4.5 kHz": 7.0, "up to 8.5 kHz": 2.0, "above 8.5 kHz": 3.0}
    assert report.usable == 4 and dict(report.bands) == wanted
    job = prepare(read_manifest(manifest), tmp_path / "out", LevelEncoder())
    assert dict(job.report.bands) == wanted
    index = json.loads((tmp_path / "out" / records.INDEX).read_text())
    assert index["report"]["bands"] == wanted
    bands = {r["id"]: r["provenance"]["band"] for r in records.RecordSource(tmp_path / "out")}
    assert bands == {"call": 3600, "wide": 7100, "full": 12_000, "more": 3600}
    code, out, _ = cli("data", "validate", str(manifest))
    assert code == 0 and "sound up to 4.5 kHz: 0.00 hours, 58%" in out and "bands are mixed" in out
    code, out, _ = cli("data", "validate", str(write_manifest(tmp_path, lines[::3])))
    assert code == 0 and "sound up to 4.5 kHz: 0.00 hours, 100%" in out and "mixed" not in out
