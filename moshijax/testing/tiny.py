"""A tiny codec and language model that fit each other, with random weights: real code, compiled in seconds."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from moshijax import codec, lm
from moshijax.nn.transformer import TransformerConfig

CODEC = codec.MimiConfig(
    sample_rate=8000,
    seanet=codec.SeanetConfig(dimension=16, n_filters=4, ratios=(5, 4, 4, 4)),
    transformer=TransformerConfig(dim=16, num_layers=1, num_heads=2, hidden_dim=32, context=10, layer_scale=0.1),
    quantizer=codec.QuantizerConfig(dim=8, bins=32, num_codebooks=4),
)

LM = lm.LMConfig(
    layout=lm.layouts.dialogue(codebooks=3, acoustic_delay=1),
    card=32,
    text_card=48,
    temporal=TransformerConfig(
        dim=32, num_layers=2, num_heads=2, hidden_dim=64, gating="silu", norm="rms_norm_f32", context=12
    ),
    depth=lm.DepthConfig(
        TransformerConfig(
            dim=16,
            num_layers=1,
            num_heads=2,
            hidden_dim=32,
            gating="silu",
            norm="rms_norm_f32",
            positional_embedding="none",
        )
    ),
)

# As many pieces as text_card; every third one begins a word.
PIECES = tuple(
    ("<unk>", "<s>", "</s>", "<pad>")[i] if i < 4 else ("\u2581" if i % 3 == 0 else "") + chr(ord("a") + i % 26)
    for i in range(LM.text_card)
)


def tiny_models(
    seed: int = 0, lm_config: lm.LMConfig = LM, codec_config: codec.MimiConfig = CODEC
) -> tuple[tuple[codec.MimiConfig, Any], tuple[lm.LMConfig, Any], tuple[str, ...]]:
    """Make a codec and a language model with random parameters, small enough for tests.

    Returns:
      ((codec config, params), (lm config, params), text pieces): the first arguments of `export.artifact.build`.
    """
    random = np.random.RandomState(seed)
    codec_params = _fill(jax.eval_shape(lambda: codec.init(codec_config, jax.random.key(0))), random)
    params = _fill(lm.abstract(lm_config), random)
    return (codec_config, codec_params), (lm_config, params), PIECES[: lm_config.text_card]


def _fill(shapes: Any, random: np.random.RandomState) -> Any:
    """Values for a tree of parameters without compiling their initialisers, wide enough that inputs matter."""

    def fill(path: tuple[Any, ...], spec: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path[-1].key
        if name in ("scale", "cluster_usage"):
            return np.ones(spec.shape, spec.dtype)
        if spec.dtype == bool:
            return np.ones(spec.shape, bool)
        fan_in = 1 if len(spec.shape) < 2 or name in ("embedding_sum", "table") else spec.shape[-1]
        std = 0.3 if name == "bias" else 1.0 / np.sqrt(fan_in)
        return (random.standard_normal(spec.shape) * std).astype(spec.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)
