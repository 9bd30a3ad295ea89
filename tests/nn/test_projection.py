from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moshijax.errors import ConfigError
from moshijax.nn.layout import pack_in_proj, stack_layers, unpack_in_proj, unstack_layers
from moshijax.nn.projection import Linear, StepLinear, contract, linear

KEY = jax.random.key(0)


@pytest.mark.parametrize("rows", [1, 3, 4, 9])
def test_linear_is_the_same_for_any_number_of_rows(rows):
    x = jax.random.normal(KEY, (rows, 2, 5))[:, 0]
    kernel = jax.random.normal(jax.random.key(1), (7, 5))
    np.testing.assert_allclose(linear(x, kernel), np.asarray(x) @ np.asarray(kernel).T, atol=1e-6)


def test_linear_bias():
    layer = Linear(5, 7, use_bias=True)
    variables = nn.meta.unbox(layer.init(KEY, np.zeros((2, 5))))
    variables["params"]["bias"] += 2.0
    np.testing.assert_allclose(layer.apply(variables, np.zeros((2, 5))), 2.0)


@pytest.mark.parametrize("schedule", [(0, 1, 2), (0, 0, 0), (0, 1, 2, 2, 2), (1, 0, 1, 2, 0)])
def test_weights_per_step(schedule):
    """Stacked, unstacked and step by step are one function; step k uses weight schedule[k]."""
    steps = len(schedule)
    stacked = StepLinear(4, 6, schedule, use_bias=True, stacked=True)
    single = StepLinear(4, 6, schedule, use_bias=True)
    x = jax.random.normal(KEY, (steps, 3, 4))
    params = nn.meta.unbox(stacked.init(jax.random.key(1), x))["params"]
    params["steps"]["bias"] += jax.random.normal(KEY, params["steps"]["bias"].shape)
    kernel, bias = np.asarray(params["steps"]["kernel"]), np.asarray(params["steps"]["bias"])
    assert kernel.shape == (max(schedule) + 1, 6, 4)
    want = np.stack([x[k] @ kernel[w].T + bias[w] for k, w in enumerate(schedule)])
    flat = unstack_layers(params)
    jax.tree.map(np.testing.assert_array_equal, stack_layers(flat), params)
    for module, tree in ((stacked, params), (single, flat)):
        np.testing.assert_allclose(module.apply({"params": tree}, x), want, atol=1e-6)
    for k in range(steps):
        got = single.apply({"params": flat}, k, x[k], method="step")
        np.testing.assert_allclose(got, want[k], atol=1e-6)
    with pytest.raises(ConfigError, match="unstack_layers"):
        stacked.apply({"params": params}, 0, x[0], method="step")


def test_unused_rows_and_columns_start_at_zero():
    for axis in (0, 1):
        layer = StepLinear(6, 6, (0, 1), used=(6, 2), used_axis=axis, stacked=True)
        kernel = nn.meta.unbox(layer.init(KEY, np.zeros((2, 1, 6))))["params"]["steps"]["kernel"]
        kernel = np.moveaxis(np.asarray(kernel), 1 + axis, 1)
        assert (kernel[0] != 0).all() and (kernel[1, :2] != 0).all() and (kernel[1, 2:] == 0).all()


@pytest.mark.parametrize("rows", [1, 3, 11])
def test_gradients_of_weights_are_float32_products(rows):
    """Exact where products in bfloat16 would be rounded: the sum over rows needs more than 8 bits."""
    x = jnp.full((rows, 3), 1.0078125, jnp.bfloat16)
    out = jnp.full((rows, 2), 1.0078125, jnp.bfloat16)
    kernel = jnp.ones((2, 3))
    of_x, of_kernel = jax.vjp(linear, x, kernel)[1](out)
    assert of_x.dtype == jnp.bfloat16 and of_kernel.dtype == jnp.float32
    np.testing.assert_array_equal(of_kernel, np.full((2, 3), rows * 1.0078125**2))
    np.testing.assert_array_equal(of_x.astype(np.float32), np.full((rows, 3), 2 * 1.0078125))


@pytest.mark.parametrize(
    ("equation", "left", "right"),
    [("mk,nk->mn", (5, 4), (6, 4)), ("k,nk->n", (4,), (6, 4)), ("kni,koi->kno", (3, 5, 4), (3, 6, 4))],
)
def test_contract_has_the_gradients_of_its_product(equation, left, right):
    x, kernel = jax.random.normal(KEY, left), jax.random.normal(jax.random.key(1), right)
    found = jax.grad(lambda *both: jnp.sum(jnp.sin(contract(equation, *both, "highest"))), (0, 1))(x, kernel)
    want = jax.grad(lambda *both: jnp.sum(jnp.sin(jnp.einsum(equation, *both))), (0, 1))(x, kernel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, want)


@pytest.mark.parametrize("repeat", [1, 2, 4])
def test_attention_rows_by_group(repeat):
    heads, width, dim = 4, 2, 3
    groups = heads // repeat
    fused = np.arange((heads + 2 * groups) * width * dim).reshape(-1, dim)
    packed = pack_in_proj(fused, heads, repeat)
    np.testing.assert_array_equal(unpack_in_proj(packed, heads, repeat), fused)
    by_group = packed.reshape(groups, repeat + 2, width, dim)
    by_head = fused.reshape(-1, width, dim)
    for g in range(groups):
        np.testing.assert_array_equal(by_group[g, :repeat], by_head[g * repeat : (g + 1) * repeat])
        np.testing.assert_array_equal(by_group[g, repeat], by_head[heads + g])
        np.testing.assert_array_equal(by_group[g, repeat + 1], by_head[heads + groups + g])
    np.testing.assert_array_equal(pack_in_proj(np.stack([fused, fused]), heads, repeat)[1], packed)
