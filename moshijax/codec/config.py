"""Configuration of the codec, and the named ones."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction

from moshijax.annotations import Parts, Positive, Size
from moshijax.errors import require
from moshijax.nn.transformer import TransformerConfig, require_moshi_form


@dataclass(frozen=True)
class SeanetConfig:
    """The convolutional encoder and decoder.

    Attributes:
      dimension: width of the latent.
      n_filters: channels next to the waveform; every ratio doubles them.
      ratios: up-sampling factors in the decoder's order; the encoder takes them backwards.
      kernel_size: of the first convolution.
      residual_kernel_size: of the residual blocks.
      last_kernel_size: of the last convolution.
      n_residual_layers: residual blocks per ratio; their dilation is `dilation_base ** index`.
      dilation_base: see above.
      compress: factor by which residual blocks have fewer channels inside.
    """

    dimension: Size = 512
    n_filters: Size = 64
    ratios: tuple[Size, ...] = (8, 6, 5, 4)
    kernel_size: Size = 7
    residual_kernel_size: Size = 3
    last_kernel_size: Size = 3
    n_residual_layers: Parts = 1
    dilation_base: Size = 2
    compress: Size = 2

    def __post_init__(self):
        for name in ("dimension", "n_filters", "kernel_size", "residual_kernel_size", "last_kernel_size", "compress"):
            require(getattr(self, name) >= 1, f"seanet {name} {getattr(self, name)} must be at least 1")
        require(
            len(self.ratios) > 0 and all(r >= 1 for r in self.ratios),
            f"seanet ratios {self.ratios} must be one or more positive numbers",
        )
        require(self.n_residual_layers >= 0, f"seanet n_residual_layers {self.n_residual_layers} must not be negative")
        require(
            self.n_filters % self.compress == 0,
            f"seanet n_filters {self.n_filters} must be a multiple of compress {self.compress}",
        )

    @property
    def hop(self) -> int:
        """Samples per latent step."""
        return math.prod(self.ratios)


@dataclass(frozen=True)
class QuantizerConfig:
    """The split residual vector quantiser.

    Attributes:
      dim: width of the codes.
      bins: entries per codebook.
      num_codebooks: all of them, semantic ones included.
      semantic: how many are semantic; a teacher is heard by the first. Published codecs have one.
    """

    dim: Size = 256
    bins: Size = 2048
    num_codebooks: Parts = 32
    semantic: Parts = 1

    def __post_init__(self):
        require(
            self.dim >= 1 and self.bins >= 2, f"quantizer dim {self.dim} needs 1 or more, bins {self.bins} 2 or more"
        )
        require(
            1 <= self.semantic < self.num_codebooks,
            f"quantizer semantic {self.semantic} must be 1 or more and less than num_codebooks {self.num_codebooks}",
        )


@dataclass(frozen=True)
class MimiConfig:
    """A Mimi codec.

    Attributes:
      sample_rate: Hz.
      frame_rate: frames (code columns) per second.
      seanet: the convolutions.
      transformer: of encoder and decoder alike; they run at the rate of the convolutional latent.
      quantizer: the codebooks.
      ring: capacity of the attention caches when streaming: `exact` (live codes equal whole-file codes) or
        `window` (one position less, as the PyTorch streaming codec has it; for parity tests).
    """

    sample_rate: Size = 24_000
    frame_rate: Positive = 12.5
    seanet: SeanetConfig = field(default_factory=SeanetConfig)
    transformer: TransformerConfig = field(
        default_factory=lambda: TransformerConfig(
            dim=512, num_layers=8, num_heads=8, hidden_dim=2048, context=250, layer_scale=0.01
        )
    )
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    ring: str = "exact"

    def __post_init__(self):
        require(self.sample_rate > 0, f"sample_rate {self.sample_rate} must be positive")
        require(self.frame_rate > 0, f"frame_rate {self.frame_rate} must be positive")
        frame = Fraction(self.sample_rate) / Fraction(self.frame_rate)
        require(
            frame.denominator == 1 and frame.numerator % self.seanet.hop == 0,
            f"a frame of {float(frame):g} samples (sample_rate {self.sample_rate} / frame_rate {self.frame_rate}) must "
            f"be a multiple of the product {self.seanet.hop} of seanet ratios {self.seanet.ratios}",
        )
        require_moshi_form(self.transformer, "the codec's transformer")
        require(
            self.transformer.dim == self.seanet.dimension,
            f"transformer dim {self.transformer.dim} must equal seanet dimension {self.seanet.dimension}",
        )
        require(
            self.transformer.context is not None and self.transformer.causal,
            "the codec's transformer must be causal with a context, so that streaming has a bounded state",
        )
        require(self.ring in ("exact", "window"), f"ring {self.ring!r} must be 'exact' or 'window'")

    @property
    def frame_size(self) -> int:
        """Samples per frame."""
        return round(self.sample_rate / self.frame_rate)

    @property
    def resample_stride(self) -> int:
        """Steps of the convolutional latent per frame."""
        return self.frame_size // self.seanet.hop

    @property
    def num_codebooks(self) -> int:
        """Codebooks of the quantiser, semantic and acoustic."""
        return self.quantizer.num_codebooks

    @property
    def bins(self) -> int:
        """Entries per codebook."""
        return self.quantizer.bins
