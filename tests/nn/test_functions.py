"""Functions that are made of a module."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moshijax.errors import ConfigError
from moshijax.nn.functions import parameter_functions, stream_functions
from moshijax.nn.transformer import Transformer, TransformerConfig

CONFIG = TransformerConfig(8, 2, 2, 16, context=4)


def boxed(config, key):
    return Transformer(config, scan_layers=True).init(key, jnp.zeros((1, 2, config.dim)))["params"]


def test_parameters_of_both_layouts():
    init, abstract = parameter_functions(boxed)
    key = jax.random.key(3)
    stacked, apart = init(CONFIG, key), init(CONFIG, key, stacked=False)
    assert set(stacked) == {"layers"} and set(apart) == {"layers_0", "layers_1"}
    for number in (0, 1):
        layer = jax.tree.map(lambda leaf, number=number: leaf[number], stacked["layers"])
        jax.tree.map(np.testing.assert_array_equal, layer, apart[f"layers_{number}"])
    for made, layout in ((stacked, True), (apart, False)):
        assert not any(isinstance(leaf, nn.meta.AxisMetadata) for leaf in jax.tree.leaves(made))
        said = abstract(CONFIG, layout)
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), made) == jax.tree.map(
            lambda spec: (spec.shape, spec.dtype), said
        )


def test_streams_begin_and_begin_again():
    init_state, reset = stream_functions(Transformer)
    state = init_state(CONFIG, 2)
    moved = {**state, "offset": state["offset"] + 3}
    np.testing.assert_array_equal(reset(CONFIG, moved, np.array([True, False]))["offset"], [0, 3])
    with pytest.raises(ConfigError, match="context"):
        init_state(TransformerConfig(8, 2, 2, 16, context=None), 2)
