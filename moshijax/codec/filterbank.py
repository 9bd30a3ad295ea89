"""A start for training: a filterbank at both ends of the codec, instead of random convolutions.

From random weights an encoder of waveforms spends its first tens of thousands of steps on finding out about
frequencies. Small codecs are trained for less than that, so their encoder begins as what is known to work: band-pass
filters in quadrature, their envelopes, and a logarithm-like compression made of exponentials. The decoder ends as the
matching synthesis bank. No architecture changes. Training moves everything from there but the encoder's convolutions up
to the bank, and saves the larger part of the encoder's backward pass, which runs at the sample rate.

A bank of many bands needs many channels, and channels are dear at the sample rate. The strides before the bank
therefore only fold the waveform: every channel carries one of the samples of a group.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from moshijax.codec.config import MimiConfig
from moshijax.codec.losses import hertz_to_mel, mel_to_hertz
from moshijax.errors import ConfigError

LOWEST_HZ, HIGHEST_HZ = 120.0, 7000.0  # outer edges of the bands
PHASES = 3  # a third of a period apart: rectified and added, they give the envelope with a ripple of 1.2 dB
GAIN, TILT = 300.0, 0.8  # a band at 300 Hz is amplified by GAIN, others in proportion to frequency ** TILT
LEVELS = (0.25, 0.7, 2.0, 6.0, 18.0)  # amplified envelopes at which the exponentials saturate
SYNTHESIS = 0.03  # amplitude of a band of the decoder for an input of 1
SHORTEST = 48  # samples between the windows of a bank
LIFT = 1.0  # added to the waveform on its way to the bank and from it, so that ELUs pass it unchanged


class Stages(NamedTuple):
    """Which of the encoder's strides fold the waveform, and which is the bank.

    Attributes:
      folds: strides that only put neighbouring samples side by side, in the encoder's order.
      stride: of the bank, in groups of samples.
    """

    folds: tuple[int, ...]
    stride: int  # of the bank, in groups of samples

    @property
    def group(self) -> int:
        """Samples side by side at the bank's input."""
        return math.prod(self.folds)

    @property
    def hop(self) -> int:
        """Samples between the windows of the bank."""
        return self.group * self.stride


def stages(config: MimiConfig) -> Stages:
    """Return the strides next to the waveform, up to the first that ends a hop of at least `SHORTEST` samples.

    Raises:
      ConfigError: the codec has residual blocks, no stride after the bank, or too few channels for the folds.
    """
    seanet, folds = config.seanet, []
    strides = tuple(reversed(seanet.ratios))
    if not seanet.n_residual_layers:
        for index, stride in enumerate(strides[:-1]):
            if math.prod(folds) * stride >= SHORTEST:
                return Stages(tuple(folds), stride)
            folds.append(stride)
            if math.prod(folds) > seanet.n_filters * 2 ** (index + 1):
                break
    raise ConfigError(
        f"a filterbank needs n_residual_layers 0, ratios whose last ones multiply to {SHORTEST} samples or more, and a "
        "channel for each sample of a group before the very last of these; seanet has n_residual_layers "
        f"{seanet.n_residual_layers}, n_filters {seanet.n_filters} and ratios {seanet.ratios}"
    )


