from __future__ import annotations

import jax
import jax.numpy as jnp

from moshijax.train.flops import count_flops, peak_flops

F32 = jnp.float32


def test_contractions_convolutions_and_loops_are_counted():
    a, b = jax.ShapeDtypeStruct((3, 4, 5), F32), jax.ShapeDtypeStruct((3, 5, 7), F32)
    assert count_flops(lambda a, b: jnp.einsum("bik,bkj->bij", a, b), a, b) == 2 * 3 * 4 * 5 * 7

    x, w = jax.ShapeDtypeStruct((2, 20, 6), F32), jax.ShapeDtypeStruct((5, 3, 8), F32)

    def grouped(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (2,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=2
        )

    assert count_flops(grouped, x, w) == 2 * (2 * 8 * 8) * 5 * 3

    def loop(m):
        return jax.lax.scan(jax.checkpoint(lambda c, _: (jax.jit(jnp.matmul)(c, m), None)), m, None, length=9)[0]

    assert count_flops(loop, jax.ShapeDtypeStruct((4, 4), F32)) == 9 * 2 * 4**3


def test_the_peak_of_a_cpu_is_measured():
    assert 1e8 < peak_flops(jax.devices()) < 1e14
