from __future__ import annotations

import numpy as np
import pytest

from moshijax.eval import signals

RATE = 24_000
RNG = np.random.default_rng(0)


def speech_like(seconds: float = 2.0) -> np.ndarray:
    time = np.arange(round(seconds * RATE)) / RATE
    voice = sum(np.sin(2 * np.pi * 120 * k * time) / k for k in range(1, 30))
    return (0.05 * voice * (1 + np.sin(2 * np.pi * 4 * time))).astype(np.float32)


def test_si_sdr():
    x = speech_like()
    noise = RNG.standard_normal(len(x))
    noise -= noise @ (x - x.mean()) / ((x - x.mean()) @ (x - x.mean())) * (x - x.mean())
    noise -= noise.mean()
    noise *= 0.1 * np.linalg.norm(x - x.mean()) / np.linalg.norm(noise)
    assert signals.si_sdr(x + noise, x) == pytest.approx(20, abs=0.01)
    assert signals.si_sdr(-3 * (x + noise) + 0.2, x) == pytest.approx(20, abs=0.01)  # level, sign and offset
    assert signals.si_sdr(noise, x) < -60 and signals.si_sdr(x, x) > 100
    assert np.isnan(signals.si_sdr(x, np.full_like(x, 0.3)))


def test_mel_distance():
    x = speech_like()
    assert signals.mel_distance(x, x, RATE) < 1e-6 < signals.mel_distance(0.5 * x, x, RATE)


def test_stoi_orders_noise():
    pytest.importorskip("pystoi")
    x = speech_like()
    noise = RNG.standard_normal(len(x)).astype(np.float32)
    values = [signals.stoi(x + level * noise, x, RATE) for level in (0.0, 0.02, 0.2)]
    assert values[0] == pytest.approx(1, abs=1e-3) and values[0] > values[1] > values[2]
    assert np.isnan(signals.stoi(x, 0 * x, RATE)) and np.isnan(signals.stoi(x[:2000], x[:2000], RATE))


def test_pesq_orders_noise():
    pytest.importorskip("pesq")
    x = speech_like()
    noise = RNG.standard_normal(len(x)).astype(np.float32)
    clear, noisy = (signals.pesq(x + level * noise, x, RATE) for level in (0.0, 0.05))
    assert clear > 4.5 > noisy
    assert np.isnan(signals.pesq(0 * x, 0 * x, RATE))
