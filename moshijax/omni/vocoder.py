"""The unit vocoder: units to a waveform at 16 kHz (CodeHiFiGAN with durations, `models/text_to_speech` of fairseq).

HiFi-GAN (arXiv 2010.05646) over embeddings of units, each repeated as often as a small predictor says (arXiv
2107.05604).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from moshijax.annotations import Size
from moshijax.errors import DataError, require
from moshijax.nn.centred_conv import CentredConv, CentredTransposedConv
from moshijax.nn.functions import parameter_functions
from moshijax.nn.norms import Norm
from moshijax.nn.projection import Linear, truncated_normal
from moshijax.runtime.unit_voice import UnitVoice, VoiceShape

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

Params = dict[str, Any]
#: Slopes of the leaky rectifiers, and of the one before the last convolution, where the original has PyTorch's default.
SLOPE, LAST_SLOPE = 0.1, 0.01


@dataclass(frozen=True)
class VocoderConfig:
    """A unit vocoder.

    Attributes:
      units: U, entries of the table.
      dim: Width of the embeddings, and of the hidden layers of the duration predictor.
      channels: Of the first layer of the generator; each stage halves them.
      rates: Output steps per input step of every stage.
      kernels: Taps of every stage, its rate and an even number.
      residual_kernels: Taps of the residual blocks of every stage, whose outputs are averaged.
      dilations: Of the layers of each residual block.
      duration_kernel: Taps of the duration predictor.
      sample_rate: Of the waveform.
    """

    units: Size = 1000
    dim: Size = 128
    channels: Size = 512
    rates: tuple[Size, ...] = (5, 4, 4, 2, 2)
    kernels: tuple[Size, ...] = (11, 8, 8, 4, 4)
    residual_kernels: tuple[Size, ...] = (3, 7, 11)
    dilations: tuple[tuple[Size, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    duration_kernel: Size = 3
    sample_rate: Size = 16000

    def __post_init__(self) -> None:
        for name in ("rates", "kernels", "residual_kernels"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "dilations", tuple(tuple(block) for block in self.dilations))
        require(
            len(self.rates) == len(self.kernels), f"rates={self.rates}, kernels={self.kernels}: must be as many of both"
        )
        require(
            len(self.residual_kernels) == len(self.dilations),
            f"residual_kernels={self.residual_kernels}, dilations={self.dilations}: must be as many of both",
        )
        require(
            self.channels % 2 ** len(self.rates) == 0,
            f"channels={self.channels}: must be a multiple of {2 ** len(self.rates)}, as each of {len(self.rates)} "
            "stages halves them",
        )

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return math.prod(self.rates)

    @property
    def receptive_units(self) -> int:
        """Units behind a unit that its duration depends on; as many before it."""
        return self.duration_kernel - 1

    @property
    def receptive_frames(self) -> int:
        """Frames behind a frame that its last sample may depend on; as many before it."""
        widest = max(
            sum((dilation + 1) * (taps - 1) // 2 for dilation in block)
            for taps, block in zip(self.residual_kernels, self.dilations, strict=True)
        )
        last = self.hop - 1 + 3  # the last step that is read, from the waveform back to the frames
        for rate, taps in zip(reversed(self.rates), reversed(self.kernels), strict=True):
            last = (last + widest + (taps - rate) // 2) // rate
        return last + 3


class DurationPredictor(nn.Module):
    """Embeddings `[B, T, D]` to the logarithm of their durations and one frame `[B, T]`."""

    config: VocoderConfig

    def setup(self) -> None:
        c = self.config
        self.conv1, self.conv2 = (CentredConv(c.dim, c.dim, c.duration_kernel) for _ in range(2))
        self.norm1, self.norm2 = Norm(c.dim), Norm(c.dim)
        self.proj = Linear(c.dim, 1, use_bias=True)

    def __call__(self, x: Float[Array, "B T D"], there: Bool[Array, "B T 1"]) -> Float[Array, "B T"]:
        x = self.norm1(jax.nn.relu(self.conv1(x))) * there
        return self.proj(self.norm2(jax.nn.relu(self.conv2(x))))[..., 0]


class ResidualBlock(nn.Module):
    """Pairs of a dilated and a plain convolution, each added to its input."""

    features: int
    kernel_size: int
    dilations: tuple[int, ...]

    def setup(self) -> None:
        self.dilated = [CentredConv(self.features, self.features, self.kernel_size, dilation=d) for d in self.dilations]
        self.plain = [CentredConv(self.features, self.features, self.kernel_size) for _ in self.dilations]

    def __call__(self, x: Float[Array, "B L C"], there: Bool[Array, "B L 1"]) -> Float[Array, "B L C"]:
        for dilated, plain in zip(self.dilated, self.plain, strict=True):
            inner = jax.nn.leaky_relu(dilated(jax.nn.leaky_relu(x, SLOPE)), SLOPE) * there
            x = x + plain(inner) * there
        return x


class Vocoder(nn.Module):
    """The table of units, the duration predictor and the generator.

    Negative ids stand for what is before or behind an answer. There every layer reads the zeros that it would be padded
    with at the ends of the whole answer, so that a piece of an answer can be computed like the whole.
    """

    config: VocoderConfig

    def setup(self) -> None:
        c = self.config
        self.table = self.param("table", truncated_normal(c.dim), (c.units, c.dim), jnp.float32)
        self.durations = DurationPredictor(c)
        self.conv_pre = CentredConv(c.dim, c.channels, 7)
        channels = [c.channels >> i for i in range(len(c.rates) + 1)]
        self.ups = [
            CentredTransposedConv(channels[i], channels[i + 1], kernel, rate)
            for i, (kernel, rate) in enumerate(zip(c.kernels, c.rates, strict=True))
        ]
        self.blocks = [
            ResidualBlock(width, kernel, dilations)
            for width in channels[1:]
            for kernel, dilations in zip(c.residual_kernels, c.dilations, strict=True)
        ]
        self.conv_post = CentredConv(channels[-1], 1, 7)

    def __call__(self, units_BT: Int[Array, "B T"]) -> tuple[Array, Array]:
        """Return the durations of units and the waveform of as many frames; both, so that `init` makes everything."""
        return self.frames(units_BT), self.generate(units_BT)

    def embed(self, units: Int[Array, "B T"]) -> tuple[Float[Array, "B T D"], Bool[Array, "B T 1"]]:
        """Return embeddings, zero where there is no unit, and where there is one."""
        there = (units >= 0)[..., None]
        return jnp.asarray(self.table)[jnp.maximum(units, 0)] * there, there

    def frames(self, units_BT: Int[Array, "B T"]) -> Int[Array, "B T"]:
        """Return the frames of every unit; halves are rounded to even, as PyTorch does."""
        predicted = jnp.exp(self.durations(*self.embed(units_BT))) - 1
        return jnp.maximum(jnp.round(predicted), 1).astype(jnp.int32)

    def generate(self, units_BF: Int[Array, "B F"]) -> Float[Array, "B N"]:
        """Return the waveform of units that are repeated already, one per frame."""
        x, there = self.embed(units_BF)
        x = self.conv_pre(x) * there
        kinds = len(self.config.residual_kernels)
        for i, (up, rate) in enumerate(zip(self.ups, self.config.rates, strict=True)):
            there = jnp.repeat(there, rate, axis=1)
            x = up(jax.nn.leaky_relu(x, SLOPE)) * there
            x = sum(block(x, there) for block in self.blocks[i * kinds : (i + 1) * kinds]) / kinds
        return jnp.tanh(self.conv_post(jax.nn.leaky_relu(x, LAST_SLOPE)))[..., 0]


def init_boxed(config: VocoderConfig, key: Array) -> Params:
    """Return new parameters, each boxed with its logical axis names (for sharding)."""
    return Vocoder(config).init(key, jnp.zeros((1, 1), jnp.int32))["params"]


init, abstract = parameter_functions(init_boxed)


@partial(jax.jit, static_argnums=0)
def durations(config: VocoderConfig, params: Params, units_BT: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Return how many frames each of the merged units lasts, 1 or more; negative ids as `Vocoder` says."""
    return Vocoder(config).apply({"params": params}, units_BT, method="frames")


