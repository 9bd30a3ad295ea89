"""Published JSON of codecs to `MimiConfig`, and back (`models/loaders.py` of `moshi`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moshijax.annotations import Context, Factor, Parts, Positive, Size, nearest, shown
from moshijax.codec import MimiConfig, QuantizerConfig, SeanetConfig
from moshijax.errors import ConfigError
from moshijax.nn.transformer import TransformerConfig
from moshijax.weights.formats.fields import checked

# Fields of the published config that must have one value here, with that value.
_FIXED: dict[str, dict[str, Any]] = {
    "": {"channels": 1},
    "seanet": {
        "channels": 1,
        "causal": True,
        "activation": "ELU",
        "disable_norm_outer_blocks": 0,
        "norm": "none",
        "pad_mode": "constant",
        "true_skip": True,
    },
    "transformer": {
        "causal": True,
        "conv_layout": True,
        "gating": "none",
        "norm": "layer_norm",
        "positional_embedding": "rope",
    },
    "quantizer": {},
}
# The same, but published files leave them out.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "seanet": {"activation_params": {"alpha": 1.0}, "final_activation": None, "trim_right_ratio": 1.0},
}
# Fields that are read, and what they hold.
_SEANET: dict[str, Any] = {
    **dict.fromkeys(("n_filters", "kernel_size", "residual_kernel_size", "last_kernel_size", "compress"), Size),
    "n_residual_layers": Parts,
}
_READ: dict[str, dict[str, Any]] = {
    "": {"sample_rate": Size, "frame_rate": Positive, "seanet": dict, "transformer": dict, "quantizer": dict},
    "seanet": {"dimension": Size, "ratios": tuple[Size, ...], "dilation_base": Size, **_SEANET},
    "transformer": {
        **{"d_model": Size, "num_heads": Size, "num_layers": Parts, "dim_feedforward": Size, "context": Context},
        **{"max_period": Positive, "layer_scale": Factor | None},
        **{"input_dimension": Size, "output_dimensions": tuple[Size, ...]},
    },
    "quantizer": {"dimension": Size, "n_q": Parts, "bins": Size, "input_dimension": Size, "output_dimension": Size},
}


def mimi_config(fields: Mapping[str, Any], source: str = "config.json") -> MimiConfig:
    """Return the codec that a published config describes.

    Args:
      fields: the published JSON form, with the tables `seanet`, `transformer` and `quantizer`.
      source: its name in messages.

    Raises:
      ConfigError: a table or field is missing, or has a value that this codec does not support.
    """
    top = _table("", fields, source)
    s, t, q = (_table(name, top[name], source) for name in ("seanet", "transformer", "quantizer"))
    config = MimiConfig(
        sample_rate=top["sample_rate"],
        frame_rate=top["frame_rate"],
        seanet=SeanetConfig(
            dimension=s["dimension"],
            ratios=s["ratios"],
            dilation_base=s["dilation_base"],
            **{name: s[name] for name in _SEANET},
        ),
        transformer=TransformerConfig(
            dim=t["d_model"],
            num_layers=t["num_layers"],
            num_heads=t["num_heads"],
            hidden_dim=t["dim_feedforward"],
            context=t["context"],
            max_period=t["max_period"],
            layer_scale=t.get("layer_scale"),
        ),
        quantizer=QuantizerConfig(dim=q["dimension"], bins=q["bins"], num_codebooks=q["n_q"]),
    )
    widths = (t["input_dimension"], *t["output_dimensions"], q["input_dimension"], q["output_dimension"])
    if set(widths) != {config.seanet.dimension}:
        raise ConfigError(f"{source}: widths {widths} must all equal seanet dimension {config.seanet.dimension}")
    return config


def _table(name: str, fields: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The fields of one table ("": of the config itself), all of them known, present and in range."""
    where = f"{source}: {name}" if name else source
    fixed, read = _FIXED[name] | _DEFAULTS.get(name, {}), _READ[name]
    for key, value in fields.items():
        if key in fixed and value != fixed[key]:
            raise ConfigError(
                f"{where} {key} is {shown(value)}, only {fixed[key]!r} is supported; use another checkpoint"
            )
        if key not in fixed and key not in read:
            raise ConfigError(f"{where} has an unknown field {key!r}; {nearest(key, read)}remove it, or check it")
    for key in read:
        if key not in fields and key != "layer_scale":
            raise ConfigError(f"{where} lacks {key}: a codec's config needs it; fetch it again")
    return checked(fields, read, where)


def published_mimi_config(config: MimiConfig) -> dict[str, Any]:
    """Return the published fields of a configuration: the inverse of `mimi_config`."""
    s, t, q = config.seanet, config.transformer, config.quantizer
    return {
        "sample_rate": config.sample_rate,
        "frame_rate": config.frame_rate,
        **_FIXED[""],
        "seanet": {
            **_FIXED["seanet"],
            "dilation_base": s.dilation_base,
            "dimension": s.dimension,
            "ratios": list(s.ratios),
            **{name: getattr(s, name) for name in _SEANET},
        },
        "quantizer": {
            "dimension": q.dim,
            "n_q": q.num_codebooks,
            "bins": q.bins,
            "input_dimension": s.dimension,
            "output_dimension": s.dimension,
        },
        "transformer": {
            **_FIXED["transformer"],
            "d_model": t.dim,
            "num_heads": t.num_heads,
            "num_layers": t.num_layers,
            "dim_feedforward": t.hidden_dim,
            "context": t.context,
            "max_period": t.max_period,
            "layer_scale": t.layer_scale,
            "input_dimension": s.dimension,
            "output_dimensions": [s.dimension],
        },
    }
