"""The deterministic weights behind every parity fixture."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from tests.parity import weights_by_name


def test_same_bits_on_every_machine():
    value = weights_by_name.tensor("transformer.layers.0.self_attn.in_proj_weight", (12, 4), 1)
    assert value.dtype == np.float32
    assert (
        hashlib.sha256(value.tobytes()).hexdigest()
        == "8e07f4f6830aa4237610084ad0e4a67089226660a7519100847f6a1ba8f36e63"
    )


def test_values_depend_on_name_and_seed():
    first = weights_by_name.tensor("a.weight", (8, 8), 1)
    assert not np.array_equal(first, weights_by_name.tensor("b.weight", (8, 8), 1))
    assert not np.array_equal(first, weights_by_name.tensor("a.weight", (8, 8), 2))


@pytest.mark.parametrize("path", sorted(weights_by_name.FIXTURES.glob("*.json")), ids=lambda path: path.stem)
def test_every_fixture_has_margins_that_make_equality_fair(path):
    description, arrays = weights_by_name.load_fixture(path.stem)
    if description["kind"] == "mimi" or "generation" in description:
        assert description["margin"] > 1e-3
    assert all(np.isfinite(value).all() for value in arrays.values())
    if description["kind"] != "ctc":  # (a loss, which has no weights)
        filled = sum(np.prod(shape) for shape in description["tensors"].values())
        assert filled > 1000