@partial(jax.jit, static_argnums=0)
def generate(config: VocoderConfig, params: Params, units_BF: Int[Array, "B F"]) -> Float[Array, "B N"]:
    """Return the waveform, float32 in [-1, 1], of one unit per frame; N is `hop` times F; negative ids as `Vocoder`."""
    return Vocoder(config).apply({"params": params}, units_BF, method="generate")


@partial(jax.jit, static_argnums=0)
def vocode_chunk(config: VocoderConfig, params: Params, window_BW: Int[Array, "B W"]) -> Float[Array, "B N"]:
    """Return the waveform of the middle of a window of units that are repeated already.

    Args:
      config: Of the vocoder.
      params: Of the vocoder.
      window_BW: `receptive_frames` frames, those to make, and `receptive_frames` more; negative ids as in `Vocoder`.

    Returns:
      The same samples as those of the whole answer.
    """
    side = config.receptive_frames * config.hop
    return generate(config, params, window_BW)[:, side:-side]


def voice(config: VocoderConfig, params: Params) -> UnitVoice:
    """Return the voice of an answer whose units come bit by bit."""
    return UnitVoice(
        VoiceShape(config.units, config.hop, config.receptive_units, config.receptive_frames),
        lambda window: durations(config, params, window),
        lambda window: vocode_chunk(config, params, window),
    )


def vocode(config: VocoderConfig, params: Params, units: Sequence[int]) -> Float[np.ndarray, " N"]:
    """Return the waveform of the merged units of one answer; answers of every length share a few compiled functions.

    Args:
      config: Of the vocoder.
      params: Of the vocoder.
      units: Ids, one or more.

    Raises:
      DataError: There are no units, or ids that the table does not have.
    """
    if not len(units):
        raise DataError("units none: must be one or more; an answer without units has no sound")
    stream = voice(config, params)
    stream.feed(units)
    return stream.take(done=True)
