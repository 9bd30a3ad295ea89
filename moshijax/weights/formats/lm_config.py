"""Published `config.json` of language models to `LMConfig`, and back.

Fields and defaults are those of `models/loaders.py` and `models/lm.py` of `moshi`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from moshijax.errors import ConfigError
from moshijax.lm import layouts
from moshijax.lm.config import Conditioner, DepthConfig, LMConfig, LookupConditioner, TensorConditioner
from moshijax.nn.mlp import hidden_width
from moshijax.nn.transformer import TransformerConfig

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

TABLES = ("lm_gen_config", "tts_config", "stt_config", "model_id")
#: Fields of `lm_gen_config`: the arguments of the published generator.
GENERATION_FIELDS = (
    *("temp", "temp_text", "top_k", "top_k_text", "use_sampling", "cfg_coef", "check"),
    *("cfg_is_masked_until", "cfg_is_no_text", "support_out_of_sync"),
)
MODEL_TYPES = ("moshi", "hibiki", "stt", "tts", "personaplex")

#: Fields of the language model with the defaults of the published library.
DEFAULTS: dict[str, Any] = {
    "delays": [0],
    "n_q": 8,
    "dep_q": 8,
    "card": 1024,
    "text_card": 32000,
    "text_card_out": None,
    "dim": 128,
    "num_heads": 8,
    "num_layers": None,
    "hidden_scale": 4,
    "norm": "layer_norm",
    "norm_emb": False,
    "bias_proj": False,
    "causal": True,
    "context": None,
    "layer_scale": None,
    "gating": "none",
    "kv_repeat": 1,
    "max_period": 10000.0,
    "positional_embedding": "sin",
    "positional_scale": 1.0,
    "cross_attention": False,
    "depformer_dim": 256,
    "depformer_dim_feedforward": None,
    "depformer_multi_linear": False,
    "depformer_weights_per_step": False,
    "depformer_weights_per_step_schedule": None,
    "depformer_low_rank_embeddings": None,
    "depformer_pos_emb": "sin",
    "depformer_norm": None,
    "existing_text_padding_id": 3,
    "existing_text_end_padding_id": 0,
    "extra_heads_num_heads": 0,
    "extra_heads_dim": 6,
    "conditioners": None,
    "fuser": None,
    "quantize": False,
    "lora": False,
    "demux_second_stream": False,
    "demux_second_text_stream": False,
}

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
    """A published config with what its own loader knows: PersonaPlex states no architecture; others are as they are."""
    if published.get("model_type") != "personaplex" or "dim" in published:
        return dict(published)
    return {**PERSONAPLEX, **{name: value for name, value in published.items() if name in LOADER_FIELDS}}


def loader_fields(published: Mapping[str, Any]) -> dict[str, Any]:
    """What a published config says beside the parameters: names of files, kind of model, sampling, delays in seconds.

    Raises:
      ConfigError: a value of the wrong type, or an unknown field in a table.
    """
    found = {name: published[name] for name in LOADER_FIELDS if name in published}
    if found.get("model_type", "moshi") not in MODEL_TYPES:
        raise ConfigError(
            f"config.json has model_type={found['model_type']!r}: must be one of {', '.join(MODEL_TYPES)}"
        )
    for name, value in found.items():
        if name in TABLES and not isinstance(value, Mapping):
            raise ConfigError(f"config.json has {name}={value!r}: must be a table")
        if name.endswith("_name") and not (value is None or isinstance(value, str)):
            raise ConfigError(f"config.json has {name}={value!r}: must be the name of a file")
    for name in found.get("lm_gen_config", {}):
        if name not in GENERATION_FIELDS:
            raise ConfigError(f"config.json has lm_gen_config.{name}: must be one of {', '.join(GENERATION_FIELDS)}")
    return found


def lm_config(published: Mapping[str, Any]) -> LMConfig:
    """The configuration that a published `config.json` describes.

    Raises:
      ConfigError: an unknown field (with the nearest name), a missing one, or one that this model family lacks.
    """
    known = (*DEFAULTS, *LOADER_FIELDS, *IGNORED, "depformer_num_heads", *(f"depformer_{n}" for n in INHERITED))
    for name in published:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            remedy = f"nearest is {near[0]!r}" if near else "remove it"
            raise ConfigError(f"config.json has an unknown field {name!r}; {remedy}")
    loader_fields(published)
    field = {**DEFAULTS, **{k: v for k, v in published.items() if k in DEFAULTS}}
    for name in ("num_layers",) + (("depformer_num_heads",) if field["dep_q"] else ()):
        if published.get(name) is None:
            raise ConfigError(f"config.json lacks {name}: it has no default; add it")
    for name in ("dim", "n_q", "dep_q", "hidden_scale", "max_period", "positional_scale", "depformer_dim"):
        if not isinstance(field[name], int | float) or isinstance(field[name], bool):
            raise ConfigError(f"config.json has {name}={field[name]!r}: must be a number")
    delays, n_q = list(field["delays"]), field["n_q"]
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
        max_period=float(field["max_period"]),
        positional_scale=float(field["positional_scale"]),
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
        demux_text=bool(field["demux_second_stream"] or field["demux_second_text_stream"]),
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
    dim, gating = field["depformer_dim"], own["gating"] or "none"
    feedforward = field["depformer_dim_feedforward"]
    if feedforward is None:
        feedforward = int(field["hidden_scale"] * dim)
    widths = [hidden_width(f, dim, gating) for f in (feedforward if isinstance(feedforward, list) else [feedforward])]
    schedule = field["depformer_weights_per_step_schedule"]
    stack = TransformerConfig(
        dim=dim,
        num_layers=own["num_layers"],
        num_heads=published["depformer_num_heads"],
        hidden_dim=max(widths),
        gating=gating,
        norm=field["norm"],
        positional_embedding=field["depformer_pos_emb"],
        max_period=float(own["max_period"]),
        positional_scale=float(own["positional_scale"]),
        kv_repeat=own["kv_repeat"],
        layer_scale=own["layer_scale"],
    )
    return DepthConfig(
        stack,
        weights_per_step=bool(field["depformer_weights_per_step"]),
        multi_linear=field["depformer_multi_linear"],
        schedule=None if schedule is None else tuple(schedule),
        hidden_dims=tuple(widths) if len(set(widths)) > 1 else None,
        low_rank=field["depformer_low_rank_embeddings"],
        output_norm=field["depformer_norm"],
    )


def _conditioners(field: Mapping[str, Any]) -> tuple[Conditioner, ...]:
    """Conditioners in the order in which they are fused: the summed ones, then those for cross-attention."""
    entries, fuser = dict(field["conditioners"] or {}), field["fuser"] or {}
    if fuser.get("prepend"):
        raise ConfigError(f"config.json prepends {fuser['prepend']}: conditions are only summed or cross-attended")
    found: list[Conditioner] = []
    for fuse in ("sum", "cross"):
        for name in fuser.get(fuse, ()):
            entry = entries.pop(name, {})
            kind = entry.get("type")
            if kind not in ("lut", "tensor"):
                raise ConfigError(f"conditioner {name!r} has type={kind!r}: must be lut or tensor")
            fields = entry[kind]
            if kind == "tensor":
                found.append(TensorConditioner(name, fields["dim"], 1 if fuse == "sum" else None, fuse))
                continue
            values = fields.get("possible_values")
            values = None if values is None else tuple(values)
            found.append(LookupConditioner(name, fields["n_bins"], fields["dim"], values, fuse))
    if entries:
        raise ConfigError(f"conditioner {sorted(entries)[0]!r} is not in the fuser: name it under sum or cross")
    return tuple(found)


def _cross_positions(fuser: Mapping[str, Any]) -> float | None:
    return float(fuser.get("cross_attention_pos_emb_scale", 1.0)) if fuser.get("cross_attention_pos_emb") else None


def _published_conditioner(conditioner: Conditioner) -> dict[str, Any]:
    if isinstance(conditioner, TensorConditioner):
        return {"type": "tensor", "tensor": {"dim": conditioner.dim}}
    fields: dict[str, Any] = {"n_bins": conditioner.bins, "dim": conditioner.dim, "tokenizer": "noop"}
    if conditioner.values is not None:
        fields["possible_values"] = list(conditioner.values)
    return {"type": "lut", "lut": fields}


def published_config(config: LMConfig) -> dict[str, Any]:
    """The published fields of a configuration; `lm_config` of them gives it back (names of speakers apart)."""
    stack, depth = config.temporal, config.depth
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
