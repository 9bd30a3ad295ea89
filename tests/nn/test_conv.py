from __future__ import annotations

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moshijax.errors import ConfigError
from moshijax.nn.conv import (
    CausalConv,
    TransposedConv,
    correlate,
    correlate_folded,
    rows_from_kernel,
    rows_from_transposed_kernel,
)
from moshijax.nn.streaming import Chain, Pointwise, Residual
from moshijax.testing import check_streaming

KEY = jax.random.key(0)


def naive_conv(x, kernel, bias, stride, dilation, groups, padding):
    """The definition, in loops, float64."""
    k, i, o = kernel.shape
    pad = (k - 1) * dilation + 1 - stride
    before = np.repeat(x[:, :1], pad, 1) if padding == "replicate" else np.zeros((x.shape[0], pad, x.shape[2]))
    x = np.concatenate([before, x], 1).astype(np.float64)
    steps = (x.shape[1] - pad) // stride
    y = np.zeros((x.shape[0], steps, o))
    for t in range(steps):
        for j in range(k):
            for c in range(o):
                g = c // (o // groups)
                y[:, t, c] += x[:, t * stride + j * dilation, g * i : (g + 1) * i] @ kernel[j, :, c]
    return y + bias


CONVS = [
    dict(kernel_size=1),
    dict(kernel_size=7),
    dict(kernel_size=3, dilation=2),
    dict(kernel_size=8, stride=4),
    dict(kernel_size=5, stride=3),
    dict(kernel_size=3, stride=3),
    dict(kernel_size=4, stride=2, padding="replicate"),
    dict(kernel_size=3, groups=2),
    dict(kernel_size=4, stride=2, groups=4, use_bias=False),
]


@pytest.mark.parametrize("options", CONVS, ids=str)
def test_conv_is_the_definition(options):
    layer = CausalConv(in_features=4, features=8, **options)
    x = np.random.RandomState(0).standard_normal((2, 12, 4)).astype(np.float32)
    variables = layer.init(KEY, x)
    p = variables["params"]
    want = naive_conv(
        x,
        np.asarray(p["kernel"]),
        np.asarray(p.get("bias", 0)),
        layer.stride,
        layer.dilation,
        layer.groups,
        layer.padding,
    )
    np.testing.assert_allclose(layer.apply(variables, x), want, atol=1e-5)
    if layer.groups == 1:
        rows = {"params": {"kernel_rows": rows_from_kernel(p["kernel"]), **{k: v for k, v in p.items() if k == "bias"}}}
        np.testing.assert_allclose(layer.apply(rows, x), want, atol=1e-5)


@pytest.mark.parametrize(("steps", "kernel_size"), [(16, 7), (24, 2), (8, 9), (16, 10), (12, 7), (16, 1)])
def test_one_channel_is_the_definition_and_has_its_gradient(steps, kernel_size):
    layer = CausalConv(in_features=1, features=6, kernel_size=kernel_size)
    x = np.random.RandomState(0).standard_normal((2, steps, 1)).astype(np.float32)
    variables = layer.init(KEY, x)
    kernel, bias = (np.asarray(variables["params"][name]) for name in ("kernel", "bias"))
    want = naive_conv(x, kernel, bias, 1, 1, 1, "zeros")
    np.testing.assert_allclose(layer.apply(variables, x), want, atol=1e-6)
    if 1 < kernel_size <= 9 and steps % 8 == 0:
        padded = np.pad(x, ((0, 0), (kernel_size - 1, 0), (0, 0)))
        found, wanted = (
            jax.grad(lambda a, k: (f(a, k) ** 2).sum(), argnums=(0, 1))(padded, kernel)  # noqa: B023
            for f in (correlate_folded, lambda a, k: correlate(a, k, 1, 1, 1))
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, wanted)


def test_one_channel_streams_in_blocks_of_any_size():
    check_streaming(CausalConv(in_features=1, features=6, kernel_size=7), KEY, 1, sizes=(1, 2, 5, 16))


@pytest.mark.parametrize("options", CONVS, ids=str)
def test_conv_streams(options):
    check_streaming(CausalConv(in_features=4, features=8, **options), KEY, 4, sizes=(1, 2, 3, 8))