def band_filters(bands: int, length: int, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Make windowed cosines of unit gain at their centres, which are equally spaced on the mel scale.

    Returns:
      The filters `[bands, PHASES, length]`, and the centres `[bands]` in Hz.
    """
    centres = mel_to_hertz(np.linspace(hertz_to_mel(LOWEST_HZ), hertz_to_mel(HIGHEST_HZ), bands + 2))[1:-1]
    time = (np.arange(length) - (length - 1) / 2) / sample_rate
    window = np.hanning(length + 2)[1:-1]
    phase = 2 * np.pi / PHASES * np.arange(PHASES)
    waves = np.cos(2 * np.pi * centres[:, None, None] * time + phase[:, None]) * window
    return waves * (2 / window.sum()), centres


def apply(config: MimiConfig, params: dict[str, Any]) -> dict[str, Any]:
    """Replace the convolutions next to the waveform by a filterbank.

    The encoder's first convolution passes the waveform on in channel 0, the next ones fold it; then come the bank, the
    envelopes and their compression. The decoder's bank writes a folded waveform, which its last convolutions unfold.
    The remaining channels stay random.

    Args:
      config: of the codec.
      params: learnt tree of a fresh codec, see `functions.init`.

    Raises:
      ConfigError: see `stages`.
    """
    found = stages(config)
    layers = dict(params["encoder"]["seanet"])
    first, *folds, bank, envelope = (f"parts_{2 * index}" for index in range(len(found.folds) + 3))
    bands = layers[bank]["kernel"].shape[2] // PHASES
    used = bands * PHASES
    filters, centres = band_filters(bands, 2 * found.hop, config.sample_rate)
    gains = GAIN * (centres / 300.0) ** TILT
    amplified = (gains[:, None, None] * filters).reshape(used, -1)
    layers[first] = _pass(layers[first], np.ones((1, 1, 1)), LIFT)
    group = 1
    for name, stride in zip(folds, found.folds, strict=True):
        layers[name] = _pass(layers[name], _fold(group, stride), 0.0)
        group *= stride
    kernel = np.zeros(layers[bank]["kernel"].shape, np.float32)
    kernel[:, :group, :used] = amplified.T.reshape(2 * found.stride, group, used)
    bias = layers[bank]["bias"].at[:used].set(-LIFT * kernel.sum(axis=(0, 1))[:used])
    layers[bank] = {"kernel": layers[bank]["kernel"].at[:, :, :used].set(kernel[:, :, :used]), "bias": bias}
    # Channel band + bands * k of the next convolution: the band's envelope through compression k; k = 0 is linear.
    width = layers[envelope]["kernel"].shape
    factors = (1.0 / LEVELS[-1], *(-1.0 / level for level in LEVELS))[: width[2] // bands]
    taps = np.hanning(width[0] + 2)[1:-1]
    mixed = np.concatenate([np.repeat(np.eye(bands), PHASES, axis=0) * factor for factor in factors], axis=1)
    smoothed = (taps / taps.sum())[:, None, None] * mixed
    kernel = (0.1 * layers[envelope]["kernel"]).at[:, :used, : smoothed.shape[2]].set(smoothed)
    layers[envelope] = {"kernel": kernel, "bias": layers[envelope]["bias"].at[: smoothed.shape[2]].set(0.0)}
    decoder = _synthesis(params["decoder"]["seanet"], filters, found)
    return {
        **params,
        "encoder": {**params["encoder"], "seanet": layers},
        "decoder": {**params["decoder"], "seanet": decoder},
    }


def _fold(group: int, stride: int) -> np.ndarray:
    """`[stride, group, group * stride]`: sample `j` of channel `c` goes to channel `j * group + c`."""
    return np.eye(stride * group, dtype=np.float32).reshape(stride, group, stride * group)


def _pass(layer: dict[str, Any], taps: np.ndarray, bias: float) -> dict[str, Any]:
    """`layer` with `taps [k, c, o]` as all that its first `o` outputs read, from its last `k` taps."""
    kernel, (k, channels, outputs) = layer["kernel"], taps.shape
    kernel = kernel.at[:, :, :outputs].set(0.0).at[-k:, :channels, :outputs].set(taps)
    return {"kernel": kernel, "bias": layer["bias"].at[:outputs].set(bias)}


def _synthesis(layers: dict[str, Any], filters: np.ndarray, found: Stages) -> dict[str, Any]:
    """The decoder's convolutions with a bank at the end; input band * PHASES + phase drives one filter.

    Transposed convolutions have kernels `[in, taps, out]`.
    """
    parts = sorted((int(name.removeprefix("parts_")) for name in layers if "kernel" in layers[name]), reverse=True)
    last, *unfolds, bank = (f"parts_{index}" for index in parts[: len(found.folds) + 2])
    waves = filters.reshape(-1, filters.shape[2])
    waves = SYNTHESIS * waves / np.abs(waves).max(axis=1, keepdims=True)
    group, new = found.group, dict(layers)
    kernel = layers[bank]["kernel"].at[:, :, :group].set(0.0)
    kernel = kernel.at[: len(waves), :, :group].set(waves.reshape(len(waves), -1, group))
    new[bank] = {"kernel": kernel, "bias": layers[bank]["bias"].at[:group].set(LIFT)}
    for name, stride in zip(reversed(unfolds), reversed(found.folds), strict=True):
        taps = np.moveaxis(_fold(group // stride, stride), 2, 0)  # [in, taps, out]
        kernel = layers[name]["kernel"].at[:, :, : group // stride].set(0.0)
        kernel = kernel.at[:group, :stride, : group // stride].set(taps)
        group //= stride
        new[name] = {"kernel": kernel, "bias": layers[name]["bias"].at[:group].set(0.0)}
    return {**new, last: _pass(layers[last], np.ones((1, 1, 1)), -LIFT)}


def freeze(config: MimiConfig, params: dict[str, Any]) -> dict[str, Any]:
    """Return the same parameters, with no gradient through the encoder's convolutions up to the bank."""
    layers = dict(params["encoder"]["seanet"])
    names = [f"parts_{2 * index}" for index in range(len(stages(config).folds) + 2)]
    layers |= {name: jax.lax.stop_gradient(layers[name]) for name in names}
    return {**params, "encoder": {**params["encoder"], "seanet": layers}}
