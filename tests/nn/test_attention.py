from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moshijax.errors import ConfigError
from moshijax.nn.attention import Attention, ring_positions, ring_write, weighted_sum
from moshijax.nn.layout import unpack_in_proj
from moshijax.nn.quantised import dequantise, quantise
from moshijax.testing import check_streaming

KEY = jax.random.key(0)


def by_definition(layer, params, x, held=lambda x: x):
    """Loops over heads, queries and keys in float64; keys and values are what `held` makes of them."""
    fused = unpack_in_proj(np.asarray(params["in_proj"]["kernel"], np.float64), layer.num_heads, layer.kv_repeat)
    out_proj = np.asarray(params["out_proj"]["kernel"], np.float64)
    x = np.asarray(x, np.float64)
    B, T, D = x.shape
    width, groups = D // layer.num_heads, layer.num_heads // layer.kv_repeat
    y = np.zeros_like(x)
    for b in range(B):
        qkv = x[b] @ fused.T
        q = qkv[:, :D].reshape(T, layer.num_heads, width)
        k, v = qkv[:, D:].reshape(T, 2, groups, width).swapaxes(0, 1)
        if layer.rotary is not None:
            q, k = (_rotate(a, layer.max_period, layer.rotary == "interleaved") for a in (q, k))
        k, v = held(k), held(v)
        for h in range(layer.num_heads):
            g = h // layer.kv_repeat
            for t in range(T):
                first = 0 if layer.context is None else max(0, t - layer.context + 1)
                scores = k[first : t + 1, g] @ q[t, h] / np.sqrt(width)
                weights = np.exp(scores - scores.max())
                y[b, t, h * width : (h + 1) * width] = weights @ v[first : t + 1, g] / weights.sum()
    return y @ out_proj.T


