from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moshijax.nn import rope


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
