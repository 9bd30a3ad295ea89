from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moshijax.codec import losses
from tests.codec.small import noise


@pytest.mark.parametrize("window", [64, 128, 256, 1024])
def test_magnitude_is_the_windowed_fourier_transform(window):
    waveform, hop = noise(0, 2, 3000), window // 4
    hann = np.hanning(window + 1)[:-1]
    hann /= np.sqrt(np.sum(hann**2))
    count = 1 + (3000 - window) // hop
    frames = np.stack([waveform[:, i * hop : i * hop + window] for i in range(count)], axis=1)
    want = np.abs(np.fft.rfft(frames * hann))
    np.testing.assert_allclose(losses.magnitude(waveform, window, hop), want, atol=2e-4)


@pytest.mark.parametrize(("window", "bands"), [(64, 16), (512, 64), (1024, 64)])
def test_mel_filters(window, bands):
    filters = losses.mel_filters(24_000, window, bands, 64.0)
    assert filters.shape == (window // 2 + 1, bands)
    assert (filters >= 0).all()
    np.testing.assert_allclose(filters.sum(0), 1, rtol=1e-5)
    assert (np.diff(filters.argmax(0)) >= 0).all()


def mel_by_hand(waveform, rate, window, bands, lowest=64.0):
    """Triangles of area 1 between neighbouring mels, on windows every quarter, in loops and float64."""
    count, hop = window // 2 + 1, window // 4
    mels = np.linspace(2595 * np.log10(1 + lowest / 700), 2595 * np.log10(1 + rate / 2 / 700), bands + 2)
    edges, spacing = 700 * (10 ** (mels / 2595) - 1), rate / window
    filters = np.zeros((count, bands))
    for band in range(bands):
        low, centre, high = edges[band : band + 3]
        low, high = min(low, centre - spacing), max(high, centre + spacing)  # no filter without a bin
        for k in range(count):
            hertz = k * spacing
            filters[k, band] = max(0, min((hertz - low) / (centre - low), (high - hertz) / (high - centre)))
    filters /= filters.sum(axis=0)
    hann = np.sin(np.pi * np.arange(window) / window) ** 2
    hann /= np.sqrt((hann**2).sum())
    starts = range(0, waveform.shape[1] - window + 1, hop)
    frames = np.stack([waveform[:, at : at + window] * hann for at in starts], axis=1)
    return np.abs(np.fft.rfft(frames)) @ filters


def test_multi_scale_mel_is_what_it_says():
    """The mean over scales of the L1 distance and the squared difference of log10."""
    estimate, target = 0.3 * noise(4, 2, 1500), noise(5, 2, 1500)
    want = 0.0
    for window, bands in ((64, 16), (256, 64), (512, 64)):
        a, b = (mel_by_hand(x.astype(np.float64), 16_000, window, bands) for x in (estimate, target))
        logs = np.log10(a + 1e-3) - np.log10(b + 1e-3)
        want = want + (np.abs(a - b).mean(axis=(1, 2)) + (logs**2).mean(axis=(1, 2))) / 3
    got = losses.multi_scale_mel(estimate, target, 16_000, (64, 256, 512), floor=1e-3)
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_multi_scale_mel_finds_the_likeness():
    target = noise(1, 3, 4096)
    assert np.abs(losses.multi_scale_mel(target, target, 24_000)).max() < 1e-6
    near, far = (losses.multi_scale_mel(target * gain, target, 24_000) for gain in (0.9, 0.1))
    assert near.shape == (3,) and (near < far).all()
    # A row's loss is its own.
    other = np.concatenate([target[:1] * 0.9, noise(2, 2, 4096)])
    np.testing.assert_allclose(losses.multi_scale_mel(other, target, 24_000)[0], near[0], rtol=1e-5)


def test_gradients_are_finite_at_silence():
    silent = jnp.zeros((1, 2048))
    grad = jax.grad(lambda x: losses.multi_scale_mel(x, silent, 24_000).sum())(silent)
    assert np.isfinite(grad).all()
    grad = jax.grad(lambda x: losses.cosine_distance(x, jnp.ones((1, 2, 3))).sum())(jnp.zeros((1, 2, 3)))
    assert np.isfinite(grad).all()


def test_waveform_l1():
    np.testing.assert_allclose(losses.waveform_l1(jnp.zeros((2, 4)), jnp.array([[1.0] * 4, [0, 2, 0, 0]])), [1, 0.5])


def test_teacher_pooling():
    features = noise(3, 2, 22, 5)
    pooled = losses.pool_teacher(features, 5)
    assert pooled.shape == (2, 5, 5)
    for frame in range(5):
        low, high = 4 * frame - 2, 4 * frame + 6  # eight features centred on the frame's four
        np.testing.assert_allclose(pooled[:, frame], features[:, max(low, 0) : high].mean(1), atol=1e-6)
    with pytest.raises(ValueError, match="22 teacher features, 6 frames need 24"):
        losses.pool_teacher(features, 6)


def test_cosine_distance():
    target = jnp.array([[[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]])
    estimate = jnp.array([[[2.0, 0.0], [0.0, -3.0], [5.0, 5.0]]])  # same, opposite, not counted
    np.testing.assert_allclose(losses.cosine_distance(estimate, target), [1.0], atol=1e-5)
