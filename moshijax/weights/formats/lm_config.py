"""Published `config.json` of language models to `LMConfig`, and back.

Fields and defaults are those of `models/loaders.py` and `models/lm.py` of `moshi`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moshijax.annotations import Context, Count, Factor, Frames, Parts, Positive, Seconds, Size, nearest, shown
from moshijax.config_json import from_json
from moshijax.errors import ConfigError
from moshijax.lm import layouts
from moshijax.lm.config import Conditioner, DepthConfig, LMConfig, LookupConditioner, TensorConditioner
from moshijax.nn.mlp import hidden_width
from moshijax.nn.transformer import TransformerConfig, require_moshi_form
from moshijax.weights.formats.fields import ADAPTER_FIELDS, Temperature, checked

#: Fields that describe the other files, the tokenizer or the generation, not the parameters.
LOADER_FIELDS = (
    "moshi_name",
    "mimi_name",
    "mimi_config_name",
    "tokenizer_name",
    "lora_name",
    "model_type",
    "lm_gen_config",
    "tts_config",
    "stt_config",
    "model_id",
    "gradient_checkpointing",
    "lora_rank",
    "lora_scaling",
)

#: Fields of `lm_gen_config`, the arguments of the published generator, that an artifact has a place for.
GENERATION: dict[str, Any] = {
    "temp": Temperature | None,
    "temp_text": Temperature | None,
    "text_temp": Temperature | None,
    "top_k": Count | None,
    "top_k_text": Count | None,
    "use_sampling": bool | None,
}
#: Fields of `tts_config` that the use of the model is made from.
SYNTHESIS: dict[str, Any] = {
    "audio_delay": Seconds | None,
    "second_stream_ahead": Frames | None,
    "max_speakers": Parts | None,
}
#: Fields of `stt_config`.
RECOGNITION: dict[str, Any] = {"audio_delay_seconds": Seconds | None, "audio_silence_prefix_seconds": Seconds | None}
#: Tables among the fields of the loader, and the fields in them that count.
TABLES: dict[str, dict[str, Any]] = {
    "lm_gen_config": GENERATION,
    "tts_config": SYNTHESIS,
    "stt_config": RECOGNITION,
    "model_id": {},
}
MODEL_TYPES = ("moshi", "hibiki", "stt", "tts", "personaplex")

#: Fields of the language model: what they hold, and the default of the published library.
FIELDS: dict[str, tuple[Any, Any]] = {
    "delays": (tuple[Frames, ...], [0]),
    "n_q": (Parts, 8),
    "dep_q": (Parts, 8),
    "card": (Size, 1024),
    "text_card": (Size, 32000),
    "text_card_out": (Size | None, None),
    "dim": (Size, 128),
    "num_heads": (Size, 8),
    "num_layers": (Parts, None),
    "hidden_scale": (Positive, 4),
    "norm": (str, "layer_norm"),
    "norm_emb": (bool, False),
    "bias_proj": (bool, False),
    "causal": (bool, True),
    "context": (Context | None, None),
    "layer_scale": (Factor | None, None),
    "gating": (str | None, "none"),
    "kv_repeat": (Size, 1),
    "max_period": (Positive, 10000.0),
    "positional_embedding": (str, "sin"),
    "positional_scale": (Factor, 1.0),
    "cross_attention": (bool, False),
    "depformer_dim": (Size, 256),
    "depformer_dim_feedforward": (Size | tuple[Size, ...] | None, None),
    "depformer_multi_linear": (bool, False),
    "depformer_weights_per_step": (bool, False),
    "depformer_weights_per_step_schedule": (tuple[Parts, ...] | None, None),
    "depformer_low_rank_embeddings": (Size | None, None),
    "depformer_pos_emb": (str, "sin"),
    "depformer_norm": (str | None, None),
    "existing_text_padding_id": (Count, 3),
    "existing_text_end_padding_id": (Count, 0),
    "extra_heads_num_heads": (Parts, 0),
    "extra_heads_dim": (Size, 6),
    "conditioners": (dict[str, dict] | None, None),
    "fuser": (dict[str, Any] | None, None),
    "quantize": (bool, False),
    "lora": (bool, False),
    "demux_second_stream": (bool, False),
    "demux_second_text_stream": (bool, False),
}
DEFAULTS = {name: default for name, (_, default) in FIELDS.items()}

#: Fields of a stack that the depth transformer takes from the temporal one unless it has its own.
INHERITED = ("num_layers", "layer_scale", "gating", "kv_repeat", "max_period", "positional_scale")
#: Fields without effect: the depth transformer sees all its steps and is causal.
IGNORED = ("depformer_context", "depformer_causal", "depformer_cross_attention", "depformer_positional_embedding")

#: What the loader assumes for a weight file without a config.json: the released Moshi 7B.
LEGACY_7B: dict[str, Any] = {
    "dim": 4096,
    "text_card": 32000,
    "existing_text_padding_id": 3,
    "n_q": 16,
    "dep_q": 8,
    "card": 2048,
    "num_heads": 32,
    "num_layers": 32,
    "hidden_scale": 4.125,
    "causal": True,
    "layer_scale": None,
    "context": 3000,
    "max_period": 10000,
    "gating": "silu",
    "norm": "rms_norm_f32",
    "positional_embedding": "rope",
    "depformer_dim": 1024,
    "depformer_dim_feedforward": 4224,
    "depformer_num_heads": 16,
    "depformer_num_layers": 6,
    "depformer_layer_scale": None,
    "depformer_multi_linear": True,
    "depformer_context": 8,
    "depformer_max_period": 10000,
    "depformer_gating": "silu",
    "depformer_pos_emb": "none",
    "depformer_weights_per_step": True,
    "delays": [0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1],
}


#: A depth step for every row of the user too, and the names of the files, none of which its config.json states
#: (`models/loaders.py` of NVIDIA's `personaplex`).
PERSONAPLEX: dict[str, Any] = {
    **LEGACY_7B,
    "dep_q": 16,
    "mimi_name": "tokenizer-e351c8d8-checkpoint125.safetensors",
    "tokenizer_name": "tokenizer_spm_32k_3.model",
}


def completed(published: Mapping[str, Any]) -> dict[str, Any]:
    """Return a published config with what its own loader knows.

    PersonaPlex states no architecture; other configs are returned as they are.
    """
    if published.get("model_type") != "personaplex" or "dim" in published:
        return dict(published)
    return {**PERSONAPLEX, **{name: value for name, value in published.items() if name in LOADER_FIELDS}}


def loader_fields(published: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a published config says beside the parameters.

    These are file names, the kind of model, sampling, and delays in seconds.

    Raises:
      ConfigError: a value of the wrong type, or an unknown field in a table.
    """
    found = {name: published[name] for name in LOADER_FIELDS if name in published}
    model_type = found.get("model_type", "moshi")
    if model_type not in MODEL_TYPES:
        raise ConfigError(f"config.json: model_type is {shown(model_type)}: must be one of {', '.join(MODEL_TYPES)}")
    for name, value in found.items():
        if name in TABLES:
            from_json(dict[str, Any], value, f"config.json: {name}")
            checked(value, TABLES[name], f"config.json: {name}")
        elif name.endswith("_name"):
            from_json(str | None, value, f"config.json: {name}")
    checked(found, ADAPTER_FIELDS, "config.json")
    return found


