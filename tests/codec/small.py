"""A codec small enough for unit tests: frames of 24 samples, 2 latent steps each."""

from __future__ import annotations

import jax
import numpy as np

from moshijax import codec
from moshijax.codec import MimiConfig, QuantizerConfig, SeanetConfig
from moshijax.nn.transformer import TransformerConfig

SMALL = MimiConfig(
    sample_rate=300,
    frame_rate=12.5,
    seanet=SeanetConfig(dimension=8, n_filters=4, ratios=(4, 3)),
    transformer=TransformerConfig(dim=8, num_layers=1, num_heads=2, hidden_dim=16, context=6, layer_scale=0.5),
    quantizer=QuantizerConfig(dim=4, bins=16, num_codebooks=4),
)


def filled(config: MimiConfig, seed: int = 0):
    """Variables whose codebooks hold something."""
    variables = codec.init(config, jax.random.key(seed))
    rng = np.random.RandomState(seed)
    for book in variables["codebooks"]["quantizer"].values():
        book["embedding_sum"] = rng.standard_normal(book["embedding_sum"].shape).astype(np.float32)
        book["cluster_usage"] = (0.5 + rng.rand(*book["cluster_usage"].shape)).astype(np.float32)
        book["initialized"] = np.ones(book["initialized"].shape, bool)
    return variables


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
