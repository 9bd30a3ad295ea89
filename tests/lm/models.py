"""Small language models for the tests of this folder, compiled in seconds."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from moshijax import lm
from moshijax.nn.layout import unstack_layers
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
    """Random parameters, with no initialiser to compile; large enough that the most likely token is clear."""
    random = np.random.RandomState(seed)

    def fill(path, leaf):
        name = path[-1].key
        noise = random.standard_normal(leaf.shape).astype(np.float32)
        if "norm" in jax.tree_util.keystr(path) and name.endswith("scale"):
            return 1 + 0.1 * noise
        if name in ("bias", "norm_bias"):
            return 0.1 * noise
        return noise * (0.5 if name in ("table", "absent") else 1.5 / leaf.shape[-1] ** 0.5)

    tree = jax.tree_util.tree_map_with_path(fill, lm.abstract(config))
    if config.depth is not None and config.depth.hidden_dims is not None:
        for name, axis in (("gate", 1), ("up", 1), ("down", 2)):
            kernel = tree["depth"]["layers"]["mlp"][name]["steps"]["kernel"]
            for weight, width in enumerate(config.depth.hidden_dims):
                np.moveaxis(kernel[:, weight], axis, 0)[width:] = 0
    return jax.tree.map(jnp.asarray, tree if stacked else unstack_layers(tree))


def codes(config: lm.LMConfig, batch: int, frames: int, seed: int = 0):
    """Random tokens of every row; text without the special pieces."""
    random = np.random.RandomState(seed)
    grid = random.randint(0, config.card, (batch, config.layout.num_streams, frames))
    grid[:, 0] = random.randint(4, config.text_card, (batch, frames))
    return jnp.asarray(grid, jnp.int32)
