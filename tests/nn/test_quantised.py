"""8-bit arrays: how near they are, and that products by them are those by the arrays that they stand for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moshijax import lm
from moshijax.nn.layout import unstack_layers
from moshijax.nn.projection import StepLinear, linear
from moshijax.nn.quantised import Quantised, dequantise, dequantise_kernels, from_fields, quantise, quantise_kernels
from tests.lm.models import codes, params, small

KEY = jax.random.key(0)


def test_every_value_is_the_nearest_of_its_row():
    x = np.random.RandomState(0).standard_normal((6, 5, 40)).astype(np.float32) * np.logspace(-6, 4, 6)[:, None, None]
    x[2, 3] = 0
    x = x.astype(np.float32)
    found = quantise(x)
    assert found.integers.dtype == jnp.int8 and found.scale.dtype == jnp.float32 and found.scale.shape == (6, 5)
    back = np.asarray(dequantise(found), np.float64)
    scale = np.asarray(found.scale, np.float64)[..., None]
    assert (np.abs(back - x) <= 0.5001 * scale).all()
    assert (back[2, 3] == 0).all() and np.isfinite(back).all()
    assert (np.abs(np.asarray(found.integers, int)).max(-1)[scale[..., 0] > 0] == 127).all()
    again = quantise(dequantise(found))
    np.testing.assert_array_equal(again.integers, found.integers)


@pytest.mark.parametrize("rows", [1, 3, 11])
def test_a_product_is_that_by_the_array(rows):
    x, kernel = jax.random.normal(KEY, (rows, 2, 24))[:, 0], quantise(jax.random.normal(jax.random.key(1), (7, 24)))
    want = np.asarray(x, np.float64) @ np.asarray(dequantise(kernel), np.float64).T
    np.testing.assert_allclose(linear(x, kernel), want, atol=2e-6)
    as_floats = Quantised(kernel.integers.astype(jnp.float32), kernel.scale)
    np.testing.assert_array_equal(linear(x, as_floats), linear(x, kernel))


@pytest.mark.parametrize("rows", [1, 11])
def test_a_product_in_bfloat16_is_rounded_once(rows):
    x = jax.random.normal(KEY, (rows, 64), jnp.bfloat16)
    kernel = quantise(jax.random.normal(jax.random.key(1), (32, 64)))
    found = linear(x, kernel)  # not compiled: XLA may leave out a rounding
    assert found.dtype == jnp.bfloat16
    want = np.asarray(x, np.float64) @ np.asarray(dequantise(kernel), np.float64).T
    # half a unit in the last place of a bfloat16, which has 8 bits
    assert (np.abs(np.asarray(found, np.float64) - want) <= 2.0**-8 * np.abs(want) + 1e-4).all()


@pytest.mark.parametrize("schedule", [(0, 1, 2), (0, 1, 1)])
def test_kernels_of_steps_and_of_all_steps_at_once(schedule):
    layer = StepLinear(8, 6, schedule, use_bias=True)
    stacked = StepLinear(8, 6, schedule, use_bias=True, stacked=True)
    x_KND, x_ND = jax.random.normal(KEY, (3, 2, 8)), jax.random.normal(KEY, (2, 8))
    params = jax.tree.map(lambda box: box.value + 0.1, stacked.init(KEY, x_KND), is_leaf=lambda x: hasattr(x, "value"))
    params = params["params"]
    for module, tree, x in ((layer, unstack_layers(params), x_KND), (stacked, params, x_ND)):
        small = quantise_kernels(tree)
        assert any(
            isinstance(leaf, Quantised) for leaf in jax.tree.leaves(small, is_leaf=lambda x: hasattr(x, "scale"))
        )
        found, want = (module.apply({"params": p}, x) for p in (small, dequantise_kernels(small)))
        np.testing.assert_allclose(found, want, atol=2e-6)


def test_what_is_no_kernel_of_a_linear_map_stays():
    random = np.random.RandomState(0)
    tree = {
        "layers_0": {"up": {"kernel": random.randn(3, 4), "bias": random.randn(3)}},
        "table": random.randn(5, 4),
    }
    found = quantise_kernels(tree)
    assert found["table"] is tree["table"]
    assert found["layers_0"]["up"]["bias"] is tree["layers_0"]["up"]["bias"]
    kernel = found["layers_0"]["up"]["kernel"]
    assert isinstance(kernel, Quantised) and kernel.shape == (3, 4)
    assert quantise_kernels(found)["layers_0"]["up"]["kernel"] is kernel
    fields = {"integers": kernel.integers, "scale": kernel.scale}
    assert from_fields({"a": {"kernel": fields}, "b": {"scale": 1}}) == {"a": {"kernel": kernel}, "b": {"scale": 1}}


def test_low_rank_updates_stay_beside_integers():
    config = small(lora=lm.LoRA(2, 0.5))
    tree, grid = quantise_kernels(params(config, stacked=False)), codes(config, 2, 5)
    assert isinstance(tree["temporal"]["layers_0"]["mlp"]["up"]["kernel"], Quantised)
    found, want = (lm.forward(config, one, grid).logits for one in (tree, dequantise_kernels(tree)))
    np.testing.assert_allclose(found, want, atol=1e-4)
    assert "lora_b" in tree["temporal"]["layers_0"]["mlp"]["up"]
