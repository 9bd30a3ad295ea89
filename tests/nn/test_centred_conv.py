"""Centred convolutions against their definitions; PyTorch's are compared in `tests/parity/test_omni.py`."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from moshijax.errors import ConfigError
from moshijax.nn.centred_conv import CentredConv, CentredTransposedConv

X = np.random.RandomState(0).standard_normal((2, 9, 3)).astype(np.float32)


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_a_convolution_sees_both_sides(stride, dilation):
    layer = CentredConv(3, 4, 3, stride, dilation)
    variables = jax.jit(layer.init)(jax.random.key(0), X)
    kernel, bias = (np.asarray(variables["params"][name]) for name in ("kernel", "bias"))
    want = np.zeros((2, -(-9 // stride), 4))
    for t in range(want.shape[1]):
        for j in range(3):
            at = t * stride + (j - 1) * dilation
            if 0 <= at < 9:
                want[:, t] += X[:, at] @ kernel[j]
    np.testing.assert_allclose(layer.apply(variables, X), want + bias, atol=1e-5)


@pytest.mark.parametrize(("kernel_size", "stride"), [(4, 2), (11, 5), (2, 2)])
def test_a_transposed_convolution_cuts_off_both_sides(kernel_size, stride):
    layer = CentredTransposedConv(3, 4, kernel_size, stride)
    variables = jax.jit(layer.init)(jax.random.key(0), X)
    kernel, bias = (np.asarray(variables["params"][name]) for name in ("kernel", "bias"))
    whole = np.zeros((2, 8 * stride + kernel_size, 4))
    for t in range(9):
        for j in range(kernel_size):
            whole[:, t * stride + j] += X[:, t] @ kernel[:, j]
    side = (kernel_size - stride) // 2
    np.testing.assert_allclose(layer.apply(variables, X), whole[:, side : side + 9 * stride] + bias, atol=1e-5)


def test_kernels_without_a_centre_are_refused():
    with pytest.raises(ConfigError, match="kernel_size 4 is even"):
        CentredConv(3, 4, 4)
    for kernel_size in (1, 3):
        with pytest.raises(ConfigError, match="an even number of taps"):
            CentredTransposedConv(3, 4, kernel_size, 2)
