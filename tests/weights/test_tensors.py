"""The simplest mappings from names to tensors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moshijax.weights.tensors import Combined, InMemory, ShapesOnly


def test_arrays_in_memory_say_what_they_are():
    tensors = InMemory({"a": np.ones((2, 3), np.float16), "b": jnp.zeros(4, jnp.bfloat16)})
    assert tensors.shapes == {"a": (2, 3), "b": (4,)}
    assert [tensors.dtypes[name].name for name in "ab"] == ["float16", "bfloat16"]
    np.testing.assert_array_equal(tensors["a"], np.ones((2, 3)))


def test_two_sources_are_one():
    both = Combined(InMemory({"a": np.ones(2)}), InMemory({"b": np.zeros(3)}))
    assert both.shapes == {"a": (2,), "b": (3,)}
    assert (both["a"].sum(), both["b"].sum()) == (2, 0)


def test_shapes_alone_hold_no_array():
    tensors = ShapesOnly({"x": {"y": jax.ShapeDtypeStruct((2, 3), jnp.bfloat16)}})
    assert tensors.shapes == {"x/y": (2, 3)} and tensors.dtypes["x/y"].name == "bfloat16"
    with pytest.raises(TypeError, match="x/y: only its shape and dtype are known"):
        tensors["x/y"]
