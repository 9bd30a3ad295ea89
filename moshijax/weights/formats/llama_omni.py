"""Files of LLaMA-Omni (`ICTNLP/Llama-3.1-8B-Omni`): all parts in one checkpoint, the encoder under openai's names."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moshijax.annotations import Size, shown
from moshijax.errors import ConfigError
from moshijax.omni.adapter import AdapterConfig
from moshijax.omni.config import OmniConfig
from moshijax.omni.speech_decoder import SpeechDecoderConfig
from moshijax.omni.whisper import WhisperConfig
from moshijax.weights.formats.fields import checked
from moshijax.weights.formats.llama import published_text_config, stack_groups, text_config, text_groups
from moshijax.weights.formats.whisper import whisper_groups
from moshijax.weights.names import Group, renamed

MODEL_TYPE, ARCHITECTURE = "omni_speech2s_llama", "OmniSpeech2SLlamaForCausalLM"
#: What the names of the encoder begin with.
ENCODER = "model.speech_encoder."
_HINTS: dict[str, Any] = {
    **{"ctc_decoder_config": str, "ctc_upsample_factor": Size, "unit_vocab_size": Size},
    **{"speech_encoder_ds_rate": Size, "speech_encoder_hidden_size": Size},
}
_FIXED = {"speech_encoder_type": "whisper", "speech_projector_type": "linear", "speech_generator_type": "ctc"}


def omni_config(fields: Mapping[str, Any], encoder: WhisperConfig) -> OmniConfig:
    """Return the model that a config.json describes.

    Args:
      fields: of the config.json.
      encoder: what the tensors say that it is (`formats.whisper.config_of_shapes`); the config names its width alone.

    Raises:
      ConfigError: a field is missing or not usable, or the model is another one.
    """
    if fields.get("model_type") != MODEL_TYPE:
        raise ConfigError(
            f"config.json: model_type {shown(fields.get('model_type'))} must be {MODEL_TYPE}; use such a checkpoint"
        )
    missing = [name for name in (*_HINTS, *_FIXED) if name not in fields]
    if missing:
        raise ConfigError(f"config.json of {MODEL_TYPE} lacks {', '.join(missing)}; fetch it again")
    for name, value in _FIXED.items():
        if fields[name] != value:
            raise ConfigError(f"config.json has {name}={shown(fields[name])}: must be {value}; use another checkpoint")
    f = checked(fields, _HINTS, "config.json")
    text = text_config(fields, "llama")
    layers, dim, heads, hidden = _decoder_sizes(f["ctc_decoder_config"])
    stack = replace(text.stack, num_layers=layers, dim=dim, num_heads=heads, kv_repeat=1, hidden_dim=hidden)
    decoder = SpeechDecoderConfig(text.stack.dim, f["unit_vocab_size"], stack, f["ctc_upsample_factor"])
    width = f["speech_encoder_hidden_size"]
    if width != encoder.stack.dim:
        raise ConfigError(
            f"config.json has speech_encoder_hidden_size={width}, the encoder is {encoder.stack.dim} wide; use the "
            "files of one model"
        )
    return OmniConfig(encoder, AdapterConfig(width, text.stack.dim, stacked=f["speech_encoder_ds_rate"]), text, decoder)


def _decoder_sizes(text: str) -> tuple[int, int, int, int]:
    """Layers, width, heads and hidden width, written as a tuple in a string."""
    try:
        sizes = ast.literal_eval(text)
        layers, dim, heads, hidden = sizes
        usable = all(type(size) is int and 0 < size < 2**31 for size in sizes) and layers <= 4096
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        usable = False
    if not usable:
        raise ConfigError(
            f'config.json has ctc_decoder_config={shown(text)}: must be "(layers, width, heads, hidden width)"'
        )
    return layers, dim, heads, hidden


def published_omni_config(config: OmniConfig) -> dict[str, Any]:
    """Return the config.json of a model: the inverse of `omni_config`.

    Raises:
      ConfigError: the published model has no place for this one.
    """
    text, decoder = config.text.stack, config.decoder.stack
    sizes = (decoder.num_layers, decoder.dim, decoder.num_heads, decoder.hidden_dim)
    names = ("num_layers", "dim", "num_heads", "hidden_dim")
    like_text = replace(text, kv_repeat=1, **dict(zip(names, sizes, strict=True)))
    for name, value, allowed in (
        ("decoder.stack", decoder, like_text),
        ("adapter.hidden_dim", config.adapter.hidden_dim, AdapterConfig.hidden_dim),
        ("text.stack.attention_biases", text.attention_biases, ()),
    ):
        if value != allowed:
            raise ConfigError(f"{name}={value!r}: a published LLaMA-Omni has {allowed!r}; keep it as a run")
    return {
        **published_text_config(config.text),
        **{"architectures": [ARCHITECTURE], "model_type": MODEL_TYPE, **_FIXED},
        "speech_encoder_hidden_size": config.encoder.stack.dim,
        "speech_encoder_ds_rate": config.adapter.stacked,
        "ctc_decoder_config": f"({','.join(map(str, sizes))})",
        "ctc_upsample_factor": config.decoder.upsample,
        "unit_vocab_size": config.decoder.units,
        "ctc_loss_weight": 1.0,
        "speech_normalize": False,
        "tokenizer_padding_side": "right",
    }


def _affine(theirs: str, ours: str, shape: tuple[int, int]) -> list[Group]:
    return [renamed(f"{theirs}.weight", f"{ours}/kernel", shape), renamed(f"{theirs}.bias", f"{ours}/bias", shape[:1])]


def adapter_groups(config: AdapterConfig) -> list[Group]:
    """Return the published names of an adapter."""
    shapes = (config.hidden_dim, config.stacked * config.input_dim), (config.output_dim, config.hidden_dim)
    maps = [(f"model.speech_projector.linear{i}", f"adapter/linear{i}") for i in (1, 2)]
    return [group for names, shape in zip(maps, shapes, strict=True) for group in _affine(*names, shape)]


def decoder_groups(config: SpeechDecoderConfig) -> list[Group]:
    """Return the published names of a speech decoder."""
    stack = config.stack
    return [
        *_affine("speech_generator.input_proj", "decoder/input_proj", (stack.dim, config.input_dim)),
        *_affine("speech_generator.output_proj", "decoder/output_proj", (config.units + 1, stack.dim)),
        *stack_groups("speech_generator.layers", "decoder/stack", stack),
    ]


def omni_groups(config: OmniConfig) -> list[Group]:
    """Return the published names of all parts."""
    return [
        *text_groups(config.text, "text/"),
        *whisper_groups(config.encoder, "openai", ENCODER, "encoder/"),
        *adapter_groups(config.adapter),
        *decoder_groups(config.decoder),
    ]
