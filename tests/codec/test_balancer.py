from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moshijax.codec import balancer
from moshijax.codec.balancer import Balancer
from moshijax.errors import ConfigError
from tests.codec.small import noise

TARGET = noise(0, 3, 50)
WEIGHTS = {"square": 3.0, "distance": 1.0, "mean": 0.5}


def losses(target):
    return [
        lambda y: {"square": 1000 * jnp.mean((y - target) ** 2, 1), "distance": jnp.mean(jnp.abs(y - target), 1)},
        lambda y: {"mean": jnp.mean(y, 1)},
    ]


def slopes(y, target=TARGET):
    """Gradients of each loss of each row, by hand."""
    n = y.shape[1]
    square, distance = 2000 * (y - target) / n, np.sign(y - target) / n
    return {"square": square, "distance": distance, "mean": np.full_like(y, 1 / n)}


def test_weights_are_shares_of_the_gradient_over_running_norms():
    settings, state = Balancer(total_norm=2.0, decay=0.9), balancer.init(tuple(WEIGHTS))
    past, weight = dict.fromkeys(WEIGHTS, 0.0), 0.0
    for step in range(4):
        y = noise(step + 1, 3, 50)
        found = jax.jit(lambda state, y: balancer.balance(settings, WEIGHTS, state, losses(TARGET), y))(state, y)
        want, weight = np.zeros_like(y), 0.9 * weight + 1
        for name, slope in slopes(y).items():
            norm = np.linalg.norm(slope, axis=1)
            np.testing.assert_allclose(found.norms[name], norm, rtol=1e-4)
            past[name] = 0.9 * past[name] + norm.mean()
            want += slope * 2.0 * WEIGHTS[name] / 4.5 / (past[name] / weight)
        np.testing.assert_allclose(found.gradient, want, rtol=1e-4, atol=1e-6)
        state = balancer.update(settings, state, {name: norm.mean() for name, norm in found.norms.items()})
    np.testing.assert_allclose(found.rows["mean"], y.mean(1), rtol=1e-5)


def test_the_scale_of_a_loss_does_not_matter():
    y, state = noise(5, 3, 50), balancer.init(("one",))
    one, thousand = (
        balancer.balance(Balancer(), {"one": w}, state, [lambda y, s=s: {"one": s * jnp.mean((y - TARGET) ** 2, 1)}], y)
        for s, w in ((1.0, 1.0), (1000.0, 7.0))
    )
    np.testing.assert_allclose(one.gradient, thousand.gradient, rtol=1e-4)


def test_a_loss_without_slope_gives_a_finite_gradient():
    state = balancer.init(("distance", "square"))
    weights, target = {"distance": 1.0, "square": 1.0}, jnp.asarray(TARGET)
    same = balancer.balance(Balancer(), weights, state, losses(TARGET)[:1], target)
    assert np.isfinite(same.gradient).all() and (same.norms["square"] == 0).all()


def test_refusals():
    for bad in (dict(total_norm=0.0), dict(decay=1.0)):
        with pytest.raises(ConfigError):
            Balancer(**bad)
