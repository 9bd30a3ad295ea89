from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moshijax.errors import ConfigError
from moshijax.lm import DepthConfig
from moshijax.nn.layout import is_stacked, stack_layers, unstack_layers
from moshijax.nn.rope import RopeScaling
from moshijax.nn.transformer import REMAT_POLICIES, Transformer, TransformerConfig, require_moshi_form
from moshijax.testing import check_streaming, tiny
from moshijax.testing.streaming import jittered

KEY = jax.random.key(0)
BASE = TransformerConfig(dim=16, num_layers=2, num_heads=4, hidden_dim=24, context=6)
KINDS = {
    "plain": BASE,
    "gated": dataclasses.replace(
        BASE, gating="silu", norm="rms_norm_f32", kv_repeat=2, positional_embedding="rope_concat"
    ),
    "sin": dataclasses.replace(BASE, positional_embedding="sin_rope", layer_scale=0.5, norm="rms_norm"),
    "biases": dataclasses.replace(
        BASE,
        attention_biases=("q", "k", "v", "out"),
        mlp_bias=True,
        kv_repeat=2,
        positional_embedding="rope_concat",
        rope_scaling=RopeScaling(factor=4.0, original_context=16),
    ),
    "none": dataclasses.replace(BASE, positional_embedding="none", gating="gelu", norm="layer_norm_f32"),
}


def stacked_params(config, x):
    module = Transformer(config, scan_layers=True)
    return jittered(nn.meta.unbox(jax.jit(module.init)(KEY, x)), jax.random.key(1))["params"]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "block"), [("plain", 2), ("gated", 1)])
def test_streaming(kind, block):
    check_streaming(Transformer(KINDS[kind], block=block), KEY, 16)


def test_streaming_with_sinusoids():
    check_streaming(Transformer(KINDS["sin"]), KEY, 16, sizes=(1, 2), splits=2, gradients=False)


def test_streaming_with_biases_and_scaled_rotations():
    check_streaming(Transformer(KINDS["biases"]), KEY, 16, sizes=(1, 2), splits=2, gradients=False)


@pytest.mark.parametrize("name", ["q_bias", "v_bias", "out_bias"])
def test_every_bias_of_attention_matters(name):
    """But that of the keys without positions: it adds the same to all scores of a query."""
    x = jax.random.normal(KEY, (1, 4, 16))
    module = Transformer(KINDS["biases"])
    params = nn.meta.unbox(jax.jit(module.init)(KEY, x))["params"]
    other = jax.tree_util.tree_map_with_path(lambda path, leaf: leaf + (path[-1].key == name), params)
    assert np.abs(module.apply({"params": params}, x) - module.apply({"params": other}, x)).max() > 1e-3


@pytest.mark.parametrize(
    "change",
    [{"attention_biases": ("q",)}, {"mlp_bias": True}, {"rope_scaling": RopeScaling()}, {"norm": "rms_norm_1e-6"}],
)
def test_a_model_of_the_moshi_family_has_none_of_what_others_have(change):
    require_moshi_form(BASE, "the stack")
    other = dataclasses.replace(BASE, **change)
    with pytest.raises(ConfigError, match=f"{next(iter(change))}=.*the stack has"):
        require_moshi_form(other, "the stack")
    for refusing in (
        lambda: DepthConfig(dataclasses.replace(other, context=None, gating="silu")),
        lambda: dataclasses.replace(tiny.CODEC, transformer=other),
    ):
        with pytest.raises(ConfigError, match=f"{next(iter(change))}="):
            refusing()


def test_stacked_layers_do_not_stream():
    x = jnp.zeros((1, 1, 16))
    module = Transformer(BASE, scan_layers=True)
    variables = {"params": stacked_params(BASE, x)}
    with pytest.raises(ConfigError, match="unstack_layers"):
        module.apply(variables, module.init_state(1), x, method="step")


@pytest.mark.parametrize("kind", KINDS)
def test_scan_and_remat_change_nothing(kind):
    config = KINDS[kind]
    x = jax.random.normal(KEY, (2, 9, 16))
    params = stacked_params(config, x)

    def results(config, params, scan):
        module = Transformer(config, scan_layers=scan)
        value = jax.jit(jax.value_and_grad(lambda p: jnp.sum(jnp.sin(module.apply({"params": p}, x)))))
        loss, grads = value(params)
        return loss, grads if scan else stack_layers(grads)

    want = results(config, params, True)
    others = [results(config, unstack_layers(params), False)]
    others += [results(dataclasses.replace(config, remat_policy=name), params, True) for name in REMAT_POLICIES]
    for other in others:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-5), want, other)


