"""Files of `LlamaForCausalLM` and `Qwen2ForCausalLM` of Transformers: their config and their names.

Llama 2, 3 and 3.1, Qwen2 and Qwen2.5 are all of these two classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from moshijax.annotations import Context, Parts, Positive, Size, shown
from moshijax.errors import ConfigError
from moshijax.nn.layout import pack_in_proj, unpack_in_proj
from moshijax.nn.rope import RopeScaling
from moshijax.nn.transformer import TransformerConfig
from moshijax.omni.text_model import TextConfig
from moshijax.weights.formats.fields import checked
from moshijax.weights.names import Group, renamed

#: `model_type` -> class.
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
#: Projections with a bias, by `model_type`.
_BIASES = {"llama": (), "qwen2": ("q", "k", "v")}
#: `rms_norm_eps` -> norm.
_NORMS = {1e-5: "rms_norm", 1e-6: "rms_norm_1e-6"}
#: Values that the classes take for fields that a config.json leaves out.
_DEFAULTS = {
    **{"num_key_value_heads": None, "head_dim": None, "hidden_act": "silu", "tie_word_embeddings": False},
    **{"attention_bias": False, "mlp_bias": False, "use_sliding_window": False, "rope_theta": 10000.0},
    **{"rope_scaling": None, "rope_parameters": None},
}
_HINTS: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size"), Size),
    **{"num_hidden_layers": Parts, "num_key_value_heads": Size | None, "head_dim": Size | None},
    **{"rms_norm_eps": float, "rope_theta": Positive, "max_position_embeddings": Context},
    **dict.fromkeys(("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window"), bool),
    **dict.fromkeys(("rope_scaling", "rope_parameters"), dict | None),
}
#: Fields of a scaling and of `RopeScaling`.
_SCALING = {
    **{"factor": "factor", "low_freq_factor": "low", "high_freq_factor": "high"},
    "original_max_position_embeddings": "original_context",
}
#: Buffers that old files hold beside the weights; they follow from the config.
BUFFER = "rotary_emb.inv_freq"


def text_config(fields: Mapping[str, Any], kind: str | None = None) -> TextConfig:
    """Return the text model that a config.json describes.

    Args:
      fields: of the config.json.
      kind: "llama" or "qwen2"; default: its `model_type`.

    Raises:
      ConfigError: a field is missing or not usable, or the model is of another architecture.
    """
    kind = kind or fields.get("model_type")
    if kind not in tuple(ARCHITECTURES):
        raise ConfigError(
            f"config.json: model_type {shown(kind)} must be one of {', '.join(ARCHITECTURES)}; use such a checkpoint"
        )
    needed = [name for name in _HINTS if name not in fields and name not in _DEFAULTS]
    if needed:
        raise ConfigError(f"config.json of {kind} lacks {', '.join(needed)}; fetch it again")
    f = checked({**_DEFAULTS, **fields}, _HINTS, "config.json")
    dim, heads = f["hidden_size"], f["num_attention_heads"]
    groups = f["num_key_value_heads"] or heads
    for name, allowed in (
        *(("hidden_act", ("silu",)), ("head_dim", (None, dim // heads)), ("rms_norm_eps", tuple(_NORMS))),
        *(("attention_bias", (False,)), ("mlp_bias", (False,)), ("use_sliding_window", (False,))),
    ):
        if f[name] not in allowed:
            raise ConfigError(
                f"config.json of {kind} has {name}={shown(f[name])}: must be {' or '.join(map(str, allowed))}; use "
                "another checkpoint"
            )
    if heads % groups:
        raise ConfigError(f"config.json: num_key_value_heads={groups} does not divide num_attention_heads={heads}")
    theta, scaling = _rope(f)
    stack = TransformerConfig(
        dim=dim,
        num_layers=f["num_hidden_layers"],
        num_heads=heads,
        kv_repeat=heads // groups,
        hidden_dim=f["intermediate_size"],
        gating="silu",
        norm=_NORMS[f["rms_norm_eps"]],
        positional_embedding="rope_concat",
        max_period=theta,
        rope_scaling=scaling,
        attention_biases=_BIASES[kind],
        context=f["max_position_embeddings"],
    )
    return TextConfig(f["vocab_size"], stack, f["tie_word_embeddings"])


def _rope(fields: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Period and scaling; new configs have both in one table, old ones beside each other."""
    stated = fields["rope_parameters"] or fields["rope_scaling"] or {}
    theta = checked({"rope_theta": stated.get("rope_theta", fields["rope_theta"])}, _HINTS, "config.json")["rope_theta"]
    kind = stated.get("rope_type", stated.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise ConfigError(f"config.json has rope_type {shown(kind)}: must be default or llama3; use another checkpoint")
    missing = [name for name in _SCALING if name not in stated]
    if missing:
        raise ConfigError(f"config.json: rope_type llama3 lacks {', '.join(missing)}; fetch it again")
    values = checked({name: stated[name] for name in _SCALING}, dict.fromkeys(_SCALING, Positive), "config.json")
    return theta, RopeScaling(**{ours: values[theirs] for theirs, ours in _SCALING.items()})


def published_text_config(config: TextConfig) -> dict[str, Any]:
    """Return the config.json of a text model: the inverse of `text_config`.

    Raises:
      ConfigError: neither class has a place for this model.
    """
    stack = config.stack
    kinds = [kind for kind, biases in _BIASES.items() if biases == stack.attention_biases]
    for name, value, allowed in (
        ("attention_biases", bool(kinds), True),
        ("norm", stack.norm in _NORMS.values(), True),
        ("mlp_bias", stack.mlp_bias, False),
        ("gating", stack.gating, "silu"),
        ("positional_embedding", stack.positional_embedding, "rope_concat"),
        ("layer_scale", stack.layer_scale, None),
        ("context", stack.context is not None, True),
    ):
        if value != allowed:
            raise ConfigError(
                f"{name}={getattr(stack, name)!r}: {' and '.join(ARCHITECTURES.values())} have no such model; keep it "
                "as a run"
            )
    rope: dict[str, Any] = {"rope_type": "default"}
    if stack.rope_scaling is not None:
        values = {theirs: getattr(stack.rope_scaling, ours) for theirs, ours in _SCALING.items()}
        rope = {"rope_type": "llama3", **values}
    return {
        "architectures": [ARCHITECTURES[kinds[0]]],
        "model_type": kinds[0],
        "vocab_size": config.vocab,
        "hidden_size": stack.dim,
        "num_hidden_layers": stack.num_layers,
        "num_attention_heads": stack.num_heads,
        "num_key_value_heads": stack.num_heads // stack.kv_repeat,
        "intermediate_size": stack.hidden_dim,
        "hidden_act": "silu",
        "rms_norm_eps": next(epsilon for epsilon, norm in _NORMS.items() if norm == stack.norm),
        "max_position_embeddings": stack.context,
        "rope_theta": stack.max_period,
        "rope_scaling": None if stack.rope_scaling is None else rope,
        "tie_word_embeddings": config.tied,
    }


def attention_groups(theirs: str, ours: str, c: TransformerConfig, names: Mapping[str, str]) -> Iterator[Group]:
    """Yield the projections of attention, apart there and fused here, and their biases.

    Args:
      theirs: What their names begin with.
      ours: Path of the attention.
      c: Of the stack.
      names: Their names of "q", "k", "v" and "out".
    """
    groups, width = c.num_heads // c.kv_repeat, c.dim // c.num_heads
    rows = {"q": c.dim, "k": groups * width, "v": groups * width, "out": c.dim}
    yield Group(
        {f"{theirs}.{names[part]}.weight": (rows[part], c.dim) for part in "qkv"},
        {f"{ours}/in_proj/kernel": (rows["q"] + 2 * rows["k"], c.dim)},
        lambda a: [pack_in_proj(np.concatenate(a), c.num_heads, c.kv_repeat)],
        lambda a: np.split(unpack_in_proj(a[0], c.num_heads, c.kv_repeat), np.cumsum([rows["q"], rows["k"]])),
    )
    yield renamed(f"{theirs}.{names['out']}.weight", f"{ours}/out_proj/kernel", (c.dim, c.dim))
    for part in c.attention_biases:
        yield renamed(f"{theirs}.{names[part]}.bias", f"{ours}/{part}_bias", (rows[part],))


def stack_groups(theirs: str, ours: str, c: TransformerConfig) -> Iterator[Group]:
    """Yield the names of the layers of a stack.

    Args:
      theirs: What their names begin with, up to the number of the layer.
      ours: Path of the stack.
      c: Of the stack.
    """
    for i in range(c.num_layers):
        there, here = f"{theirs}.{i}", f"{ours}/layers_{i}"
        names = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "o_proj"}
        yield from attention_groups(f"{there}.self_attn", f"{here}/attention", c, names)
        for part, shape in (
            ("gate", (c.hidden_dim, c.dim)),
            ("up", (c.hidden_dim, c.dim)),
            ("down", (c.dim, c.hidden_dim)),
        ):
            yield renamed(f"{there}.mlp.{part}_proj.weight", f"{here}/mlp/{part}/kernel", shape)
        yield renamed(f"{there}.input_layernorm.weight", f"{here}/norm1/scale", (c.dim,))
        yield renamed(f"{there}.post_attention_layernorm.weight", f"{here}/norm2/scale", (c.dim,))


def text_groups(config: TextConfig, ours: str = "") -> list[Group]:
    """Return the published names of a text model.

    Args:
      config: Of the model.
      ours: What its paths begin with, where it is part of a larger model.
    """
    size = (config.vocab, config.stack.dim)
    groups = [renamed("model.embed_tokens.weight", f"{ours}table", size)]
    groups += stack_groups("model.layers", f"{ours}stack", config.stack)
    groups.append(renamed("model.norm.weight", f"{ours}out_norm/scale", size[1:]))
    if not config.tied:
        groups.append(renamed("lm_head.weight", f"{ours}head", size))
    return groups