def unused_fields(published: Mapping[str, Any]) -> list[str]:
    """Return the fields of `lm_gen_config` and `tts_config` that are kept and have no effect."""
    tables = ((name, published.get(name)) for name in ("lm_gen_config", "tts_config"))
    return [f"{name}.{key}" for name, table in tables for key in table or () if key not in TABLES[name]]


def lm_config(published: Mapping[str, Any]) -> LMConfig:
    """Return the configuration that a published `config.json` describes.

    Raises:
      ConfigError: an unknown field (with the nearest name), a missing one, or one that this model family lacks.
    """
    known = (*DEFAULTS, *LOADER_FIELDS, *IGNORED, "depformer_num_heads", *(f"depformer_{n}" for n in INHERITED))
    for name in published:
        if name not in known:
            raise ConfigError(
                f"config.json has an unknown field {name!r}; {nearest(name, known)}remove it, or check it"
            )
    loader_fields(published)
    field = {**DEFAULTS, **{k: v for k, v in published.items() if k in DEFAULTS}}
    for name in ("num_layers",) + (("depformer_num_heads",) if field["dep_q"] else ()):
        if published.get(name) is None:
            raise ConfigError(f"config.json lacks {name}: it has no default; add it")
    field = checked(field, {name: hint for name, (hint, _) in FIELDS.items()}, "config.json")
    delays, n_q = field["delays"], field["n_q"]
    if len(delays) != n_q + 1:
        raise ConfigError(f"config.json has {len(delays)} delays for n_q={n_q}: one per row is needed, text first")
    gating = field["gating"] or "none"
    feedforward = int(field["hidden_scale"] * field["dim"])
    temporal = TransformerConfig(
        dim=field["dim"],
        num_layers=field["num_layers"],
        num_heads=field["num_heads"],
        hidden_dim=hidden_width(feedforward, field["dim"], gating),
        gating=gating,
        norm=field["norm"],
        positional_embedding=field["positional_embedding"],
        max_period=field["max_period"],
        positional_scale=field["positional_scale"],
        context=field["context"],
        kv_repeat=field["kv_repeat"],
        layer_scale=field["layer_scale"],
        causal=field["causal"],
        cross_attention=field["cross_attention"],
    )
    return LMConfig(
        layout=layouts.from_delays(delays, field["dep_q"], published.get("model_type") == "personaplex"),
        card=field["card"],
        text_card=field["text_card"],
        text_card_out=field["text_card_out"],
        demux_text=field["demux_second_stream"] or field["demux_second_text_stream"],
        temporal=temporal,
        depth=_depth_config(field, published) if field["dep_q"] else None,
        norm_emb=field["norm_emb"],
        bias_proj=field["bias_proj"],
        extra_heads=field["extra_heads_num_heads"],
        extra_heads_dim=field["extra_heads_dim"],
        conditioners=_conditioners(field),
        cross_positions=_cross_positions(field["fuser"] or {}),
        pad_id=field["existing_text_padding_id"],
        epad_id=field["existing_text_end_padding_id"],
    )


