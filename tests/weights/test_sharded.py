"""Weights read straight into a mesh of devices."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import jax
import numpy as np

from tests.train.support.devices import run_on_devices
from tests.weights.test_lm import PUBLISHED, published_tensors, write


@partial(jax.jit, donate_argnums=0)
def add_one(tree):
    return jax.tree.map(lambda leaf: leaf + 1, tree)


def reads_what_one_device_reads(folder: str) -> None:
    from moshijax import lm, weights
    from moshijax.train import sharding
    from moshijax.train.experiment import MeshConfig
    from moshijax.weights import table

    config, want = weights.load_lm(folder, stacked=True)
    largest = []
    original = table.aligned
    table.aligned = lambda shape, dtype: largest.append(shape) or original(shape, dtype)
    boxed = jax.eval_shape(lambda key: lm.init_boxed(config, key), jax.random.key(0))
    for mesh_config in (MeshConfig(data=1, fsdp=4, tensor=2), MeshConfig(data=2, fsdp=2, tensor=2)):
        mesh = sharding.make_mesh(mesh_config)
        shardings = sharding.shardings_of(boxed, mesh)
        largest.clear()
        _, params = weights.load_lm(folder, stacked=True, shardings=shardings)
        jax.tree.map(np.testing.assert_array_equal, params, want)
        leaves = list(zip(jax.tree.leaves(params), jax.tree.leaves(shardings), strict=True))
        assert all(leaf.sharding == where for leaf, where in leaves)
        assert sum(not leaf.is_fully_replicated for leaf, _ in leaves) > 10
        # Each part is held once, and no leaf is ever whole in the host's memory.
        parts = sum(len({str(s.index) for s in leaf.addressable_shards}) for leaf, _ in leaves)
        assert len(largest) == parts
        kernel = params["temporal"]["layers"]["mlp"]["gate"]["kernel"]
        assert kernel.shape not in largest and kernel.addressable_shards[0].data.shape in largest
        # The arrays belong to jax: they can be given away.
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b + 1), add_one(params), want)


def test_weights_go_straight_to_where_the_devices_want_them(tmp_path: Path) -> None:
    published = {**PUBLISHED, "dim": 32, "card": 16, "text_card": 16, "depformer_low_rank_embeddings": 4}
    folder = write(tmp_path / "model", published, published_tensors(published))
    run_on_devices(8, "tests.weights.test_sharded:reads_what_one_device_reads", folder)
