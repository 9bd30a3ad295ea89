from __future__ import annotations

import jax
import jax.numpy as jnp

from moshijax import lm
from moshijax.lm import losses
from moshijax.train.plan.flops import _Count, peak_flops, training_flops
from tests.train.support.models import LM

F32 = jnp.float32


def count_flops(function, *arguments):
    """FLOPs of every contraction and convolution that `function(*arguments)` runs."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    count = _Count(())
    count.walk(jaxpr, [False] * len(jaxpr.invars), [False] * len(jaxpr.outvars))
    return sum(count.found.values())


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


def loss_of(params, codes):
    return losses.loss_fn(LM, losses.LossConfig(), lm.score(LM, params, codes), codes)


def frozen_front(params, codes):
    front = {name: jax.lax.stop_gradient(params[name]) for name in ("temporal", "text_embedding", "audio_embedding")}
    return loss_of({**params, **front}, codes)


def test_a_gradient_counts_what_it_computes():
    """As in jax's own gradient; what is frozen costs its forward pass alone."""
    inputs = lm.abstract(LM), jax.ShapeDtypeStruct((4, LM.layout.num_streams, 16), jnp.int32)
    for loss in (loss_of, frozen_front):
        parts = training_flops(loss, *inputs, parts=("temporal", "depth"))
        assert sum(parts.values()) == count_flops(jax.grad(loss), *inputs)
    assert set(parts) == {"temporal", "depth", "other"}
    whole = training_flops(loss_of, *inputs, parts=("temporal", "depth"))
    assert parts["temporal"] == whole["temporal"] / 3 and parts["depth"] == whole["depth"]
    text_only = training_flops(
        lambda p, codes: jnp.sum(lm.score(LM, p, codes, text_only=True).nll), *inputs, parts=("depth",)
    )
    assert set(text_only) == {"other"}


def test_remat_and_scans_count_once():
    w, x = jax.ShapeDtypeStruct((3, 4, 4), F32), jax.ShapeDtypeStruct((5, 4), F32)

    def loss(w, x, trained=slice(None), remat=True):
        def layer(x, w):
            x = jnp.tanh(x @ w)
            return x, jax.lax.stop_gradient(x)

        x, early = jax.lax.scan(jax.checkpoint(layer) if remat else layer, x, w)
        return jnp.sum(x) + jnp.sum(early @ early.mT)

    product = 2 * 5 * 4 * 4
    # The gradient with respect to the first input, which is data, is computed all the same: the body of a scan is one.
    assert training_flops(loss, w, x) == {"other": 3 * 3 * product + 3 * 2 * 5 * 5 * 4}
    assert sum(training_flops(lambda w, x: loss(w, x, remat=False), w, x).values()) == count_flops(
        jax.grad(lambda w, x: loss(w, x, remat=False)), w, x
    )


def test_the_peak_of_a_cpu_is_measured():
    assert 1e8 < peak_flops(jax.devices()) < 1e14