def _depth_config(field: Mapping[str, Any], published: Mapping[str, Any]) -> DepthConfig:
    own = {name: published.get(f"depformer_{name}", field[name]) for name in INHERITED}
    hints = {f"depformer_{name}": FIELDS[name][0] for name in INHERITED} | {"depformer_num_heads": Size}
    checked(published, hints, "config.json")
    dim, gating = field["depformer_dim"], own["gating"] or "none"
    feedforward = field["depformer_dim_feedforward"]
    if feedforward is None:
        feedforward = int(field["hidden_scale"] * dim)
    widths = [hidden_width(f, dim, gating) for f in (feedforward if isinstance(feedforward, tuple) else [feedforward])]
    stack = TransformerConfig(
        dim=dim,
        num_layers=own["num_layers"],
        num_heads=published["depformer_num_heads"],
        hidden_dim=max(widths, default=0),
        gating=gating,
        norm=field["norm"],
        positional_embedding=field["depformer_pos_emb"],
        max_period=own["max_period"],
        positional_scale=own["positional_scale"],
        kv_repeat=own["kv_repeat"],
        layer_scale=own["layer_scale"],
    )
    return DepthConfig(
        stack,
        weights_per_step=field["depformer_weights_per_step"],
        multi_linear=field["depformer_multi_linear"],
        schedule=field["depformer_weights_per_step_schedule"],
        hidden_dims=tuple(widths) if len(set(widths)) > 1 else None,
        low_rank=field["depformer_low_rank_embeddings"],
        output_norm=field["depformer_norm"],
    )


def _conditioners(field: Mapping[str, Any]) -> tuple[Conditioner, ...]:
    """Conditioners in the order in which they are fused: the summed ones, then those for cross-attention."""
    entries, fuser = dict(field["conditioners"] or {}), field["fuser"] or {}
    if fuser.get("prepend"):
        raise ConfigError(
            f"config.json prepends {shown(fuser['prepend'])}: conditions are only summed or cross-attended"
        )
    found: list[Conditioner] = []
    for fuse in ("sum", "cross"):
        for name in from_json(tuple[str, ...], fuser.get(fuse, []), f"config.json: fuser.{fuse}"):
            entry, where = entries.pop(name, {}), f"config.json: conditioners.{name}"
            kind = entry.get("type")
            if kind not in ("lut", "tensor"):
                raise ConfigError(f"conditioner {name!r} has type={shown(kind)}: must be lut or tensor")
            fields = from_json(dict[str, Any], entry.get(kind), f"{where}.{kind}")
            hints = {"dim": Size} if kind == "tensor" else {"n_bins": Size, "dim": Size}
            for missing in sorted(hints.keys() - fields.keys()):
                raise ConfigError(f"{where}.{kind} lacks {missing}: it has no default; add it")
            fields = checked(fields, hints | {"possible_values": tuple[str, ...] | None}, f"{where}.{kind}")
            if kind == "tensor":
                found.append(TensorConditioner(name, fields["dim"], 1 if fuse == "sum" else None, fuse))
                continue
            found.append(LookupConditioner(name, fields["n_bins"], fields["dim"], fields.get("possible_values"), fuse))
    if entries:
        raise ConfigError(f"conditioner {sorted(entries)[0]!r} is not in the fuser: name it under sum or cross")
    return tuple(found)


def _cross_positions(fuser: Mapping[str, Any]) -> float | None:
    hints = {"cross_attention_pos_emb": bool, "cross_attention_pos_emb_scale": Factor}
    fields = checked(fuser, hints, "config.json: fuser")
    return fields.get("cross_attention_pos_emb_scale", 1.0) if fields.get("cross_attention_pos_emb") else None


