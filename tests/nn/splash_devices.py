"""Body of the test of splash attention on several devices; it runs in a process of its own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from moshijax.nn import causal_attention as causal
from moshijax.train import sharding
from moshijax.train.experiment import MeshConfig


def agrees_with_xla() -> None:
    mesh = sharding.make_mesh(MeshConfig(data=2, tensor=2))
    q = jax.random.normal(jax.random.key(0), (2, 150, 2, 2, 16))
    k, v = jax.random.normal(jax.random.key(1), (2, 2, 150, 2, 16))
    weight = jax.random.normal(jax.random.key(2), q.shape)
    results = []
    with sharding.context(mesh):
        for name in ("xla", "splash"):

            def loss(q, k, v, name=name):
                return jnp.sum(causal.causal_attention(q, k, v, 40, "highest", name) * weight)

            lowered = jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(q, k, v)
            assert ("shard" in lowered.as_text()) or name == "xla"
            results.append(lowered.compile()(q, k, v))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-4, rtol=1e-4), *results)
