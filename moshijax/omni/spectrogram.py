"""The log-mel front-end of Whisper, in JAX.

`WhisperFeatureExtractor` of Transformers, `audio.py` of `openai/whisper`.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from moshijax.errors import ConfigError

if TYPE_CHECKING:
    from jaxtyping import Array, Float

SAMPLE_RATE = 16000
#: Samples of a window of the Fourier transform, and between two windows.
WINDOW, HOP = 400, 160
#: Samples of a clip in the published models: 30 s.
CLIP = 480_000
#: Bands of the two kinds of models.
BANDS = (80, 128)


@cache
def mel_bank(bands: int) -> np.ndarray:
    """Return the weights `[201, bands]` of mel bands from 0 to 8000 Hz, float32 (Slaney's scale and normalisation)."""
    frequency = np.linspace(0, SAMPLE_RATE / 2, WINDOW // 2 + 1)
    # Linear up to 1000 Hz, which is 15 mel; from there 27 mel are a factor of 6.4.
    mel = np.linspace(0, 15 + 27 * np.log(SAMPLE_RATE / 2 / 1000) / np.log(6.4), bands + 2)
    edge = np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))
    low, centre, high = edge[:-2], edge[1:-1], edge[2:]
    rising = (frequency[:, None] - low) / (centre - low)
    falling = (high - frequency[:, None]) / (high - centre)
    return (np.maximum(0, np.minimum(rising, falling)) * 2 / (high - low)).astype(np.float32)


@cache
def _transform() -> np.ndarray:
    """Return the windowed Fourier transform as a matrix `[400, 402]`: the cosines, then the sines."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    angle = 2 * np.pi * np.outer(np.arange(WINDOW), np.arange(WINDOW // 2 + 1)) / WINDOW
    return (window[:, None] * np.concatenate([np.cos(angle), np.sin(angle)], axis=1)).astype(np.float32)


def log_mel(waveform_BN: Float[Array, "B N"], bands: int, samples: int = CLIP) -> Float[Array, "B T M"]:
    """Return scaled log-mel frames of clips that are cut, or padded with zeros, to one length.

    Each clip has its own loudest value, 8 decades below which everything is raised to.

    Args:
      waveform_BN: Float32 in [-1, 1] at 16 kHz.
      bands: M, 80 or 128.
      samples: Of a clip, a multiple of 160; what comes later is cut off. Published models know 30 s alone.

    Returns:
      Float32, 100 frames per second of clip.

    Raises:
      ConfigError: A waveform of another shape, no samples, or a number of bands or samples that cannot be.
    """
    if bands not in BANDS:
        raise ConfigError(f"{bands} mel bands: must be one of {', '.join(map(str, BANDS))}")
    if samples < WINDOW or samples % HOP:
        raise ConfigError(f"clips of {samples} samples: must be a multiple of {HOP}, {WINDOW} or more")
    if waveform_BN.ndim != 2 or not waveform_BN.shape[1]:
        raise ConfigError(f"waveform of shape {tuple(waveform_BN.shape)}: must be [B, N], N not 0; add the batch axis")
    clip = jnp.asarray(waveform_BN, jnp.float32)[:, :samples]
    clip = jnp.pad(clip, ((0, 0), (0, samples - clip.shape[1])))
    padded = jnp.pad(clip, ((0, 0), (WINDOW // 2, WINDOW // 2)), mode="reflect")
    # The frame that is centred on the end is left out, as in the published code.
    index = HOP * np.arange(samples // HOP)[:, None] + np.arange(WINDOW)
    spectrum = jnp.einsum("btn,nf->btf", padded[:, index], _transform(), precision=jax.lax.Precision.HIGHEST)
    cosines, sines = jnp.split(spectrum, 2, axis=-1)
    power = jnp.square(cosines) + jnp.square(sines)
    mel = jnp.einsum("btf,fm->btm", power, mel_bank(bands), precision=jax.lax.Precision.HIGHEST)
    decades = jnp.log10(jnp.maximum(mel, 1e-10))
    decades = jnp.maximum(decades, jnp.max(decades, axis=(1, 2), keepdims=True) - 8)
    return (decades + 4) / 4
