from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moshijax.nn.norms import NORM_KINDS, Norm


@pytest.mark.parametrize("kind", NORM_KINDS)
@pytest.mark.parametrize("size", [1.0, 1e-4])
def test_equals_the_definition(kind, size):
    """Small inputs make the epsilon visible."""
    epsilon = {
        **{"layer_norm": 1e-5, "layer_norm_f32": 1e-8, "rms_norm": 1e-5, "rms_norm_f32": 1e-8},
        "rms_norm_1e-6": 1e-6,
    }[kind]
    x = size * np.random.RandomState(0).standard_normal((2, 3, 8))
    layer = Norm(8, kind)
    params = nn.meta.unbox(layer.init(jax.random.key(0), x))["params"]
    params = {name: np.linspace(0.5, 2.0, 8, dtype=np.float32) for name in params}
    centred = x - x.mean(-1, keepdims=True) if kind.startswith("layer") else x
    want = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * params["scale"]
    if "bias" in params:
        want = want + params["bias"]
    assert ("bias" in params) == kind.startswith("layer")
    np.testing.assert_allclose(layer.apply({"params": params}, x.astype(np.float32)), want, rtol=2e-5, atol=1e-6)


def test_keeps_the_type_of_its_input():
    layer = Norm(8, "rms_norm_f32")
    x = jnp.ones((1, 8), jnp.bfloat16)
    assert layer.apply(layer.init(jax.random.key(0), x), x).dtype == jnp.bfloat16
