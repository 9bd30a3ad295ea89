"""The Mimi codec as Linen modules: waveform to latent, latent to waveform, and the quantiser between them.

Everything computes in float32 at HIGHEST precision. Sources: arXiv 2410.00037 section 3.3; upstream
`models/compression.py`.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import flax.linen as nn

from moshijax.codec import seanet
from moshijax.codec.config import MimiConfig
from moshijax.nn.conv import CausalConv, TransposedConv
from moshijax.nn.streaming import Chain
from moshijax.nn.transformer import Transformer
from moshijax.nn.vq import SplitResidualVQ

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

State = Any


class _Stages(nn.Module):
    """Streaming stages run in order, each under its own name (a `Chain` whose parameters have published names)."""

    config: MimiConfig

    @nn.nowrap
    def stages(self) -> dict[str, Any]:
        raise NotImplementedError

    def setup(self):
        for name, stage in self.stages().items():
            setattr(self, name, stage)

    def _run(self, x: Array) -> Array:
        for name in self.stages():
            x = getattr(self, name)(x)
        return x

    def _step(self, state: State, x: Array, active: Array | None) -> tuple[State, Array]:
        new = {}
        for name in self.stages():
            new[name], x = getattr(self, name).step(state[name], x, active)
        return new, x

    @nn.nowrap
    def init_state(self, batch_size: int) -> State:
        return {name: stage.init_state(batch_size) for name, stage in self.stages().items()}

    @nn.nowrap
    def reset(self, state: State, rows: Bool[Array, " B"]) -> State:
        return {name: stage.reset(state[name], rows) for name, stage in self.stages().items()}

    @nn.nowrap
    def _chain(self) -> Chain:
        return Chain(tuple(self.stages().values()), parent=None)

    @property
    def block_size(self) -> int:
        return self._chain().block_size

    @property
    def output_ratio(self) -> Fraction:
        return self._chain().output_ratio

    @property
    def receptive_field(self) -> int | None:
        return self._chain().receptive_field


def _transformer(config: MimiConfig) -> Transformer:
    return Transformer(config.transformer, block=config.resample_stride, ring=config.ring, parent=None)


class Encoder(_Stages):
    """`waveform [B, N] -> latent [B, T, D]`, not quantised; a streaming layer whose block is one frame."""

    @nn.nowrap
    def stages(self) -> dict[str, Any]:
        """Return the detached layers by the names of their parameters, in the order in which they run."""
        c, dim, stride = self.config, self.config.seanet.dimension, self.config.resample_stride
        stages = {"seanet": seanet.encoder(c.seanet), "transformer": _transformer(c)}
        if stride > 1:
            stages["downsample"] = CausalConv(
                dim, dim, 2 * stride, stride, use_bias=False, padding="replicate", parent=None
            )
        return stages

    def __call__(self, waveform: Float[Array, "B N"]) -> Float[Array, "B T D"]:
        return self._run(waveform[..., None])

    def step(
        self, state: State, waveform: Float[Array, "B N"], active: Bool[Array, " B"] | None = None
    ) -> tuple[State, Float[Array, "B T D"]]:
        """Encode whole frames from `state`; see `moshijax.nn.streaming`."""
        return self._step(state, waveform[..., None], active)


class Decoder(_Stages):
    """`latent [B, T, D] -> waveform [B, N]`; a streaming layer whose block is one frame."""

    @nn.nowrap
    def stages(self) -> dict[str, Any]:
        """Return the detached layers by the names of their parameters, in the order in which they run."""
        c, dim, stride = self.config, self.config.seanet.dimension, self.config.resample_stride
        stages: dict[str, Any] = {}
        if stride > 1:
            stages["upsample"] = TransposedConv(
                dim, dim, 2 * stride, stride, depthwise=True, use_bias=False, parent=None
            )
        return stages | {"transformer": _transformer(c), "seanet": seanet.decoder(c.seanet)}

    def __call__(self, latent: Float[Array, "B T D"]) -> Float[Array, "B N"]:
        return self._run(latent)[..., 0]

    def step(
        self, state: State, latent: Float[Array, "B T D"], active: Bool[Array, " B"] | None = None
    ) -> tuple[State, Float[Array, "B N"]]:
        """Decode latents of whole frames from `state`; see `moshijax.nn.streaming`."""
        state, y = self._step(state, latent, active)
        return state, y[..., 0]


class Mimi(nn.Module):
    """Encoder, split residual quantiser and decoder.

    Variables: `params` (encoder, quantizer, decoder; what gradients train) and `codebooks` (quantizer; moving
    averages, see `moshijax.nn.vq`).
    """

    config: MimiConfig

    def setup(self):
        c = self.config
        self.encoder = Encoder(c)
        q = c.quantizer
        self.quantizer = SplitResidualVQ(c.seanet.dimension, q.dim, q.bins, q.num_codebooks, q.semantic)
        self.decoder = Decoder(c)

    def __call__(self, waveform: Float[Array, "B N"]) -> Float[Array, "B N"]:
        """Encode, quantise with all codebooks (straight-through gradient), decode; N a multiple of the frame size."""
        return self.decoder(self.quantizer(self.encoder(waveform)))

    def encode_latent(self, waveform: Float[Array, "B N"]) -> Float[Array, "B T D"]:
        """Encode whole frames to the latent before quantisation."""
        return self.encoder(waveform)

    def encode(self, waveform: Float[Array, "B N"], num_codebooks: int | None = None) -> Int[Array, "B Q T"]:
        """Encode whole frames to int32 codes of the first `num_codebooks` codebooks (default: all)."""
        return self.quantizer.encode(self.encoder(waveform), num_codebooks)

    def decode_latent(self, latent: Float[Array, "B T D"]) -> Float[Array, "B N"]:
        """Decode a latent, quantised or not."""
        return self.decoder(latent)

    def decode(self, codes: Int[Array, "B Q T"]) -> Float[Array, "B N"]:
        """Decode codes of the first Q codebooks."""
        return self.decoder(self.quantizer.decode(codes))

    def quantize(self, latent: Float[Array, "B T D"], num_codebooks: int | None = None) -> Int[Array, "B Q T"]:
        """Return the int32 codes of a latent."""
        return self.quantizer.encode(latent, num_codebooks)

    def dequantize(self, codes: Int[Array, "B Q T"]) -> Float[Array, "B T D"]:
        """Return the latent of codes."""
        return self.quantizer.decode(codes)

    def encode_latent_step(
        self, state: State, waveform: Float[Array, "B N"], active: Bool[Array, " B"] | None = None
    ) -> tuple[State, Float[Array, "B T D"]]:
        """Take a step of `encode_latent`; the state is the encoder's."""
        return self.encoder.step(state, waveform, active)

    def decode_latent_step(
        self, state: State, latent: Float[Array, "B T D"], active: Bool[Array, " B"] | None = None
    ) -> tuple[State, Float[Array, "B N"]]:
        """Take a step of `decode_latent`; the state is the decoder's."""
        return self.decoder.step(state, latent, active)

    def encode_step(
        self,
        state: State,
        waveform: Float[Array, "B N"],
        active: Bool[Array, " B"] | None = None,
        num_codebooks: int | None = None,
    ) -> tuple[State, Int[Array, "B Q T"]]:
        """Take a step of `encode`; the state is the encoder's."""
        state, latent = self.encoder.step(state, waveform, active)
        return state, self.quantizer.encode(latent, num_codebooks)

    def decode_step(
        self, state: State, codes: Int[Array, "B Q T"], active: Bool[Array, " B"] | None = None
    ) -> tuple[State, Float[Array, "B N"]]:
        """Take a step of `decode`; the state is the decoder's."""
        return self.decoder.step(state, self.quantizer.decode(codes), active)


def num_frames(config: MimiConfig, samples: int) -> int:
    """Return how many frames `samples` samples become; the last one is completed with zeros."""
    return -(-samples // config.frame_size)
