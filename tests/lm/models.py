"""Small language models for the tests of this folder, compiled in seconds."""

from __future__ import annotations

import functools

import jax

from moshijax import lm
from moshijax.nn.transformer import TransformerConfig

LAYOUT = lm.layouts.dialogue(codebooks=2, acoustic_delay=2)


def small(layout: lm.StreamLayout = LAYOUT, context: int | None = 6, **fields) -> lm.LMConfig:
    stack = dict(gating="silu", norm="rms_norm_f32")
    depth = TransformerConfig(dim=16, num_layers=1, num_heads=2, hidden_dim=24, positional_embedding="none", **stack)
    defaults = dict(
        layout=layout,
        card=20,
        text_card=24,
        temporal=TransformerConfig(dim=32, num_layers=2, num_heads=2, hidden_dim=40, context=context, **stack),
        depth=lm.DepthConfig(depth) if layout.dep_q else None,
    )
    return lm.LMConfig(**{**defaults, **fields})


@functools.cache
def params(config: lm.LMConfig, stacked: bool = True, seed: int = 0):
    """Random parameters with larger heads, so that the most likely token is clear."""
    tree = lm.init(config, jax.random.key(seed), stacked)
    return jax.tree.map(lambda leaf: 2.0 * leaf, tree)


def codes(config: lm.LMConfig, batch: int, frames: int, seed: int = 0):
    """Random tokens of every row."""
    key_text, key_audio = jax.random.split(jax.random.key(seed))
    grid = jax.random.randint(key_audio, (batch, config.layout.num_streams, frames), 0, config.card)
    return grid.at[:, 0].set(jax.random.randint(key_text, (batch, frames), 0, config.text_card))
