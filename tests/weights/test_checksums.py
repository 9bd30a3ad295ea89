"""Any change of any array is noticed, wherever the array is."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moshijax.weights.checksums import checksums, verify
from tests.train.support.devices import run_on_devices


def arrays():
    rng = np.random.default_rng(0)
    return {
        "matrix": rng.standard_normal((7, 13, 5)).astype(np.float32),
        "half": jnp.asarray(rng.standard_normal((9, 4)), jnp.bfloat16),
        "bytes": rng.integers(0, 256, 33).astype(np.uint8),
        "flags": rng.random(17) < 0.5,
        "count": np.int32(-5),
        "none": np.zeros((0, 3), np.float32),
    }


def test_the_checksum_is_the_sum_that_is_written_down():
    expected = 0
    for place, word in enumerate(arrays()["matrix"].reshape(-1).view(np.uint32).tolist()):
        word = (word + place * 0x9E3779B9) % 2**32
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            word = (word ^ word >> shift) * factor % 2**32
        expected += word ^ word >> 16
    assert checksums(arrays())["matrix"] == expected % 2**32
    assert len(set(checksums(arrays()).values())) == len(arrays())
    verify(arrays(), checksums(arrays()))


@pytest.mark.parametrize("name", ["matrix", "half", "bytes", "count"])
def test_a_flipped_bit_is_noticed(name):
    rng, written = np.random.default_rng(1), checksums(arrays())
    for _ in range(20):
        changed = {key: np.array(array) for key, array in arrays().items()}
        data = changed[name].reshape(-1).view(np.uint8)
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        with pytest.raises(ValueError, match=f"^{name} is not what was written"):
            verify(changed, written)


def test_changes_in_several_places_are_noticed():
    changed = {**arrays(), "matrix": arrays()["matrix"][::-1], "half": -arrays()["half"]}
    with pytest.raises(ValueError, match="^half and 1 more are not what was written"):
        verify(changed, checksums(arrays()))


@pytest.mark.slow
def test_every_mesh_gives_the_same_checksums():
    run_on_devices(8, "tests.weights.test_checksums:same_on_a_mesh")


def same_on_a_mesh():
    mesh = jax.make_mesh((4, 2), ("a", "b"))
    matrix = np.random.default_rng(0).standard_normal((8, 6, 4)).astype(np.float32)
    for axes in (("a", "b"), (("a", "b"), None), (None, None, ("b",)), ()):
        where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        assert checksums({"m": jax.device_put(matrix, where)}) == checksums({"m": matrix})