TRANSPOSED = [
    dict(kernel_size=8, stride=4),
    dict(kernel_size=5, stride=3),
    dict(kernel_size=7, stride=2),
    dict(kernel_size=3, stride=3),
    dict(kernel_size=4, stride=2, depthwise=True, use_bias=False),
    dict(kernel_size=1, stride=1),
]


@pytest.mark.parametrize("options", TRANSPOSED, ids=str)
def test_transposed_is_the_definition(options):
    layer = TransposedConv(in_features=4, features=4 if options.get("depthwise") else 3, **options)
    x = np.random.RandomState(0).standard_normal((2, 5, 4)).astype(np.float32)
    variables = layer.init(KEY, x)
    p = {k: np.asarray(v, np.float64) for k, v in variables["params"].items()}
    kernel = p["kernel"]
    if layer.depthwise:
        kernel = np.einsum("kc,cd->ckd", kernel, np.eye(4))
    want = np.zeros((2, 5 * layer.stride + layer.overlap, layer.features))
    for t in range(5):
        for j in range(layer.kernel_size):
            want[:, t * layer.stride + j] += x[:, t] @ kernel[:, j]
    want = want[:, : 5 * layer.stride] + p.get("bias", 0)
    np.testing.assert_allclose(layer.apply(variables, x), want, atol=1e-5)
    if not layer.depthwise:
        rows = {"kernel_rows": rows_from_transposed_kernel(variables["params"]["kernel"])}
        rows |= {k: v for k, v in variables["params"].items() if k == "bias"}
        np.testing.assert_allclose(layer.apply({"params": rows}, x), want, atol=1e-5)


@pytest.mark.parametrize("options", TRANSPOSED, ids=str)
def test_transposed_streams(options):
    layer = TransposedConv(in_features=4, features=4 if options.get("depthwise") else 3, **options)
    check_streaming(layer, KEY, 4, sizes=(1, 2, 3, 8))


@pytest.mark.parametrize("rows", [False, True])
def test_matrix_form_streams(rows):
    conv = CausalConv(4, 6, 4, stride=2)
    kernel = np.random.RandomState(0).standard_normal((4, 4, 6)).astype(np.float32)
    variables = {"params": {"kernel_rows": rows_from_kernel(jnp.asarray(kernel)), "bias": jnp.ones(6)}}
    check_streaming(conv, variables, 4, batch_size=2, sizes=(1, 2, 4))


def test_gradient_of_transposed_has_no_input_dilation():
    layer = TransposedConv(8, 4, 8, 4)
    x = jnp.ones((1, 6, 8))
    variables = layer.init(KEY, x)
    text = jax.jit(jax.grad(lambda v, x: layer.apply(v, x).sum(), (0, 1))).lower(variables, x).as_text()
    assert "convolution" not in text


def test_chain_and_residual():
    chain = Chain(
        (
            CausalConv(2, 4, 7),
            Residual(Chain((Pointwise(jax.nn.elu), CausalConv(4, 2, 3), Pointwise(jax.nn.elu), CausalConv(2, 4, 1)))),
            CausalConv(4, 6, 8, stride=4),
            CausalConv(6, 6, 4, stride=2),
            TransposedConv(6, 3, 6, stride=3),
        )
    )
    assert chain.block_size == 8
    assert chain.output_ratio == Fraction(3, 8)
    assert chain.receptive_field == 8 + 6 + 2 + 4 + 8 + 8
    check_streaming(chain, KEY, 2, sizes=(1, 2, 3))


@pytest.mark.parametrize(
    "make",
    [
        lambda: CausalConv(4, 4, 3, padding="reflect"),
        lambda: CausalConv(4, 4, 2, stride=3),
        lambda: CausalConv(4, 4, 3, groups=3),
        lambda: CausalConv(4, 4, 7, padding="replicate"),
        lambda: TransposedConv(4, 4, 2, stride=3),
        lambda: TransposedConv(4, 3, 4, stride=2, depthwise=True),
        lambda: CausalConv(4, 4, 4, stride=2).init(KEY, jnp.zeros((1, 3, 4))),
        lambda: CausalConv(4, 4, 4, stride=2).init(KEY, jnp.zeros((1, 0, 4))),
    ],
)
def test_refusals(make):
    with pytest.raises(ConfigError):
        make()
