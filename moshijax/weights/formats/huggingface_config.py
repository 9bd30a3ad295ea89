"""Configs of the classes of Hugging Face Transformers to ours, and back.

`MimiModel`, `MoshiForConditionalGeneration` and `KyutaiSpeechToTextForConditionalGeneration` (`models/{mimi, moshi,
kyutai_speech_to_text}` of `transformers`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from moshijax.annotations import Context, Count, Factor, Parts, Positive, Seconds, Size, shown
from moshijax.codec import MimiConfig, QuantizerConfig, SeanetConfig
from moshijax.errors import ConfigError
from moshijax.lm import layouts
from moshijax.lm.config import DepthConfig, LMConfig
from moshijax.nn.transformer import TransformerConfig, require_moshi_form
from moshijax.tokens import EPAD, PAD
from moshijax.weights.formats.fields import checked

ARCHITECTURES = {
    "mimi": "MimiModel",
    "moshi": "MoshiForConditionalGeneration",
    "kyutai_speech_to_text": "KyutaiSpeechToTextForConditionalGeneration",
}
#: Where the codec of a language model lies: field of the config, and what its tensors begin with.
CODECS = {
    "moshi": ("audio_encoder_config", "audio_encoder."),
    "kyutai_speech_to_text": ("codec_config", "codec_model."),
}
# What the classes take for a field that a config.json leaves out; a field without an entry has to be there.
_MIMI = {
    **{"sampling_rate": 24000, "audio_channels": 1, "hidden_size": 512, "num_filters": 64, "num_residual_layers": 1},
    **{"upsampling_ratios": [8, 6, 5, 4], "kernel_size": 7, "last_kernel_size": 3, "residual_kernel_size": 3},
    **{"dilation_growth_rate": 2, "use_causal_conv": True, "pad_mode": "constant", "compress": 2},
    **{"trim_right_ratio": 1.0, "codebook_size": 2048, "codebook_dim": 256, "num_quantizers": 32},
    **{"use_conv_shortcut": False, "vector_quantization_hidden_dimension": 256, "num_semantic_quantizers": 1},
    **{"upsample_groups": 512, "num_hidden_layers": 8, "intermediate_size": 2048, "num_attention_heads": 8},
    **{"num_key_value_heads": 8, "head_dim": None, "hidden_act": "gelu", "norm_eps": 1e-5, "sliding_window": 250},
    **{"layer_scale_initial_scale": 0.01, "attention_bias": False},
}
_STACK = {
    **{"num_key_value_heads": None, "head_dim": None, "hidden_act": "silu", "rms_norm_eps": 1e-8},
}
_MOSHI = {
    **{"vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32},
    **{"sliding_window": 3000, "ffn_dim": 22528, "num_codebooks": 8, "audio_vocab_size": None},
    **_STACK,
}
_DEPTH = {
    **{"hidden_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 16, "ffn_dim": 5632},
    **_STACK,
}
_SPEECH_TO_TEXT = {
    **{"vocab_size": 4001, "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32},
    **{"sliding_window": 375, "ffn_dim": 11264, "num_codebooks": 32, "codebook_vocab_size": 2049},
    **{"pad_token_id": PAD},
    **_STACK,
}


# What the fields of these classes hold.
_HINTS: dict[str, Any] = {
    **dict.fromkeys(("sampling_rate", "audio_channels", "hidden_size", "num_filters", "kernel_size"), Size),
    **dict.fromkeys(("last_kernel_size", "residual_kernel_size", "dilation_growth_rate", "compress"), Size),
    **dict.fromkeys(("codebook_size", "codebook_dim", "vector_quantization_hidden_dimension", "upsample_groups"), Size),
    **dict.fromkeys(("intermediate_size", "num_attention_heads", "ffn_dim", "vocab_size", "codebook_vocab_size"), Size),
    **dict.fromkeys(("num_residual_layers", "num_quantizers", "num_semantic_quantizers", "num_hidden_layers"), Parts),
    **{"num_codebooks": Parts, "sliding_window": Context, "upsampling_ratios": tuple[Size, ...]},
    **{"layer_scale_initial_scale": Factor, "frame_rate": Positive | None, "trim_right_ratio": float},
    **{"norm_eps": float, "rms_norm_eps": float, "head_dim": Size | None, "num_key_value_heads": Size | None},
    **{"pad_token_id": Count | None, "audio_vocab_size": Size | None, "rope_theta": Positive},
    **dict.fromkeys(("rope_parameters", "rope_scaling"), dict | None),
    **dict.fromkeys(("audio_encoder_config", "depth_decoder_config", "codec_config"), dict),
}


#: Fields of the feature extractor of recognition: text behind audio, silence before it.
DELAYS = ("audio_delay_seconds", "audio_silence_prefix_seconds")


def is_config(fields: Mapping[str, Any]) -> bool:
    """Return whether a config.json is of one of these classes; the published package has `model_type` too."""
    model_type = fields.get("model_type")
    return (
        isinstance(model_type, str)
        and model_type in ARCHITECTURES
        and not {"delays", "seanet", "num_heads"} & set(fields)
    )


def _require(fields: Mapping[str, Any], name: str, value: Any, *allowed: Any) -> None:
    if value not in allowed:
        raise ConfigError(
            f"config.json of {fields.get('model_type')} has {name}={shown(value)}: only {allowed[0]!r} is supported; "
            "use another checkpoint"
        )


def _period(fields: Mapping[str, Any]) -> float:
    rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    _require(fields, "rope_type", rope.get("rope_type", "default"), "default")
    return checked({"rope_theta": fields.get("rope_theta", 10000.0), **rope}, _HINTS, "config.json")["rope_theta"]


def mimi_config(fields: Mapping[str, Any]) -> MimiConfig:
    """Return the codec that a config.json of `MimiModel` describes.

    Raises:
      ConfigError: a value that this codec does not support.
    """
    f = checked({**_MIMI, **fields}, _HINTS, "config.json")
    dim, heads = f["hidden_size"], f["num_attention_heads"]
    for name, allowed in (
        *(("audio_channels", (1,)), ("use_causal_conv", (True,)), ("pad_mode", ("constant",))),
        *(("trim_right_ratio", (1.0,)), ("use_conv_shortcut", (False,)), ("hidden_act", ("gelu",))),
        *(("norm_eps", (1e-5,)), ("attention_bias", (False,)), ("upsample_groups", (dim,))),
        *(("head_dim", (dim // heads, None)), ("codebook_dim", (f["vector_quantization_hidden_dimension"],))),
        *(("num_key_value_heads", (heads,)),),
    ):
        _require(f, name, f[name], *allowed)
    seanet = SeanetConfig(
        dimension=dim,
        n_filters=f["num_filters"],
        ratios=f["upsampling_ratios"],
        kernel_size=f["kernel_size"],
        residual_kernel_size=f["residual_kernel_size"],
        last_kernel_size=f["last_kernel_size"],
        n_residual_layers=f["num_residual_layers"],
        dilation_base=f["dilation_growth_rate"],
        compress=f["compress"],
    )
    frame_rate = f.get("frame_rate") or f["sampling_rate"] / (2 * seanet.hop)
    return MimiConfig(
        sample_rate=f["sampling_rate"],
        frame_rate=frame_rate,
        seanet=seanet,
        transformer=TransformerConfig(
            dim=dim,
            num_layers=f["num_hidden_layers"],
            num_heads=heads,
            hidden_dim=f["intermediate_size"],
            context=f["sliding_window"],
            max_period=_period(f),
            layer_scale=f["layer_scale_initial_scale"],
        ),
        quantizer=QuantizerConfig(
            dim=f["vector_quantization_hidden_dimension"],
            bins=f["codebook_size"],
            num_codebooks=f["num_quantizers"],
            semantic=f["num_semantic_quantizers"],
        ),
    )


def published_mimi_config(config: MimiConfig) -> dict[str, Any]:
    """Return the fields of `MimiModel` for a codec: the inverse of `mimi_config`.

    Raises:
      ConfigError: the class has no place for this codec.
    """
    s, t, q = config.seanet, config.transformer, config.quantizer
    for name, value, allowed in (
        ("steps per frame", config.resample_stride, 2),
        ("bins, a power of two", q.bins, 1 << (q.bins.bit_length() - 1)),
        ("kv_repeat", t.kv_repeat, 1),
    ):
        if value != allowed:
            raise ConfigError(f"the codec has {name} {value}, MimiModel needs {allowed}; use --format kyutai")
    if t.layer_scale is None:
        raise ConfigError("the codec has layer_scale None, MimiModel needs a number; use --format kyutai")
    return {
        "architectures": ["MimiModel"],
        "model_type": "mimi",
        "sampling_rate": config.sample_rate,
        "frame_rate": config.frame_rate,
        "audio_channels": 1,
        "hidden_size": t.dim,
        "num_filters": s.n_filters,
        "num_residual_layers": s.n_residual_layers,
        "upsampling_ratios": list(s.ratios),
        "kernel_size": s.kernel_size,
        "last_kernel_size": s.last_kernel_size,
        "residual_kernel_size": s.residual_kernel_size,
        "dilation_growth_rate": s.dilation_base,
        "use_causal_conv": True,
        "pad_mode": "constant",
        "compress": s.compress,
        "trim_right_ratio": 1.0,
        "codebook_size": q.bins,
        "codebook_dim": q.dim,
        "num_quantizers": q.num_codebooks,
        "use_conv_shortcut": False,
        "vector_quantization_hidden_dimension": q.dim,
        "num_semantic_quantizers": q.semantic,
        "upsample_groups": t.dim,
        "num_hidden_layers": t.num_layers,
        "intermediate_size": t.hidden_dim,
        "num_attention_heads": t.num_heads,
        "num_key_value_heads": t.num_heads,
        "head_dim": t.dim // t.num_heads,
        "hidden_act": "gelu",
        "norm_eps": 1e-5,
        "sliding_window": t.context,
        "layer_scale_initial_scale": t.layer_scale,
        "attention_bias": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": t.max_period},
    }


def _stack(f: Mapping[str, Any], **fields: Any) -> TransformerConfig:
    heads, dim = f["num_attention_heads"], f["hidden_size"]
    _require(f, "hidden_act", f["hidden_act"], "silu")
    _require(f, "rms_norm_eps", f["rms_norm_eps"], 1e-8)
    _require(f, "head_dim", f["head_dim"], dim // heads, None)
    return TransformerConfig(
        dim=dim,
        num_layers=f["num_hidden_layers"],
        num_heads=heads,
        kv_repeat=heads // (f["num_key_value_heads"] or heads),
        hidden_dim=f["ffn_dim"] // 2,
        gating="silu",
        norm="rms_norm_f32",
        **fields,
    )


def check_preprocessor(fields: Mapping[str, Any], config: MimiConfig) -> None:
    """Check that the preprocessor of a class agrees with its codec; nothing else of it is needed but the delays.

    Raises:
      ConfigError: another sample rate, or more than one channel.
    """
    checked(fields, dict.fromkeys(DELAYS, Seconds | None), "preprocessor_config.json")
    for name, want in (("sampling_rate", config.sample_rate), ("feature_size", 1)):
        if fields.get(name, want) != want:
            raise ConfigError(
                f"preprocessor_config.json has {name}={shown(fields[name])} where the codec has {want}; use the "
                "files of one model"
            )


def published_preprocessor(kind: str, sample_rate: int, said: Mapping[str, Any]) -> dict[str, Any]:
    """Return `preprocessor_config.json` for a class.

    Args:
      kind: its `model_type`.
      sample_rate: in Hz.
      said: the `stt_config` of a recognition model.
    """
    out = {
        "feature_extractor_type": "EncodecFeatureExtractor",
        "feature_size": 1,
        "sampling_rate": sample_rate,
        "padding_value": 0.0,
        "padding_side": "right",
        "return_attention_mask": True,
        "chunk_length_s": None,
        "overlap": None,
    }
    if kind == "kyutai_speech_to_text":
        out["feature_extractor_type"] = "KyutaiSpeechToTextFeatureExtractor"
        out |= {name: float(said.get(name, 0.0)) for name in DELAYS}
    return out


def loader_fields(fields: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> dict[str, Any]:
    """Return for a class what `moshijax.weights.formats.lm_config.loader_fields` returns for a published config."""
    if fields.get("model_type") != "kyutai_speech_to_text":
        return {}
    return {"model_type": "stt", "stt_config": {name: preprocessor.get(name) or 0.0 for name in DELAYS}}


def lm_config(fields: Mapping[str, Any]) -> LMConfig:
    """Return the language model that a config.json of one of the classes describes.

    Raises:
      ConfigError: a value that this model does not support.
    """
    if fields["model_type"] == "kyutai_speech_to_text":
        f = checked({**_SPEECH_TO_TEXT, **fields}, _HINTS, "config.json")
        return LMConfig(
            layout=layouts.from_delays([0] * (1 + f["num_codebooks"]), 0),
            card=f["codebook_vocab_size"] - 1,
            text_card=f["vocab_size"] - 1,
            temporal=_stack(f, context=f["sliding_window"], max_period=_period(f)),
            pad_id=PAD if f["pad_token_id"] is None else f["pad_token_id"],
            epad_id=EPAD,
        )
    f = checked({**_MOSHI, **fields}, _HINTS, "config.json")
    depth = checked({**_DEPTH, **f.get("depth_decoder_config", {})}, _HINTS, "config.json: depth_decoder_config")
    codec = checked({**_MIMI, **f.get("audio_encoder_config", {})}, _HINTS, "config.json: audio_encoder_config")
    # The class delays the acoustic codebooks by one frame (its `build_delay_pattern_mask`).
    return LMConfig(
        layout=layouts.dialogue(f["num_codebooks"], acoustic_delay=1),
        card=f["audio_vocab_size"] or codec["codebook_size"],
        text_card=f["vocab_size"],
        temporal=_stack(f, context=f["sliding_window"], max_period=_period(f)),
        depth=DepthConfig(_stack(depth, positional_embedding="none")),
    )


def _published_stack(stack: TransformerConfig) -> dict[str, Any]:
    """The fields that the classes have for the temporal and the depth transformer alike."""
    return {
        "hidden_size": stack.dim,
        "num_hidden_layers": stack.num_layers,
        "num_attention_heads": stack.num_heads,
        "num_key_value_heads": stack.num_heads // stack.kv_repeat,
        "head_dim": stack.dim // stack.num_heads,
        "ffn_dim": 2 * stack.hidden_dim,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-8,
    }


def published_lm_config(config: LMConfig, codec: MimiConfig) -> dict[str, Any]:
    """Return the fields of one of the classes for a language model with its codec: the inverse of `lm_config`.

    Raises:
      ConfigError: the classes have no place for this model.
    """
    t, layout = config.temporal, config.layout
    require_moshi_form(t, "a model of these classes", "keep it as a run or as imported weights")
    out: dict[str, Any] = {
        "vocab_size": config.text_card,
        **_published_stack(t),
        "sliding_window": t.context,
        "max_position_embeddings": t.context,
        "rope_parameters": {"rope_type": "default", "rope_theta": t.max_period},
        "dtype": t.param_dtype,
        "tie_word_embeddings": False,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if config.depth is None:
        rows = config.text_card + 1
        out |= {
            "model_type": "kyutai_speech_to_text",
            "vocab_size": rows,
            "codebook_vocab_size": config.card + 1,
            "num_codebooks": layout.n_q,
            "audio_bos_token_id": config.card,
            "audio_pad_token_id": rows + layout.n_q * (config.card + 1),
            "pad_token_id": config.pad_id,
            "bos_token_id": config.text_card,
            "codec_config": published_mimi_config(codec),
        }
    else:
        out |= {
            "model_type": "moshi",
            "audio_vocab_size": config.card,
            "num_codebooks": layout.dep_q,
            "audio_encoder_config": published_mimi_config(codec),
            "depth_decoder_config": {
                "model_type": "moshi_depth",
                "vocab_size": config.text_card,
                "audio_vocab_size": config.card,
                "input_size": t.dim,
                "num_codebooks": layout.dep_q,
                **_published_stack(config.depth.transformer),
                "max_position_embeddings": layout.dep_q + 1,
                "sliding_window": layout.dep_q,
            },
        }
    out["architectures"] = [ARCHITECTURES[out["model_type"]]]
    again = lm_config(out)
    if again.with_dtype("float32", "float32") != config.with_dtype("float32", "float32"):
        raise ConfigError(
            f"{out['architectures'][0]} cannot hold this model ({_difference(again, config)}); use --format kyutai"
        )
    return out


def _difference(theirs: Any, ours: Any, path: str = "") -> str:
    """The first field in which two configs differ."""
    for f in dataclasses.fields(ours):
        a, b = getattr(theirs, f.name), getattr(ours, f.name)
        if a != b and f.name not in ("dtype", "param_dtype"):
            if dataclasses.is_dataclass(a) and dataclasses.is_dataclass(b):
                return _difference(a, b, f"{path}{f.name}.")
            return f"its {path}{f.name} is {b!r}, there {a!r}" if len(repr(b)) < 80 else f"its {path}{f.name} differs"
    return ""