def _published_conditioner(conditioner: Conditioner) -> dict[str, Any]:
    if isinstance(conditioner, TensorConditioner):
        return {"type": "tensor", "tensor": {"dim": conditioner.dim}}
    fields: dict[str, Any] = {"n_bins": conditioner.bins, "dim": conditioner.dim, "tokenizer": "noop"}
    if conditioner.values is not None:
        fields["possible_values"] = list(conditioner.values)
    return {"type": "lut", "lut": fields}


def published_config(config: LMConfig) -> dict[str, Any]:
    """Return the published fields of a configuration: the inverse of `lm_config`, but for the names of speakers.

    Raises:
      ConfigError: the published form has no place for this model.
    """
    stack, depth = config.temporal, config.depth
    require_moshi_form(stack, "the published form of Moshi", "keep it as a run or as imported weights")
    out: dict[str, Any] = {
        "dim": stack.dim,
        "num_layers": stack.num_layers,
        "num_heads": stack.num_heads,
        "hidden_scale": _feedforward(stack) / stack.dim,
        "n_q": config.layout.n_q,
        "dep_q": config.layout.dep_q,
        "card": config.card,
        "text_card": config.text_card,
        "text_card_out": config.text_card_out,
        "delays": list(config.layout.delays),
        "norm": stack.norm,
        "norm_emb": config.norm_emb,
        "bias_proj": config.bias_proj,
        "gating": stack.gating,
        "positional_embedding": stack.positional_embedding,
        "max_period": stack.max_period,
        "positional_scale": stack.positional_scale,
        "context": stack.context,
        "causal": stack.causal,
        "kv_repeat": stack.kv_repeat,
        "layer_scale": stack.layer_scale,
        "existing_text_padding_id": config.pad_id,
        "existing_text_end_padding_id": config.epad_id,
        "extra_heads_num_heads": config.extra_heads,
        "extra_heads_dim": config.extra_heads_dim,
    }
    if depth is not None:
        inner = depth.transformer
        feedforward: Any = _feedforward(inner)
        if depth.hidden_dims is not None:
            feedforward = [_feedforward(inner, width) for width in depth.hidden_dims]
        out |= {
            "depformer_dim": inner.dim,
            "depformer_num_layers": inner.num_layers,
            "depformer_num_heads": inner.num_heads,
            "depformer_dim_feedforward": feedforward,
            "depformer_multi_linear": depth.multi_linear,
            "depformer_weights_per_step": depth.weights_per_step,
            "depformer_weights_per_step_schedule": None if depth.schedule is None else list(depth.schedule),
            "depformer_low_rank_embeddings": depth.low_rank,
            "depformer_pos_emb": inner.positional_embedding,
            "depformer_norm": depth.output_norm,
            "depformer_gating": inner.gating,
            "depformer_layer_scale": inner.layer_scale,
            "depformer_kv_repeat": inner.kv_repeat,
            "depformer_max_period": inner.max_period,
            "depformer_positional_scale": inner.positional_scale,
        }
        if inner.norm != stack.norm:
            raise ConfigError(f"norm={stack.norm} and depth norm={inner.norm}: the published format has one for both")
    if any(stream.given and stream.scored for stream in config.layout.streams):
        out["model_type"] = "personaplex"  # whose rows of the user have depth steps, but are heard
    if stack.cross_attention:
        out["cross_attention"] = True
    if config.demux_text:
        out["demux_second_text_stream"] = True
    if config.conditioners:
        out["conditioners"] = {c.name: _published_conditioner(c) for c in config.conditioners}
        out["fuser"] = {fuse: [c.name for c in config.conditioners if c.fuse == fuse] for fuse in ("sum", "cross")}
        out["fuser"]["prepend"] = []
        if config.cross_positions is not None:
            out["fuser"] |= {
                "cross_attention_pos_emb": True,
                "cross_attention_pos_emb_scale": config.cross_positions,
            }
    return out


def _feedforward(stack: TransformerConfig, hidden: int | None = None) -> int:
    """A published `dim_feedforward` that gives the hidden width."""
    hidden = stack.hidden_dim if hidden is None else hidden
    candidates = (hidden,) if stack.gating == "none" else (-(-3 * hidden // 2), 3 * hidden // 2 + 1, 4 * stack.dim)
    for feedforward in candidates:
        scale = feedforward / stack.dim
        if hidden_width(feedforward, stack.dim, stack.gating) == hidden and int(scale * stack.dim) == feedforward:
            return feedforward
    raise ConfigError(f"hidden_dim={hidden} with dim={stack.dim}: no published dim_feedforward gives it; change it")
