from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moshijax.errors import ConfigError
from moshijax.nn import rope
from moshijax.nn.rope import RopeScaling


@pytest.mark.parametrize("interleaved", [True, False])
def test_scores_depend_on_distance_alone(interleaved):
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 8))

    def score(p, s):
        a = rope.rotate(q, *rope.rotation(jnp.array([p]), 8, 100.0), interleaved=interleaved)
        b = rope.rotate(k, *rope.rotation(jnp.array([s]), 8, 100.0), interleaved=interleaved)
        return float(jnp.sum(a * b))

    assert score(7, 4) == pytest.approx(score(103, 100), abs=1e-4)
    assert abs(score(7, 4) - score(7, 5)) > 1e-3
    np.testing.assert_allclose(score(3, 3), float(jnp.sum(q * k)), rtol=1e-5)


def test_sinusoid_values():
    got = rope.sinusoid(jnp.array([0, 3]), 6, 100.0)
    angle = 3 / 100.0 ** (np.arange(3) / 2)
    np.testing.assert_allclose(got[1], np.concatenate([np.cos(angle), np.sin(angle)]), rtol=1e-5)
    np.testing.assert_array_equal(got[0], [1, 1, 1, 0, 0, 0])


def test_llama_slows_the_rotations_that_turn_rarely_in_the_original_context():
    """Of Llama 3.1's 64 rotations the first 29 are kept, the last 29 are 8 times slower, and 6 lie between."""
    plain = 500000.0 ** (-np.arange(64) / 64)
    ratio = plain / RopeScaling().slowed(plain)
    np.testing.assert_allclose(ratio[:29], 1)
    np.testing.assert_allclose(ratio[35:], 8)
    assert (np.diff(ratio[28:36]) > 0).all()
    cos, sin = rope.rotation(jnp.array([1]), 128, 500000.0, RopeScaling())
    np.testing.assert_allclose(np.arctan2(sin, cos)[0], RopeScaling().slowed(plain), rtol=1e-5)


def test_a_scaling_whose_bounds_are_swapped_is_refused():
    with pytest.raises(ConfigError, match="low must be smaller"):
        RopeScaling(low=4.0, high=1.0)
