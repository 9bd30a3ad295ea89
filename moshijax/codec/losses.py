"""Losses of codec training. Every function gives one value per row, so that the caller weighs rows over the whole
batch."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array, Float

HIGHEST = jax.lax.Precision.HIGHEST
#: Window sizes of the multi-scale mel loss (2^6 .. 2^10, as in audiocraft's compression recipe).
WINDOWS = (64, 128, 256, 512, 1024)
#: Up to this window a product with the DFT matrix is as fast as an FFT on CPU, and faster on accelerators.
MATRIX_WINDOW = 128
#: Average pooling that brings the teacher's features, 50 a second, to the frame rate (arXiv 2410.00037 section 3.3.2).
POOL_KERNEL, POOL_STRIDE = 8, 4


def hertz_to_mel(hertz):
    """Convert Hz to the HTK mel scale."""
    return 2595.0 * np.log10(1.0 + np.asarray(hertz, np.float64) / 700.0)


def mel_to_hertz(mel):
    """Convert HTK mels to Hz."""
    return 700.0 * (10.0 ** (np.asarray(mel, np.float64) / 2595.0) - 1.0)


@lru_cache
def mel_filters(sample_rate: int, window: int, bands: int, lowest: float) -> np.ndarray:
    """Make triangular filters of area 1 from `lowest` Hz to half the sample rate, `[window // 2 + 1, bands]`.

    A band narrower than the spacing of the spectrum is widened to reach its nearest bin, so that no filter is empty.
    """
    bins = np.linspace(0, sample_rate / 2, window // 2 + 1)
    edges = mel_to_hertz(np.linspace(hertz_to_mel(lowest), hertz_to_mel(sample_rate / 2), bands + 2))
    centre, spacing = edges[1:-1], bins[1]
    rise = np.maximum(centre - edges[:-2], spacing)
    fall = np.maximum(edges[2:] - centre, spacing)
    offset = bins[:, None] - centre
    filters = np.maximum(0, np.minimum(1 + offset / rise, 1 - offset / fall))
    return (filters / filters.sum(axis=0)).astype(np.float32)


@lru_cache
def _hann(window: int) -> np.ndarray:
    """Periodic Hann window of energy 1."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    return (hann / math.sqrt(np.sum(hann**2))).astype(np.float32)