def _rotate(x, max_period, interleaved):
    T, _, width = x.shape
    out = np.empty_like(x)
    for i in range(width // 2):
        re, im = (2 * i, 2 * i + 1) if interleaved else (i, i + width // 2)
        turn = (x[..., re] + 1j * x[..., im]) * np.exp(1j * np.arange(T) * max_period ** (-2 * i / width))[:, None]
        out[..., re], out[..., im] = turn.real, turn.imag
    return out


@pytest.mark.parametrize("rotary", ["interleaved", "split", None])
@pytest.mark.parametrize(("repeat", "context"), [(1, 5), (2, None), (4, 3)])
def test_equals_the_definition(rotary, repeat, context):
    layer = Attention(16, 4, repeat, context, rotary=rotary, max_period=50.0)
    x = jax.random.normal(KEY, (2, 11, 16))
    variables = jax.jit(layer.init)(KEY, x)
    params = jax.tree.map(lambda box: box.value, variables["params"], is_leaf=lambda leaf: hasattr(leaf, "value"))
    np.testing.assert_allclose(jax.jit(layer.apply)(variables, x), by_definition(layer, params, x), atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("block", [1, 2])
def test_streaming(block):
    check_streaming(Attention(16, 4, kv_repeat=2, context=6, block=block), KEY, 16)


def rounded(x):
    """Keys or values as a ring of integers holds them."""
    return np.asarray(dequantise(quantise(x.astype(np.float32))), np.float64)


@pytest.mark.parametrize("split", [(1,) * 14, (2, 3, 5, 4), (14,)])
def test_a_ring_of_integers_is_attended_by_its_definition(split):
    """Keys and values are seen as the ring holds them, in blocks of any length, their own position included."""
    layer = Attention(16, 4, kv_repeat=2, context=6, max_period=50.0, cache_dtype="int8")
    x = jax.random.normal(KEY, (3, 14, 16))
    variables = jax.jit(layer.init)(KEY, x)
    params = jax.tree.map(lambda box: box.value, variables["params"], is_leaf=lambda leaf: hasattr(leaf, "value"))
    step = jax.jit(lambda state, x: layer.apply(variables, state, x, method="step"))
    state, at, found = layer.init_state(3), 0, []
    for size in split:
        state, y = step(state, x[:, at : at + size])
        found, at = [*found, y], at + size
    want = by_definition(layer, params, x, rounded)
    np.testing.assert_allclose(np.concatenate(found, 1), want, atol=5e-6)
    assert np.abs(by_definition(layer, params, x) - want).max() > 1e-3  # (the integers show)


@pytest.mark.slow
def test_streaming_with_a_ring_of_integers():
    """The contract, but for what rounding to integers adds: frozen and reset rows, receptive field, state."""
    layer = Attention(16, 4, kv_repeat=2, context=6, cache_dtype="int8")
    check_streaming(layer, KEY, 16, gradients=False, atol=0.02)


def test_window_ring_sees_less_in_the_first_position_of_a_full_block():
    """The PyTorch streaming path: both keys of a block are written before its first query looks."""
    context, T = 4, 12
    exact = Attention(8, 2, context=context, block=2)
    window = Attention(8, 2, context=context, block=2, ring="window")
    shorter = Attention(8, 2, context=context - 1)
    assert (exact.capacity, window.capacity) == (context + 1, context)
    x = jax.random.normal(KEY, (1, T, 8))
    variables = jax.jit(exact.init)(KEY, x)
    whole, less = (np.asarray(jax.jit(layer.apply)(variables, x)) for layer in (exact, shorter))
    step = jax.jit(lambda state, x: window.apply(variables, state, x, method="step"))
    streamed = np.asarray(step(window.init_state(1), x)[1])
    np.testing.assert_allclose(streamed[:, 1::2], whole[:, 1::2], atol=1e-6)
    np.testing.assert_allclose(streamed[:, :4:2], whole[:, :4:2], atol=1e-6)
    np.testing.assert_allclose(streamed[:, 4::2], less[:, 4::2], atol=1e-6)
    assert np.abs(streamed[:, 4::2] - whole[:, 4::2]).max() > 1e-3


def test_no_square_array_for_long_sequences():
    layer = Attention(8, 2, context=64)
    x = jax.ShapeDtypeStruct((1, 20000, 8), jnp.float32)
    variables = jax.eval_shape(layer.init, KEY, jnp.zeros((1, 4, 8)))
    compiled = jax.jit(layer.apply).lower(variables, x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 20000 * 20000


def test_ring_positions_follow_what_was_written():
    capacity = 5
    for end in range(1, 14):
        held = np.full(capacity, -1)
        for position in range(end):
            held[position % capacity] = position
        found = np.asarray(ring_positions(jnp.array([end]), capacity))[0]
        np.testing.assert_array_equal(np.maximum(found, -1), held)


@pytest.mark.parametrize("rows", [2, 7])
@pytest.mark.parametrize("T", [2, 12])
def test_ring_write_keeps_what_does_not_count(rows, T):
    """Frozen rows, positions beyond the count, and the slots of all but the last entries of a block that wraps."""
    cache = jax.random.normal(KEY, (rows, 2, 5, 3))
    new = jax.random.normal(jax.random.key(1), (rows, T, 2, 3))
    offset = jnp.arange(rows) * 3
    count = jnp.arange(rows) * 5 % (T + 1)
    got = np.asarray(jax.jit(ring_write)(cache, new, offset, count))
    want = np.array(cache)
    for b in range(rows):
        for t in range(count[b]):
            want[b, :, (3 * b + t) % 5] = new[b, t]
    np.testing.assert_array_equal(got, want)
    if T > 5:
        everything = jax.jit(ring_write)(cache, new, offset, None)
        np.testing.assert_array_equal(everything, jax.jit(ring_write)(cache, new, offset, jnp.full(rows, T)))


@pytest.mark.parametrize("cache_dtype", ["computed", "int8"])
def test_frozen_rows_of_a_block_keep_their_ring(cache_dtype):
    layer = Attention(16, 4, context=6, cache_dtype=cache_dtype)
    x = jax.random.normal(KEY, (3, 4, 16))
    variables = jax.jit(layer.init)(KEY, x)
    step = jax.jit(lambda state, x, active: layer.apply(variables, state, x, active, method="step"))
    before, _ = step(layer.init_state(3), x, jnp.ones(3, bool))
    after, _ = step(before, x + 1, jnp.array([True, False, True]))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1], b[1]), after, before)
    assert (after["offset"] == jnp.array([8, 4, 8])).all()
    assert all((a[0] != b[0]).any() for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True))


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_step_updates_its_cache_in_place(rows, frozen):
    """No copy of a whole cache in the compiled step: on CPU one would cost ten times the step."""
    layer = Attention(32, 4, context=500)
    x = jnp.zeros((rows, 1, 32))
    variables = jax.jit(layer.init)(KEY, x)
    active = jnp.ones((rows,), bool) if frozen else None
    step = jax.jit(lambda state, x, active: layer.apply(variables, state, x, active, method="step"), donate_argnums=0)
    compiled = step.lower(layer.init_state(rows), x, active).compile()
    cache = rows * 4 * 500 * 8 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < cache / 2
    assert not re.search(r"= f32\[[0-9,]*500,8\]\S* (copy|transpose)\(", compiled.as_text())


def test_attention_without_a_window_cannot_stream():
    with pytest.raises(ConfigError, match="context is None"):
        Attention(8, 2).init_state(1)


@pytest.mark.parametrize(("rows", "positions"), [(1, 8), (1, 7), (2, 8)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weighted_sums_are_exact_to_rounding(rows, positions, dtype):
    random = np.random.RandomState(0)
    weights = jnp.asarray(random.rand(3, rows, positions), dtype)
    values = jnp.asarray(random.randn(3, positions, 5), dtype)
    got = weighted_sum(weights, values, "highest")
    expected = np.einsum("nms,nsc->nmc", np.asarray(weights, np.float64), np.asarray(values, np.float64))
    assert got.dtype == values.dtype
    np.testing.assert_allclose(
        np.asarray(got, np.float64), expected, rtol=0, atol={"float32": 1e-6, "bfloat16": 2e-2}[dtype]
    )
