from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np
import pytest

from moshijax.nn.mlp import MLP, hidden_width


@pytest.mark.parametrize(
    ("feedforward", "dim", "gating", "hidden"),
    [(16896, 4096, "silu", 11264), (4224, 1024, "silu", 2816), (4096, 1024, "silu", 2688), (2048, 512, "none", 2048)],
)
def test_hidden_width_of_published_models(feedforward, dim, gating, hidden):
    assert hidden_width(feedforward, dim, gating) == hidden


def test_plain_uses_exact_gelu():
    x = np.linspace(-3, 3, 12, dtype=np.float32).reshape(3, 4)
    layer = MLP(4, 4)
    params = nn.meta.unbox(layer.init(jax.random.key(0), x))["params"]
    params = {name: {"kernel": np.eye(4, dtype=np.float32)} for name in params}
    assert set(params) == {"up", "down"}
    erf = np.vectorize(__import__("math").erf)
    np.testing.assert_allclose(layer.apply({"params": params}, x), x * (1 + erf(x / 2**0.5)) / 2, atol=1e-6)


def test_gated():
    x = np.random.RandomState(0).standard_normal((3, 4)).astype(np.float32)
    layer = MLP(4, 5, gating="silu")
    params = nn.meta.unbox(layer.init(jax.random.key(0), x))["params"]
    gate, up, down = (np.asarray(params[name]["kernel"]) for name in ("gate", "up", "down"))
    hidden = x @ gate.T
    want = (hidden / (1 + np.exp(-hidden)) * (x @ up.T)) @ down.T
    np.testing.assert_allclose(layer.apply({"params": params}, x), want, atol=1e-6)
