"""LLaMA-Omni as a whole: an encoder, an adapter, a text model and a speech decoder that fit each other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax

from moshijax.errors import require
from moshijax.nn.functions import parameter_functions
from moshijax.nn.rope import RopeScaling
from moshijax.nn.transformer import TransformerConfig
from moshijax.omni import adapter, speech_decoder, text_model, whisper
from moshijax.omni.adapter import AdapterConfig
from moshijax.omni.speech_decoder import SpeechDecoderConfig
from moshijax.omni.text_model import TextConfig
from moshijax.omni.whisper import WhisperConfig

if TYPE_CHECKING:
    from jaxtyping import Array


@dataclass(frozen=True)
class OmniConfig:
    """The parts of a model; its units are made audible by a vocoder of their own.

    Attributes:
      encoder: Of the question's speech.
      adapter: From its features to embeddings.
      text: The text model.
      decoder: From its states to units.
    """

    encoder: WhisperConfig
    adapter: AdapterConfig
    text: TextConfig
    decoder: SpeechDecoderConfig

    def __post_init__(self) -> None:
        for name, value, other, width in (
            ("adapter.input_dim", self.adapter.input_dim, "encoder.stack.dim", self.encoder.stack.dim),
            ("adapter.output_dim", self.adapter.output_dim, "text.stack.dim", self.text.stack.dim),
            ("decoder.input_dim", self.decoder.input_dim, "text.stack.dim", self.text.stack.dim),
        ):
            require(value == width, f"{name}={value} must equal {other}={width}")

    def with_dtype(self, dtype: str, param_dtype: str | None = None) -> OmniConfig:
        """Return the config with other types of computation and, where it is given, of parameters."""
        return OmniConfig(
            self.encoder.with_dtype(dtype, param_dtype),
            replace(self.adapter, dtype=dtype, param_dtype=param_dtype or self.adapter.param_dtype),
            self.text.with_dtype(dtype, param_dtype),
            self.decoder.with_dtype(dtype, param_dtype),
        )


def init_boxed(config: OmniConfig, key: Array) -> dict[str, Any]:
    """Return new parameters by part, in the training layout, each boxed with its logical axis names (for sharding)."""
    keys = jax.random.split(key, 4)
    return {
        "encoder": whisper.init_boxed(config.encoder, keys[0]),
        "adapter": adapter.init_boxed(config.adapter, keys[1]),
        "text": text_model.init_boxed(config.text, keys[2]),
        "decoder": speech_decoder.init_boxed(config.decoder, keys[3]),
    }


init, abstract = parameter_functions(init_boxed)


def llama_stack(
    dim: int, num_layers: int, num_heads: int, kv_heads: int, hidden_dim: int, **other: Any
) -> TransformerConfig:
    """Return the stack of a Llama of this size; `other`: further fields of `TransformerConfig`."""
    settings = dict(gating="silu", norm="rms_norm", positional_embedding="rope_concat", **other)
    return TransformerConfig(dim, num_layers, num_heads, hidden_dim, kv_repeat=num_heads // kv_heads, **settings)


_LLAMA_31 = dict(max_period=500000.0, rope_scaling=RopeScaling(), context=131072)
#: Llama 3.1 8B, the text model of LLaMA-Omni.
LLAMA_31_8B = TextConfig(128256, llama_stack(4096, 32, 32, 8, 14336, **_LLAMA_31))
#: LLaMA-Omni as it is published (`ICTNLP/Llama-3.1-8B-Omni`).
LLAMA_OMNI_8B = OmniConfig(
    whisper.LARGE_V3,
    AdapterConfig(1280, 4096),
    LLAMA_31_8B,
    SpeechDecoderConfig(4096, 1000, llama_stack(4096, 2, 32, 32, 11008, **_LLAMA_31)),
)


def _qwen25(
    dim: int, num_layers: int, num_heads: int, kv_heads: int, hidden_dim: int, vocab: int, tied: bool
) -> TextConfig:
    stack = llama_stack(
        *(dim, num_layers, num_heads, kv_heads, hidden_dim),
        max_period=1e6,
        attention_biases=("q", "k", "v"),
        context=32768,
    )
    return TextConfig(vocab, replace(stack, norm="rms_norm_1e-6"), tied)


#: Qwen2.5 of the sizes of LLaMA-Omni 2.
QWEN25 = {
    "0.5B": _qwen25(896, 24, 14, 2, 4864, 151936, True),
    "1.5B": _qwen25(1536, 28, 12, 2, 8960, 151936, True),
    "3B": _qwen25(2048, 36, 16, 2, 11008, 151936, True),
    "7B": _qwen25(3584, 28, 28, 4, 18944, 152064, False),
    "14B": _qwen25(5120, 48, 40, 8, 13824, 152064, False),
}
