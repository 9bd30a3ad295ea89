"""Published JSON of codecs to `MimiConfig`, and back (`models/loaders.py` of `moshi`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moshijax.codec import MimiConfig, QuantizerConfig, SeanetConfig
from moshijax.errors import ConfigError
from moshijax.nn.transformer import TransformerConfig

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
_READ = {
    "": ("sample_rate", "frame_rate", "seanet", "transformer", "quantizer"),
    "seanet": ("dimension", "ratios", "dilation_base"),
    "transformer": (
        *("d_model", "num_heads", "num_layers", "dim_feedforward", "context", "max_period", "layer_scale"),
        *("input_dimension", "output_dimensions"),
    ),
    "quantizer": ("dimension", "n_q", "bins", "input_dimension", "output_dimension"),
}
_SEANET = (
    *("n_filters", "kernel_size", "residual_kernel_size", "last_kernel_size"),
    *("n_residual_layers", "compress"),
)


def mimi_config(fields: Mapping[str, Any], source: str = "config.json") -> MimiConfig:
    """The config of a codec from its published JSON form (`seanet`, `transformer`, `quantizer` tables).

    Raises:
      ConfigError: a table or field is missing, or has a value that this codec does not do.
    """
    try:
        s, t, q = dict(fields["seanet"]), dict(fields["transformer"]), dict(fields["quantizer"])
        for table, values in (("", fields), ("seanet", s), ("transformer", t), ("quantizer", q)):
            fixed = _FIXED[table] | _DEFAULTS.get(table, {})
            for name, only in fixed.items():
                if values.get(name, only) != only:
                    raise ConfigError(
                        f"{source}: {table} {name} is {values[name]!r}, only {only!r} is supported; "
                        f"use another checkpoint"
                    )
            known = (*fixed, *_READ[table], *(_SEANET if table == "seanet" else ()))
            for name in values:
                if name not in known:
                    raise ConfigError(f"{source}: {table} has an unknown field {name!r}; remove it")
        config = MimiConfig(
            sample_rate=fields["sample_rate"],
            frame_rate=fields["frame_rate"],
            seanet=SeanetConfig(
                dimension=s["dimension"],
                ratios=tuple(s["ratios"]),
                dilation_base=s["dilation_base"],
                **{name: s[name] for name in _SEANET},
            ),
            transformer=TransformerConfig(
                dim=t["d_model"],
                num_layers=t["num_layers"],
                num_heads=t["num_heads"],
                hidden_dim=t["dim_feedforward"],
                context=t["context"],
                max_period=float(t["max_period"]),
                layer_scale=t.get("layer_scale"),
            ),
            quantizer=QuantizerConfig(dim=q["dimension"], bins=q["bins"], num_codebooks=q["n_q"]),
        )
        widths = (t["input_dimension"], *t["output_dimensions"], q["input_dimension"], q["output_dimension"])
    except (TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{source} is not the config of a codec ({error}); fetch it again") from None
    except KeyError as error:
        raise ConfigError(f"{source}: field {error} is missing; a codec's config needs it") from None
    if set(widths) != {config.seanet.dimension}:
        raise ConfigError(f"{source}: widths {widths} must all equal seanet dimension {config.seanet.dimension}")
    return config


def published_mimi_config(config: MimiConfig) -> dict[str, Any]:
    """The published fields of a configuration; `mimi_config` of them gives it back."""
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