def test_layouts_round_trip():
    x = jnp.zeros((1, 3, 16))
    params = stacked_params(BASE, x)
    flat = unstack_layers(params)
    assert is_stacked(params) and not is_stacked(flat)
    assert set(flat) == {"layers_0", "layers_1"}
    assert jax.tree.structure(stack_layers(flat)) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, stack_layers(flat), params)
    own = nn.meta.unbox(jax.eval_shape(Transformer(BASE).init, KEY, x))["params"]
    assert jax.tree.map(lambda a: a.shape, own) == jax.tree.map(lambda a: a.shape, flat)


def test_no_gradient_from_the_future_or_beyond_the_receptive_field():
    config = dataclasses.replace(BASE, context=3)
    module = Transformer(config)
    x = jax.random.normal(KEY, (1, 12, 16))
    variables = jax.jit(module.init)(KEY, x)
    assert module.receptive_field == 5
    jacobian = jax.jit(jax.grad(lambda x, t: jnp.sum(module.apply(variables, x)[0, t])))
    for t in (0, 4, 9):
        reach = jacobian(x, t)[0]
        seen = np.abs(reach).max(axis=1) > 0
        np.testing.assert_array_equal(seen, [t - 5 < s <= t for s in range(12)])


def test_bfloat16_computation_keeps_float32_parameters():
    config = dataclasses.replace(KINDS["gated"], dtype="bfloat16", precision="default")
    x = jax.random.normal(KEY, (2, 9, 16))
    params = stacked_params(config, x)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    y = jax.jit(Transformer(config, scan_layers=True).apply)({"params": params}, x)
    full = jax.jit(Transformer(KINDS["gated"], scan_layers=True).apply)({"params": params}, x)
    assert y.dtype == jnp.bfloat16
    assert np.abs(y.astype(jnp.float32) - full).max() < 0.05 * np.abs(full).max()


@pytest.mark.parametrize("positions", [None, 1, 3], ids=["whole", "step", "block"])
def test_scores_of_attention_are_float32(positions):
    """In bfloat16 too the products under the softmax come out in float32, and are not rounded on the way.

    A block sees two sets of keys, so it has two; beside that of a step stand the two halves of its values.
    """
    config = dataclasses.replace(BASE, num_layers=1, dtype="bfloat16", precision="default")
    module, x = Transformer(config), jnp.zeros((2, positions or 9, 16))
    variables = nn.meta.unbox(jax.eval_shape(module.init, KEY, x))
    if positions is None:
        jaxpr = jax.make_jaxpr(module.apply)(variables, x)
    else:
        jaxpr = jax.make_jaxpr(lambda v, s: module.apply(v, s, x, method="step"))(variables, module.init_state(2))
    products = [line.split("=")[0] for line in str(jaxpr).splitlines() if "dot_general" in line]
    scores = [made for made in products if ":f32[" in made]
    assert len(scores) == (1 if positions is None else 2), products


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"num_heads": 3}, "num_heads=3 does not divide dim=16"),
        ({"kv_repeat": 3}, "kv_repeat=3 does not divide num_heads=4"),
        ({"norm": "batch_norm"}, "norm='batch_norm'"),
        ({"gating": "swish"}, "gating='swish'"),
        ({"positional_embedding": "alibi"}, "positional_embedding='alibi'"),
        ({"dim": 12}, "head width 3"),
        ({"context": 0}, "context=0"),
        ({"dtype": "float8"}, "dtype='float8'"),
        ({"remat_policy": "some"}, "remat_policy='some'"),
        ({"attention_biases": ("q", "w")}, "must be names of q, k, v, out, each once"),
        ({"attention_biases": ("q", "q")}, "each once"),
        ({"rope_scaling": RopeScaling(), "positional_embedding": "sin"}, "rotates nothing"),
    ],
)
def test_bad_configs_name_value_and_rule(field, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(BASE, **field)
