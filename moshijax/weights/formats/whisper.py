"""Files of Whisper, of which the encoder alone is read: Transformers' config, and both vocabularies of names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from moshijax.annotations import Parts, Size, shown
from moshijax.errors import ConfigError, DataError
from moshijax.omni.whisper import WhisperConfig, whisper_stack
from moshijax.weights.formats.fields import checked
from moshijax.weights.formats.llama import attention_groups
from moshijax.weights.names import Group, renamed
from moshijax.weights.tensors import Shapes

_HINTS: dict[str, Any] = {
    **dict.fromkeys(("num_mel_bins", "max_source_positions", "d_model", "encoder_attention_heads"), Size),
    **{"encoder_layers": Parts, "encoder_ffn_dim": Size, "activation_function": str},
}
#: Width of a head in every published model.
HEAD = 64
#: Our names -> theirs, by vocabulary. In a layer: attention's four projections, then pairs of ours and theirs.
SPELLINGS: dict[str, dict[str, Any]] = {
    "huggingface": {
        "positions": "embed_positions.weight",
        "norm": "layer_norm",
        "layers": "layers",
        "attention": "self_attn",
        "projections": {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"},
        "norms": ("self_attn_layer_norm", "final_layer_norm"),
        "mlp": ("fc1", "fc2"),
    },
    "openai": {
        "positions": "positional_embedding",
        "norm": "ln_post",
        "layers": "blocks",
        "attention": "attn",
        "projections": {"q": "query", "k": "key", "v": "value", "out": "out"},
        "norms": ("attn_ln", "mlp_ln"),
        "mlp": ("mlp.0", "mlp.2"),
    },
}


def spelling_of(names: Mapping[str, Any], where: str) -> tuple[str, str]:
    """Return the vocabulary of the encoder's names in a file, and what they begin with.

    Raises:
      DataError: there is no encoder, or more than one.
    """
    prefixes = [name.removesuffix("conv1.weight") for name in names if re.search(r"(^|\.)conv1\.weight$", name)]
    found = [
        (spelling, prefix)
        for prefix in prefixes
        for spelling, known in SPELLINGS.items()
        if prefix + known["positions"] in names
    ]
    if len(found) != 1:
        raise DataError(f"{where} holds {len(found)} encoders of Whisper, must hold one; name the file of such a model")
    return found[0]


def whisper_config(fields: Mapping[str, Any]) -> WhisperConfig:
    """Return the encoder that a config.json of Transformers describes.

    Raises:
      ConfigError: a field is missing or not usable, or the model is of another class.
    """
    if fields.get("model_type") != "whisper":
        raise ConfigError(
            f"config.json: model_type {shown(fields.get('model_type'))} must be whisper; use such a model"
        )
    missing = [name for name in _HINTS if name not in fields]
    if missing:
        raise ConfigError(f"config.json of whisper lacks {', '.join(missing)}; fetch it again")
    f = checked(fields, _HINTS, "config.json")
    if f["activation_function"] != "gelu":
        raise ConfigError(
            f"config.json of whisper has activation_function={shown(f['activation_function'])}: must be gelu"
        )
    stack = whisper_stack(f["d_model"], f["encoder_layers"], f["encoder_attention_heads"], f["encoder_ffn_dim"])
    return WhisperConfig(f["num_mel_bins"], f["max_source_positions"], stack)


def config_of_shapes(shapes: Shapes, spelling: str, prefix: str, where: str) -> WhisperConfig:
    """Return the encoder that the shapes of its tensors describe; heads are as wide as in all published models.

    Raises:
      DataError: the shapes are of no such encoder.
    """
    known = SPELLINGS[spelling]
    pattern = re.compile(re.escape(f"{prefix}{known['layers']}.") + r"(\d+)\.")
    layers = {int(match[1]) for match in map(pattern.match, shapes) if match}
    try:
        dim, mels, _ = shapes[f"{prefix}conv1.weight"]
        positions, _ = shapes[f"{prefix}{known['positions']}"]
        hidden, _ = shapes[f"{prefix}{known['layers']}.0.{known['mlp'][0]}.weight"]
    except (KeyError, ValueError):
        raise DataError(f"{where}: its tensors are of no encoder of Whisper; fetch it again") from None
    if dim % HEAD:
        raise DataError(f"{where}: a width of {dim} is no multiple of {HEAD}, the width of a head; fetch it again")
    return WhisperConfig(mels, positions, whisper_stack(dim, len(layers), dim // HEAD, hidden))


def published_whisper_config(config: WhisperConfig) -> dict[str, Any]:
    """Return the fields of a config.json of Transformers that `whisper_config` reads."""
    stack = config.stack
    return {
        "model_type": "whisper",
        "num_mel_bins": config.mels,
        "max_source_positions": config.positions,
        "d_model": stack.dim,
        "encoder_layers": stack.num_layers,
        "encoder_attention_heads": stack.num_heads,
        "encoder_ffn_dim": stack.hidden_dim,
        "activation_function": "gelu",
    }


def conv(theirs: str, ours: str, taps: int, width: int, features: int) -> Group:
    """Return the group of a convolution's kernel, `[out, in, k]` there."""
    return Group(
        {theirs: (features, width, taps)},
        {ours: (taps, width, features)},
        lambda a: [a[0].transpose(2, 1, 0)],
        lambda a: [a[0].transpose(2, 1, 0)],
    )


def _affine(theirs: str, ours: str, weight: str, shape: tuple[int, ...]) -> Iterator[Group]:
    yield renamed(f"{theirs}.weight", f"{ours}/{weight}", shape)
    yield renamed(f"{theirs}.bias", f"{ours}/bias", shape[:1])


def whisper_groups(config: WhisperConfig, spelling: str, prefix: str = "model.encoder.", ours: str = "") -> list[Group]:
    """Return the published names of an encoder.

    Args:
      config: Of the encoder.
      spelling: A name in `SPELLINGS`.
      prefix: What their names begin with.
      ours: What its paths begin with, where it is part of a larger model.
    """
    c, known = config.stack, SPELLINGS[spelling]
    groups = [renamed(f"{prefix}{known['positions']}", f"{ours}positions", (config.positions, c.dim))]
    for i, width in ((1, config.mels), (2, c.dim)):
        groups.append(conv(f"{prefix}conv{i}.weight", f"{ours}conv{i}/kernel", 3, width, c.dim))
        groups.append(renamed(f"{prefix}conv{i}.bias", f"{ours}conv{i}/bias", (c.dim,)))
    for i in range(c.num_layers):
        there, here = f"{prefix}{known['layers']}.{i}", f"{ours}stack/layers_{i}"
        groups += attention_groups(f"{there}.{known['attention']}", f"{here}/attention", c, known["projections"])
        for number, name in enumerate(known["norms"], start=1):
            groups += _affine(f"{there}.{name}", f"{here}/norm{number}", "scale", (c.dim,))
        up, down = known["mlp"]
        groups += _affine(f"{there}.{up}", f"{here}/mlp/up", "kernel", (c.hidden_dim, c.dim))
        groups += _affine(f"{there}.{down}", f"{here}/mlp/down", "kernel", (c.dim, c.hidden_dim))
    return [*groups, *_affine(f"{prefix}{known['norm']}", f"{ours}out_norm", "scale", (c.dim,))]
