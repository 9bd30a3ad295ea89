"""A start for training: a filterbank at both ends of the codec, instead of random convolutions.

From random weights an encoder of waveforms spends its first tens of thousands of steps on finding out about
frequencies. Small codecs are trained for less than that, so their encoder begins as what is known to work: band-pass
filters in quadrature, their envelopes, and a logarithm-like compression made of exponentials. The decoder ends as the
matching synthesis bank. No architecture changes. Training moves everything from there but the encoder's first two
convolutions, and saves the larger part of the encoder's backward pass, which runs at the sample rate.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from moshijax.codec.config import MimiConfig
from moshijax.codec.losses import hertz_to_mel, mel_to_hertz
from moshijax.errors import ConfigError

LOWEST, HIGHEST = 120.0, 7000.0  # Hz, outer edges of the bands
PHASES = 2  # a quarter period apart; rectified, added and smoothed they give the envelope
GAIN, TILT = 300.0, 0.8  # a band at 300 Hz is amplified by GAIN, others in proportion to frequency ** TILT
LEVELS = (0.7, 2.0, 6.0, 18.0)  # amplified envelopes at which the exponentials saturate
SYNTHESIS = 0.03  # amplitude of a band of the decoder for an input of 1
SHORTEST = 48  # samples of the first stride
FROZEN = ("parts_0", "parts_2")


def band_filters(bands: int, length: int, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Windowed cosines ``[bands, PHASES, length]`` of unit gain at their centre, and the centres in Hz (mel-spaced)."""
    centres = mel_to_hertz(np.linspace(hertz_to_mel(LOWEST), hertz_to_mel(HIGHEST), bands + 2))[1:-1]
    time = (np.arange(length) - (length - 1) / 2) / sample_rate
    window = np.hanning(length + 2)[1:-1]
    phase = 0.5 * np.pi * np.arange(PHASES)
    waves = np.cos(2 * np.pi * centres[:, None, None] * time + phase[:, None]) * window
    return waves * (2 / window.sum()), centres


def apply(config: MimiConfig, params: dict[str, Any]) -> dict[str, Any]:
    """``params`` (learnt tree of a fresh codec, see `functions.init`) with other convolutions next to the waveform.

    The encoder's first passes the waveform on in channel 0; its second is the bank, its third envelopes and their
    compression. The decoder's last transposed convolution is the bank again, written to channel 0, which its last
    convolution passes on. What is left of the channels stays random.

    Raises:
        ConfigError: the codec has residual blocks, or too short a first stride.
    """
    seanet = config.seanet
    strides = tuple(reversed(seanet.ratios))
    if seanet.n_residual_layers or len(strides) < 2 or strides[0] < SHORTEST:
        raise ConfigError(
            f"a filterbank start needs n_residual_layers 0 and a last ratio of at least {SHORTEST}; seanet has "
            f"n_residual_layers {seanet.n_residual_layers} and ratios {seanet.ratios}"
        )
    layers = dict(params["encoder"]["seanet"])
    first, bank, envelope = (layers[f"parts_{index}"] for index in (0, 2, 4))
    bands = bank["kernel"].shape[2] // PHASES
    used = bands * PHASES
    filters, centres = band_filters(bands, 2 * strides[0], config.sample_rate)
    gains = GAIN * (centres / 300.0) ** TILT
    amplified = (gains[:, None, None] * filters).reshape(used, -1).T
    # Channel band + bands * k of the third convolution: the band's envelope through compression k; k = 0 is linear.
    factors = (1.0 / LEVELS[-1], *(-1.0 / level for level in LEVELS))[: envelope["kernel"].shape[2] // bands]
    taps = np.hanning(2 * strides[1] + 2)[1:-1]
    mixed = np.concatenate([np.repeat(np.eye(bands), PHASES, axis=0) * factor for factor in factors], axis=1)
    smoothed = (taps / taps.sum())[:, None, None] * mixed
    kernel = first["kernel"].at[:, :, 0].set(0.0).at[-1, 0, 0].set(1.0)
    layers["parts_0"] = {"kernel": kernel, "bias": first["bias"].at[0].set(0.0)}
    kernel = bank["kernel"].at[:, :, :used].multiply(0.1).at[:, 0, :used].set(amplified)
    layers["parts_2"] = {"kernel": kernel, "bias": bank["bias"].at[:used].set(0.0)}
    kernel = (0.1 * envelope["kernel"]).at[:, :used, : smoothed.shape[2]].set(smoothed)
    layers["parts_4"] = {"kernel": kernel, "bias": envelope["bias"].at[: smoothed.shape[2]].set(0.0)}
    return {
        **params,
        "encoder": {**params["encoder"], "seanet": layers},
        "decoder": {**params["decoder"], "seanet": _synthesis(params["decoder"]["seanet"], filters, len(strides))},
    }


def _synthesis(layers: dict[str, Any], filters: np.ndarray, stages: int) -> dict[str, Any]:
    """The decoder's convolutions with a bank at the end; input band * PHASES + phase drives one filter."""
    last, out = f"parts_{2 * stages}", f"parts_{2 * stages + 2}"
    waves = filters.reshape(-1, filters.shape[2])
    waves = SYNTHESIS * waves / np.abs(waves).max(axis=1, keepdims=True)
    bank, passing = layers[last], layers[out]
    kernel = (0.1 * bank["kernel"]).at[: len(waves), :, 0].set(waves)
    final = (0.1 * passing["kernel"]).at[:, 0, 0].set(0.0).at[-1, 0, 0].set(1.0)
    return {
        **layers,
        last: {"kernel": kernel, "bias": bank["bias"].at[0].set(0.0)},
        out: {"kernel": final, "bias": 0.0 * passing["bias"]},
    }


def freeze(params: dict[str, Any]) -> dict[str, Any]:
    """The same parameters; no gradient reaches the encoder's first two convolutions."""
    layers = dict(params["encoder"]["seanet"])
    layers |= {name: jax.lax.stop_gradient(layers[name]) for name in FROZEN}
    return {**params, "encoder": {**params["encoder"], "seanet": layers}}
