"""The encoder of Whisper (arXiv 2212.04356): log-mel frames to features at half their rate.

`WhisperEncoder` of Transformers, `AudioEncoder` of `openai/whisper`. Attention has no mask: all of a padded clip is
seen. Layer norms are computed in float32 whatever the compute type.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from moshijax.annotations import Size
from moshijax.errors import ConfigError, require
from moshijax.nn.centred_conv import CentredConv
from moshijax.nn.functions import parameter_functions
from moshijax.nn.layout import is_stacked
from moshijax.nn.norms import Norm
from moshijax.nn.transformer import Transformer, TransformerConfig

if TYPE_CHECKING:
    from jaxtyping import Array, Float

Params = dict[str, Any]
#: Biases of attention; that of the keys would change nothing.
BIASES = ("q", "v", "out")


@dataclass(frozen=True)
class WhisperConfig:
    """An encoder.

    Attributes:
      mels: Bands of the log-mel frames.
      positions: Frames of the output, half those of the input.
      stack: The layers; see `whisper_stack`.
      scan_layers: Training compiles one layer and scans over stacked parameters.
    """

    mels: Size
    positions: Size
    stack: TransformerConfig
    scan_layers: bool = True

    def __post_init__(self) -> None:
        fixed = whisper_stack(self.stack.dim, self.stack.num_layers, self.stack.num_heads)
        for name in ("causal", "context", "gating", "norm", "positional_embedding", "attention_biases", "mlp_bias"):
            value, only = getattr(self.stack, name), getattr(fixed, name)
            require(value == only, f"stack.{name}={value!r}: an encoder of Whisper has {only!r}")

    def with_dtype(self, dtype: str, param_dtype: str | None = None) -> WhisperConfig:
        """Return the config with other types of computation and, where it is given, of the layers' parameters."""
        stack = replace(self.stack, dtype=dtype, param_dtype=param_dtype or self.stack.param_dtype)
        return replace(self, stack=stack)


def whisper_stack(dim: int, num_layers: int, num_heads: int, hidden_dim: int | None = None) -> TransformerConfig:
    """Return the stack of an encoder of this size; the feed-forward blocks are four times as wide by default."""
    return TransformerConfig(
        dim=dim,
        num_layers=num_layers,
        num_heads=num_heads,
        hidden_dim=hidden_dim or 4 * dim,
        positional_embedding="none",
        attention_biases=BIASES,
        mlp_bias=True,
        causal=False,
    )


#: Whisper large-v3, the encoder of LLaMA-Omni.
LARGE_V3 = WhisperConfig(128, 1500, whisper_stack(1280, 32, 20))
TINY = WhisperConfig(80, 1500, whisper_stack(384, 4, 6))


class WhisperEncoder(nn.Module):
    """Log-mel frames `[B, 2 P, mels]` to features `[B, P, D]` in the compute type.

    Attributes:
      config: What the encoder is.
      scan_layers: Parameters of layers have a leading axis.
    """

    config: WhisperConfig
    scan_layers: bool = False

    def setup(self) -> None:
        c, dim = self.config, self.config.stack.dim
        self.conv1 = CentredConv(c.mels, dim, 3)
        self.conv2 = CentredConv(dim, dim, 3, stride=2)
        # A table of sinusoids in published models, and kept as it is stored: a computed one differs by 4e-5.
        self.positions = self.param("positions", _sinusoids, (c.positions, dim), jnp.float32)
        self.stack = Transformer(c.stack, scan_layers=self.scan_layers)
        self.out_norm = Norm(dim, c.stack.norm, c.stack.param_dtype)

    def __call__(self, mel: Float[Array, "B 2P M"]) -> Float[Array, "B P D"]:
        """Encode whole clips.

        Raises:
          ConfigError: The clip does not have twice as many frames as there are positions, or other bands.
        """
        c = self.config
        if mel.shape[1:] != (2 * c.positions, c.mels):
            raise ConfigError(
                f"log-mel frames of shape {tuple(mel.shape)}: must be [B, {2 * c.positions}, {c.mels}]; pad or cut the "
                "audio first (moshijax.omni.spectrogram.log_mel)"
            )
        x = jax.nn.gelu(self.conv1(mel.astype(jnp.float32)), approximate=False)
        x = jax.nn.gelu(self.conv2(x), approximate=False) + self.positions
        return self.out_norm(self.stack(x))


def _sinusoids(key: Array, shape: tuple[int, int], dtype: Any) -> Float[Array, "P D"]:
    """Sines in the first half of the channels, cosines in the second."""
    half = shape[1] // 2
    angle = jnp.arange(shape[0])[:, None] * jnp.exp(-jnp.log(10000.0) / (half - 1) * jnp.arange(half))
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1).astype(dtype)


def init_boxed(config: WhisperConfig, key: Array) -> Params:
    """Return new parameters in the training layout, each boxed with its logical axis names (for sharding)."""
    mel = jnp.zeros((1, 2 * config.positions, config.mels), jnp.float32)
    return WhisperEncoder(config, config.scan_layers).init(key, mel)["params"]


init, abstract = parameter_functions(init_boxed)


def encode(config: WhisperConfig, params: Params, mel: Float[Array, "B 2P M"]) -> Float[Array, "B P D"]:
    """Return the features of clips.

    Args:
      config: Of the encoder.
      params: In either layout of `moshijax.nn.layout`.
      mel: As `moshijax.omni.spectrogram.log_mel` returns them.

    Raises:
      ConfigError: Frames that do not fit the encoder.
    """
    return WhisperEncoder(config, is_stacked(params, ("layers",))).apply({"params": params}, mel)
