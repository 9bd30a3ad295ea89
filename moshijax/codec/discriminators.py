"""Multi-scale complex STFT discriminators, and the losses between them and the codec.

One small network of 2D convolutions per window size looks at real and imaginary parts of a spectrogram. Values are
averages per row, so that the caller weighs rows over the whole batch. Sources: arXiv 2210.13438 section 3.4; audiocraft
`adversarial/discriminators/msstftd.py` and `adversarial/losses.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from moshijax.codec import weight_norm
from moshijax.codec.losses import spectrum
from moshijax.errors import ConfigError

if TYPE_CHECKING:
    from jaxtyping import Array, Float

#: The first convolution sees the spectrogram itself and has no weight norm.
PLAIN = ("conv_0",)
#: Channels that a convolution has at least, see `convolve`.
FOLDED = 32


@dataclass(frozen=True)
class DiscriminatorConfig:
    """The discriminators of one codec.

    Attributes:
      windows: samples per STFT window, one discriminator each; the hop is a quarter.
      filters: channels of every layer.
      kernel_size: of the large convolutions, over time and frequency.
      dilations: over time, of the convolutions that halve the frequencies.
      slope: of the leaky ReLU below zero.
    """

    windows: tuple[int, ...] = (1024, 2048, 512, 256, 128)
    filters: int = 32
    kernel_size: tuple[int, int] = (3, 9)
    dilations: tuple[int, ...] = (1, 2, 4)
    slope: float = 0.3

    def __post_init__(self):
        if not self.windows or any(window < 8 or window % 4 for window in self.windows):
            raise ConfigError(f"discriminator windows {self.windows} must be multiples of 4, at least 8")
        if len(set(self.windows)) != len(self.windows):
            raise ConfigError(f"discriminator windows {self.windows} contain one twice; use each window once")
        if self.filters < 1 or any(size < 1 or size % 2 == 0 for size in self.kernel_size):
            raise ConfigError(f"filters {self.filters} must be positive and kernel_size {self.kernel_size} odd")


class Judgement(NamedTuple):
    """What one discriminator says.

    Attributes:
      logits: high for recordings, per place of its coarsest map.
      features: outputs of the layers before, after their activation.
    """

    logits: Float[Array, "B F W"]
    features: tuple[Float[Array, "B F W C"], ...]


def convolve(
    x: Float[Array, "B F W I"], kernel: Float[Array, "k l I O"], stride: int, dilation: int
) -> Float[Array, "B F V O"]:
    """Convolve in two dimensions, with odd kernels and zeros around.

    Neighbouring frequencies are taken together as channels, so that the stride is gone: the gradient of a strided
    convolution spreads its input with zeros, and convolutions of a few channels leave vector units idle (on CPUs either
    costs several times the arithmetic).

    Args:
      x: frames, frequencies and channels of every row.
      kernel: k frames, l frequencies, channels in and out.
      stride: every how many frequencies there is an output.
      dilation: distance of the kernel's frames.
    """
    frames, frequencies, channels, features = kernel.shape
    fold = max(stride, FOLDED // max(channels, features) // stride * stride)
    outputs, places = -(-x.shape[2] // stride), fold // stride  # places: outputs of a group of frequencies
    groups, taps = -(-outputs // places), (fold - stride + frequencies - 1) // fold + 1
    side, width = frequencies // 2, (groups + taps - 1) * fold
    x = jnp.pad(x, ((0, 0), (0, 0), (side, max(0, width - side - x.shape[2])), (0, 0)))[:, :, :width]
    x = x.reshape(*x.shape[:2], width // fold, fold * channels)
    # Output p of a group reads tap j from frequency stride * p + j of its groups.
    tap = jnp.arange(taps * fold)[:, None] - stride * jnp.arange(places)
    inside = (tap >= 0) & (tap < frequencies)
    folded = jnp.where(inside[..., None, None], kernel[:, jnp.clip(tap, 0, frequencies - 1)], 0.0)
    folded = folded.reshape(frames, taps, fold, places, channels, features).swapaxes(3, 4)
    around = dilation * (frames // 2)
    y = jax.lax.conv_general_dilated(
        x,
        folded.reshape(frames, taps, fold * channels, places * features),
        window_strides=(1, 1),
        padding=((around, around), (0, 0)),
        rhs_dilation=(dilation, 1),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y.reshape(*y.shape[:2], groups * places, features)[:, :, :outputs]


class _Conv(nn.Module):
    """2D convolution over `[B, frames, frequencies, channels]` that keeps the frames; the device's own precision."""

    in_features: int
    features: int
    kernel_size: tuple[int, int]
    dilation: int = 1
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (*self.kernel_size, self.in_features, self.features)
        # Kernels keep the level of what they see and biases are 0. Drawn as PyTorch would draw them, six layers leave
        # 1e-4 of the level of speech, and biases above it keep leaky ReLUs on one side, where they are linear: either
        # way recordings and codec look alike for hundreds of steps.
        kernel = self.param("kernel", nn.initializers.he_uniform(), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return convolve(x, kernel, self.stride, self.dilation) + bias


class _Discriminator(nn.Module):
    """One window size."""

    config: DiscriminatorConfig
    window: int

    @nn.compact
    def __call__(self, waveform: Float[Array, "B N"]) -> Judgement:
        c = self.config
        x = jnp.stack(spectrum(waveform, self.window, self.window // 4), axis=-1)
        small = (c.kernel_size[0], c.kernel_size[0])
        layers = [(2, c.filters, c.kernel_size)]
        layers += [(c.filters, c.filters, c.kernel_size, dilation, 2) for dilation in c.dilations]
        layers += [(c.filters, c.filters, small)]
        features = []
        for i, layer in enumerate(layers):
            x = nn.leaky_relu(_Conv(*layer, name=f"conv_{i}")(x), c.slope)
            features.append(x)
        logits = _Conv(c.filters, 1, small, name=f"conv_{len(layers)}")(x)
        return Judgement(logits[..., 0], tuple(features))


def _name(window: int) -> str:
    return f"window_{window}"


def init(config: DiscriminatorConfig, key: Array) -> dict[str, Any]:
    """Return new parameters of all discriminators, by window, with weight norm."""
    params = {}
    for window, window_key in zip(config.windows, jax.random.split(key, len(config.windows)), strict=True):
        fresh = _Discriminator(config, window).init(window_key, jnp.zeros((1, window)))["params"]
        params[_name(window)] = {k: v if k in PLAIN else weight_norm.split(v) for k, v in fresh.items()}
    return params


def judge(config: DiscriminatorConfig, params: dict[str, Any], waveform: Float[Array, "B N"]) -> tuple[Judgement, ...]:
    """Return what every discriminator says about a waveform of at least `max(config.windows)` samples."""
    params = weight_norm.fold(params)
    return tuple(
        _Discriminator(config, window).apply({"params": params[_name(window)]}, waveform) for window in config.windows
    )


def _per_row(x: Array) -> Float[Array, " B"]:
    return jnp.mean(x, axis=tuple(range(1, x.ndim)))


def discriminator_loss(
    config: DiscriminatorConfig, params: dict[str, Any], real: Float[Array, "B N"], fake: Float[Array, "B N"]
) -> dict[str, Float[Array, " B"]]:
    """Return the hinge loss of the discriminators and how often they are right.

    Returns:
      Per row, the mean over discriminators of `loss`, and of the share of places with the right sign on recordings
      (`real`) and on decoded audio (`fake`).
    """
    both = jnp.concatenate([real, jax.lax.stop_gradient(fake)])
    count, rows = len(config.windows), real.shape[0]
    found = {name: jnp.zeros(rows) for name in ("loss", "real", "fake")}
    for said in judge(config, params, both):
        yes, no = said.logits[:rows], said.logits[rows:]
        found["loss"] += _per_row(jax.nn.relu(1 - yes)) + _per_row(jax.nn.relu(1 + no))
        found["real"] += _per_row((yes > 0).astype(jnp.float32))
        found["fake"] += _per_row((no < 0).astype(jnp.float32))
    return {name: value / count for name, value in found.items()}


def generator_losses(
    config: DiscriminatorConfig, params: dict[str, Any], real: Float[Array, "B N"], fake: Float[Array, "B N"]
) -> dict[str, Float[Array, " B"]]:
    """Return the losses that the discriminators give the codec.

    Returns:
      Per row, the mean over discriminators of `adversarial` (hinge form: minus the mean logit) and of `feature` (mean
      over maps of the mean absolute difference; those of recordings are constants).
    """
    params = jax.lax.stop_gradient(params)
    count = len(config.windows)
    adversarial = feature = 0.0
    for said, wanted in zip(judge(config, params, fake), judge(config, params, real), strict=True):
        adversarial += -_per_row(said.logits)
        maps = [_per_row(jnp.abs(a - b)) for a, b in zip(said.features, wanted.features, strict=True)]
        feature += sum(maps) / len(maps)
    return {"adversarial": adversarial / count, "feature": feature / count}
