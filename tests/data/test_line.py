"""Telephone band, G.711, Opus and lost packets: what passes, what is counted, and that nothing moves in time."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from click.testing import CliRunner

from moshijax import g711
from moshijax.cli.main import cli
from moshijax.data import line, records
from moshijax.data.augmentation import Augmenter, UserAugmentation
from moshijax.data.line import Line, lose_packets, opus, telephone
from moshijax.data.manifest import read_manifest
from moshijax.data.prepare import PrepareConfig, prepare
from moshijax.errors import ConfigError
from tests.data.sets import RATE, LevelEncoder, write_set

UNCHANGED = UserAugmentation(gain=0.0, noise=0.0, room=0.0)


def cut(signal, size):
    return (signal[i : i + size] for i in range(0, len(signal), size))


def tone(hertz, seconds=1.0, rate=RATE):
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def chirps(seconds, seed=0):
    """Something like speech in its spectrum, without periods: filtered noise."""
    noise = np.random.default_rng(seed).standard_normal(round(seconds * RATE))
    return (0.05 * np.convolve(noise, np.hanning(24), "same")).astype(np.float32)


def through(function, signal, size=7001, **arguments):
    return np.concatenate(list(function(cut(signal, size), RATE, **arguments)))


def late(changed, signal):
    """Samples by which a signal comes later."""
    product = np.fft.irfft(np.fft.rfft(changed) * np.conj(np.fft.rfft(signal)))
    at = int(np.argmax(product))
    return at if at < len(signal) // 2 else at - len(signal)


@pytest.mark.parametrize(
    ("hertz", "least", "most"),
    [(100, -200, -40), (300, -7, -5), (500, -0.1, 0.1), (1000, -0.1, 0.1), (3200, -0.1, 0.1), (3400, -7, -5)]
    + [(3700, -200, -40), (6000, -200, -40)],
)
def test_the_band_is_that_of_telephones(hertz, least, most):
    signal = tone(hertz)
    inside = slice(RATE // 4, -RATE // 4)
    heard = through(telephone, signal, mu_law=False)[inside]
    assert least < 10 * np.log10(np.square(heard).mean() / np.square(signal[inside]).mean() + 1e-20) < most


def test_g711_at_8_khz_has_the_noise_of_its_intervals():
    """The noise of a tone is that of coding it at 8 kHz without all else; without coding there is none."""
    signal = tone(1013, 2.0)
    inside = slice(RATE // 4, -RATE // 4)
    plain, coded = (through(telephone, signal, mu_law=law)[inside] for law in (False, True))
    noise = 10 * np.log10(np.square(plain).mean() / np.square(coded - plain).mean())
    assert np.abs(plain - signal[inside]).max() < 1e-5
    narrow = tone(1013, 2.0, g711.RATE)
    direct = g711.MU_LAW.decode(g711.MU_LAW.encode(narrow)) - narrow
    assert noise == pytest.approx(10 * np.log10(np.square(narrow).mean() / np.square(direct).mean()), abs=0.3)


@pytest.mark.parametrize("length", [1, 100, 479, 24_001, 55_555])
@pytest.mark.parametrize("size", [333, 24_000, 100_000])
def test_lines_keep_length_and_time_whatever_the_blocks(length, size):
    signal = chirps(3.0)[:length]
    coarse = {"share": 0.3, "burst": 2.0, "repeat": True}
    for function, arguments in ((telephone, {"mu_law": True}), (opus, {"kbps": 24.0}), (lose_packets, coarse)):
        random = ({"rng": np.random.default_rng(3)} for _ in range(2))
        extra = [arguments | (rng if function is lose_packets else {}) for rng in random]
        whole = through(function, signal, len(signal), **extra[0])
        assert len(whole) == length
        np.testing.assert_allclose(through(function, signal, size, **extra[1]), whole, atol=1e-5)
        if length > RATE:
            assert abs(late(whole, signal)) <= 3  # of 24 in a millisecond


def test_low_rates_of_opus_take_more_away():
    signal = chirps(3.0)
    errors = [float(np.square(through(opus, signal, kbps=kbps) - signal).mean()) for kbps in (6.0, 16.0, 64.0)]
    assert errors[0] > 1.5 * errors[1] > 3 * errors[2] > 0


def test_streams_of_opus_follow_each_other_without_a_break(monkeypatch):
    signal = chirps(3.0)
    one = through(opus, signal, kbps=24.0)
    monkeypatch.setattr(line, "_OPUS_SECONDS", 1)
    several = through(opus, signal, kbps=24.0)
    error, at_seams = np.square(one - signal), np.square(several - signal)
    seams = np.concatenate([np.arange(s * RATE, s * RATE + 480) for s in (1, 2)])
    assert not np.array_equal(one, several) and at_seams[seams].mean() < 2 * error.mean()


def lost_packets(share, burst, seed, repeat=False, packets=8000):
    """Which packets of a signal without silence are silent afterwards."""
    blocks = iter([np.ones(packets * 480, np.float32)])
    heard = np.concatenate(list(lose_packets(blocks, RATE, share, burst, repeat, np.random.default_rng(seed))))
    return heard.reshape(-1, 480)


def test_losses_have_the_share_and_the_bursts_that_were_asked_for():
    for share, burst in ((0.05, 1.0), (0.1, 4.0), (0.3, 2.0)):
        lost = lost_packets(share, burst, 0)[:, 0] == 0
        ends = np.flatnonzero(np.diff(np.concatenate([[0], lost, [0]])))
        bursts = ends[1::2] - ends[::2]
        # (a share of 10 % in bursts of 4 has a standard error of 0.9 %)
        assert lost.mean() == pytest.approx(share, rel=0.25) and bursts.mean() == pytest.approx(burst, rel=0.15)


def test_lost_packets_are_silent_or_repeated_ever_more_quietly():
    silent = lost_packets(0.3, 3.0, 1, packets=200)
    assert set(np.unique(silent)) == {0.0, 1.0} and (silent == silent[:, :1]).all()
    repeated = lost_packets(0.3, 3.0, 1, repeat=True, packets=200)[:, 0]
    run = 0
    for lost, level in zip(silent[:, 0] == 0, repeated, strict=True):
        run = run + 1 if lost else 0
        assert level == (0.5 ** (run - 1) if run else 1.0)
    signal = chirps(1.0)
    heard = through(lose_packets, signal, share=0.5, burst=1.0, repeat=True, rng=np.random.default_rng(0))
    packets, before = heard.reshape(-1, 480), signal.reshape(-1, 480)
    changed = [n for n in range(1, 50) if not np.array_equal(packets[n], before[n])]
    assert changed and all(np.array_equal(packets[n], before[n - 1]) for n in changed if n - 1 not in changed)


def user(config, seed=0, size=9000, signal=None):
    signal = chirps(2.0) if signal is None else signal
    stereo = np.stack([chirps(len(signal) / RATE, 9), signal], axis=1)
    blocks, names = Augmenter(config, RATE).apply(cut(stereo, size), 0.1, np.random.default_rng(seed))
    heard = np.concatenate(list(blocks))
    np.testing.assert_array_equal(heard[:, 0], stereo[:, 0])
    assert heard.dtype == np.float32 and len(heard) == len(stereo)
    return heard[:, 1], names


def test_each_has_a_probability_and_a_name():
    every = Line(telephone=1.0, mu_law=1.0, opus=1.0, loss=1.0)
    heard, names = user(dataclasses.replace(UNCHANGED, line=every))
    assert names == ("telephone", "mu_law", "opus", "loss")
    np.testing.assert_array_equal(heard, user(dataclasses.replace(UNCHANGED, line=every))[0])
    assert not np.array_equal(heard, user(dataclasses.replace(UNCHANGED, line=every), seed=1)[0])
    np.testing.assert_allclose(heard, user(dataclasses.replace(UNCHANGED, line=every), size=777)[0], atol=1e-5)
    assert user(UNCHANGED)[1] == () and np.array_equal(user(UNCHANGED)[0], chirps(2.0))
    drawn = Line(telephone=0.5, mu_law=0.5, opus=0.2, loss=0.7)
    counts = dict.fromkeys(("telephone", "mu_law", "opus", "loss"), 0)
    for seed in range(600):
        for name in line.draw(drawn, RATE, np.random.default_rng(seed))[0]:
            counts[name] += 1
    for name, expected in (("telephone", 0.5), ("mu_law", 0.25), ("opus", 0.2), ("loss", 0.7)):
        assert counts[name] / 600 == pytest.approx(expected, abs=0.07)


def test_what_was_published_is_drawn_as_before_with_a_line_after_it():
    config = UserAugmentation(gain=1.0, noise=0.0, room=0.0)
    plain = user(config)[0]
    lossy = user(dataclasses.replace(config, line=Line(loss=1.0, loss_share=(0.3, 0.3), repeat=0.0)))[0]
    kept = (lossy != 0).reshape(-1, 480).any(axis=1)
    np.testing.assert_array_equal(lossy.reshape(-1, 480)[kept], plain.reshape(-1, 480)[kept])
    assert 0 < kept.mean() < 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"telephone": 1.5}, "telephone is 1.5: it is a probability"),
        ({"mu_law": 0.5}, "mu_law is 0.5, of calls by telephone, but telephone is 0"),
        ({"opus_kbps": (24.0, 6.0)}, "opus_kbps is .*smaller end first, from 6 to 256"),
        ({"loss_share": (0.1, 0.9)}, "loss_share is .* from 0 to 0.5"),
        ({"loss_burst": (0.5, 2.0)}, "loss_burst is .* from 1 to 50"),
    ],
)
def test_values_out_of_range_are_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        Line(**fields)


def test_a_rate_that_opus_lacks_is_refused_at_the_start():
    config = dataclasses.replace(UNCHANGED, line=Line(opus=0.1))
    with pytest.raises(ConfigError, match="Opus has no 22050 Hz"):
        Augmenter(config, 22_050)


def test_provenance_and_the_index_say_what_was_drawn(tmp_path, monkeypatch):
    manifest = write_set(tmp_path / "in", 3)
    config = PrepareConfig(augmentation=dataclasses.replace(UNCHANGED, line=Line(loss=0.5)), copies=8, seed=1)
    prepare(read_manifest(manifest), tmp_path / "out", LevelEncoder(), config)
    source = records.RecordSource(tmp_path / "out")
    drawn = [record["provenance"]["augmented"] for record in source]
    assert 0 < drawn.count(["loss"]) < 24 and drawn.count(["loss"]) + drawn.count([]) == 24
    assert source.index["plan"]["draws"]["augmentation"]["line"]["loss"] == 0.5

    monkeypatch.setattr("moshijax.data.encoder.CodecEncoder.load", lambda *_: LevelEncoder())

    def invoke(*options):
        folder = str(tmp_path / f"by-{len(options)}")
        return CliRunner().invoke(cli, ["data", "prepare", str(manifest), folder, "--codec", "c", *options])

    assert invoke("--augment", "--line", "telephone=1", "--line", "loss=0.5").exit_code == 0
    (record, *_) = records.RecordSource(tmp_path / "by-5")
    assert "telephone" in record["provenance"]["augmented"]
    for options, message in (
        (("--line", "loss=1"), "--line is for --augment"),
        (("--augment", "--line", "static=1"), "write one of telephone, mu_law, opus, loss"),
        (("--augment", "--line", "loss"), "write one of telephone, mu_law, opus, loss"),
        (("--augment", "--line", "loss=2"), "loss is 2.0: it is a probability"),
    ):
        error = invoke(*options).exception
        assert isinstance(error, ConfigError) and message in str(error)
