from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moshijax.errors import ConfigError
from moshijax.nn.vq import SplitResidualVQ, codebook_tables, lookup, materialise
from moshijax.testing import check_streaming

DIM, CODE_DIM, BINS, LEVELS = 12, 6, 16, 4


@pytest.fixture(scope="module")
def quantizer():
    layer = SplitResidualVQ(DIM, CODE_DIM, BINS, LEVELS)
    variables = nn.meta.unbox(dict(layer.init(jax.random.key(0), jnp.zeros((1, 1, DIM)))))
    rng = np.random.RandomState(0)
    books = {}
    for name, levels in (("semantic", 1), ("acoustic", LEVELS - 1)):
        books[name] = {
            "embedding_sum": 0.3 * rng.standard_normal((levels, BINS, CODE_DIM)).astype(np.float32),
            "cluster_usage": 2 * rng.rand(levels, BINS).astype(np.float32),
            "initialized": np.ones(levels, bool),
        }
    return layer, {"params": variables["params"], "codebooks": books}


def test_tables_are_sums_over_usage_of_rare_codes_too():
    """Down to a usage of 1e-5; a code that was never used is at zero."""
    sums = np.array([[[4.0, -8.0], [3e-4, 6e-4], [1e-6, 0.0], [0.0, 0.0]]], np.float32)
    usage = np.array([[4.0, 3e-4, 1e-7, 0.0]], np.float32)
    got = codebook_tables({"embedding_sum": sums, "cluster_usage": usage})
    np.testing.assert_allclose(got, [[[1, -2], [1, 2], [0.1, 0], [0, 0]]], rtol=1e-5)


def reference_codes(variables, x):
    """The definition, in float64 loops."""
    codes = []
    for name in ("semantic", "acoustic"):
        p, book = variables["params"][name], variables["codebooks"][name]
        residual = x.astype(np.float64) @ np.asarray(p["input_proj"]["kernel"]).T
        for table in np.asarray(codebook_tables(book), np.float64):
            code = np.argmin(np.square(residual[:, :, None] - table).sum(-1), -1)
            residual = residual - table[code]
            codes.append(code)
    return np.stack(codes, 1)


def test_encode_decode_are_the_definition(quantizer):
    layer, variables = quantizer
    x = np.random.RandomState(1).standard_normal((2, 9, DIM)).astype(np.float32)
    codes = layer.apply(variables, x, method="encode")
    assert codes.dtype == jnp.int32
    want = reference_codes(variables, x)
    np.testing.assert_array_equal(codes, want)
    for count in range(1, LEVELS + 1):
        fewer = layer.apply(variables, x, count, method="encode")
        np.testing.assert_array_equal(fewer, want[:, :count])
    p, b = variables["params"], variables["codebooks"]
    y = codebook_tables(b["semantic"])[0][want[:, 0]] @ p["semantic"]["output_proj"]["kernel"].T
    np.testing.assert_allclose(layer.apply(variables, want[:, :1], method="decode"), y, atol=1e-5)
    tables = codebook_tables(b["acoustic"])
    acoustic = sum(tables[q][want[:, q + 1]] for q in range(LEVELS - 1))
    y = y + acoustic @ p["acoustic"]["output_proj"]["kernel"].T
    np.testing.assert_allclose(layer.apply(variables, want, method="decode"), y, atol=1e-5)
    np.testing.assert_allclose(layer.apply(variables, x), y, atol=1e-5)


def test_inference_layout_gives_the_same(quantizer):
    layer, variables = quantizer
    x = np.random.RandomState(1).standard_normal((2, 9, DIM)).astype(np.float32)
    fast = {"params": variables["params"], "codebooks": {k: materialise(v) for k, v in variables["codebooks"].items()}}
    codes = layer.apply(variables, x, method="encode")
    np.testing.assert_array_equal(layer.apply(fast, x, method="encode"), codes)
    want = layer.apply(variables, codes, method="decode")
    np.testing.assert_allclose(layer.apply(fast, codes, method="decode"), want, atol=1e-6)


def test_streams_and_passes_gradients_straight_through(quantizer):
    layer, variables = quantizer
    params = {"params": variables["params"]}

    class Bound:  # the codebooks are no leaves that gradients are taken for
        block_size, output_ratio, receptive_field = 1, layer.output_ratio, 1
        init_state, reset = staticmethod(layer.init_state), staticmethod(layer.reset)

        @staticmethod
        def apply(v, *args, **kwargs):
            return layer.apply({**v, "codebooks": variables["codebooks"]}, *args, **kwargs)

    check_streaming(Bound, params, DIM, sizes=(1, 2, 3))
    grad = jax.grad(lambda x: layer.apply(variables, x).sum())(jnp.ones((1, 2, DIM)))
    p = variables["params"]
    through = sum(p[n]["output_proj"]["kernel"].sum(0) @ p[n]["input_proj"]["kernel"] for n in ("semantic", "acoustic"))
    np.testing.assert_allclose(grad[0, 0], through, atol=1e-5)


def test_negative_codes_are_zero_vectors():
    np.testing.assert_array_equal(lookup(jnp.array([-1, 1]), jnp.ones((2, 3))), [[0, 0, 0], [1, 1, 1]])


@pytest.mark.parametrize("count", [0, LEVELS + 1])
def test_number_of_codebooks_is_checked(quantizer, count):
    layer, variables = quantizer
    with pytest.raises(ConfigError, match=f"1 to {LEVELS}"):
        layer.apply(variables, jnp.zeros((1, 2, DIM)), count, method="encode")
    with pytest.raises(ConfigError, match=f"1 to {LEVELS}"):
        layer.apply(variables, jnp.zeros((1, count, 2), int), method="decode")