@lru_cache
def _fourier(window: int) -> np.ndarray:
    """Windowed real DFT as a matrix `[window, 2 (window // 2 + 1)]`: real parts, then imaginary parts."""
    angle = 2 * np.pi * np.outer(np.arange(window), np.arange(window // 2 + 1)) / window
    return (np.concatenate([np.cos(angle), -np.sin(angle)], axis=1) * _hann(window)[:, None]).astype(np.float32)


def spectrum(waveform: Float[Array, "B N"], window: int, hop: int) -> tuple[Array, Array]:
    """Compute the STFT of windows that lie fully inside the waveform, with a Hann window of energy 1.

    Args:
      waveform: float samples.
      window: samples of a window.
      hop: samples between windows; must divide `window`.

    Returns:
      Real and imaginary part, `[B, F, W]`.
    """
    count, overlap = 1 + (waveform.shape[1] - window) // hop, window // hop
    blocks = waveform[:, : (count + overlap - 1) * hop].reshape(waveform.shape[0], count + overlap - 1, hop)
    frames = jnp.concatenate([blocks[:, i : i + count] for i in range(overlap)], axis=-1)
    if window <= MATRIX_WINDOW:
        parts = jnp.einsum("bfn,nw->bfw", frames, _fourier(window), precision=HIGHEST)
        real, imaginary = jnp.split(parts, 2, axis=-1)
    else:
        whole = jnp.fft.rfft(frames * _hann(window))
        real, imaginary = whole.real, whole.imag
    return real, imaginary


def magnitude(waveform: Float[Array, "B N"], window: int, hop: int) -> Float[Array, "B F W"]:
    """Compute the magnitude of the STFT, see `spectrum`."""
    real, imaginary = spectrum(waveform, window, hop)
    return jnp.sqrt(real**2 + imaginary**2 + 1e-12)


def mel(waveform: Float[Array, "B N"], sample_rate: int, window: int, bands: int, lowest: float = 64.0) -> Array:
    """Compute a mel spectrogram `[B, F, bands]` with a hop of a quarter window."""
    filters = mel_filters(sample_rate, window, bands, lowest)
    return jnp.einsum("bfw,wm->bfm", magnitude(waveform, window, window // 4), filters, precision=HIGHEST)


def multi_scale_mel(
    estimate: Float[Array, "B N"],
    target: Float[Array, "B N"],
    sample_rate: int,
    windows: tuple[int, ...] = WINDOWS,
    bands: int = 64,
    floor: float = 1e-5,
) -> Float[Array, " B"]:
    """Measure a distance between mel spectrograms at several scales.

    Args:
      estimate: decoded waveform.
      target: recording.
      sample_rate: in Hz.
      windows: samples of a window, one scale each.
      bands: most mel bands of a scale; short windows use as many as they can fill, a quarter of the window.
      floor: smallest magnitude before the logarithm.

    Returns:
      Per row, the mean over scales of the L1 distance plus the mean squared difference of log10.
    """
    total = 0.0
    for window in windows:
        count = min(bands, window // 4)
        a, b = (mel(x, sample_rate, window, count) for x in (estimate, target))
        linear = jnp.mean(jnp.abs(a - b), axis=(1, 2))
        logs = jnp.mean(jnp.square(jnp.log10(a + floor) - jnp.log10(b + floor)), axis=(1, 2))
        total = total + linear + logs
    return total / len(windows)


def waveform_l1(estimate: Float[Array, "B N"], target: Float[Array, "B N"]) -> Float[Array, " B"]:
    """Return the mean absolute difference of samples, per row."""
    return jnp.mean(jnp.abs(estimate - target), axis=1)


def pool_teacher(features: Float[Array, "B T50 F"], frames: int) -> Float[Array, "B T F"]:
    """Average teacher features at 50 Hz to 12.5 Hz: 8 centred on each frame's 4; the edges average those that exist.

    Not causal: features of the next frame take part, which teaches the codec to anticipate; targets exist in training
    only.

    Raises:
      ValueError: fewer than `4 * frames` features.
    """
    if features.shape[1] < POOL_STRIDE * frames:
        raise ValueError(f"{features.shape[1]} teacher features, {frames} frames need {POOL_STRIDE * frames}")
    side = (POOL_KERNEL - POOL_STRIDE) // 2
    features = features[:, : POOL_STRIDE * frames + side]
    after = POOL_STRIDE * frames + side - features.shape[1]
    present = jnp.pad(jnp.ones(features.shape[1]), (side, after))
    padded = jnp.pad(features, ((0, 0), (side, after), (0, 0)))

    def pooled(x):  # windows of 8 every 4, axis 1
        quarters = x.reshape(x.shape[0], frames + 1, POOL_STRIDE, -1).sum(axis=2)
        return quarters[:, :-1] + quarters[:, 1:]

    return pooled(padded) / pooled(present[None, :, None])


def cosine_distance(estimate: Float[Array, "B T F"], target: Float[Array, "B T F"]) -> Float[Array, " B"]:
    """Return the mean over frames of 1 - cosine, per row; frames whose target is zero do not count."""

    def norm(x):
        return jnp.sqrt(jnp.sum(jnp.square(x), axis=-1) + 1e-8)

    cosine = jnp.sum(estimate * target, axis=-1) / (norm(estimate) * norm(target))
    weight = (jnp.sum(jnp.square(target), axis=-1) > 0).astype(jnp.float32)
    return jnp.sum((1 - cosine) * weight, axis=1) / jnp.maximum(jnp.sum(weight, axis=1), 1.0)
