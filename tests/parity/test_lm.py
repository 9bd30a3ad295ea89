"""Language models against recorded numbers of the PyTorch reference (see tests/parity/README.md)."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moshijax import lm
from moshijax.lm.generation import step
from moshijax.nn.layout import stack_layers
from moshijax.nn.norms import NORM_KINDS
from moshijax.weights import load_lm
from moshijax.weights.lm_config import DEFAULTS, INHERITED, lm_config, published_config
from tests.parity.weights_by_name import FIXTURES, load_fixture, write_checkpoint

NAMES = sorted(path.stem for path in FIXTURES.glob("lm_*.json"))
STREAMED = [name for name in NAMES if "generation" in load_fixture(name)[0]]


@functools.cache
def load(name):
    description, arrays = load_fixture(name)
    with tempfile.TemporaryDirectory() as scratch:
        config, params = load_lm(write_checkpoint(Path(scratch) / name, description))
    return config, jax.tree.map(jnp.asarray, params), arrays, description


def conditions(description, arrays, key="conditions"):
    """The value of each condition for every row, or none."""
    found = {name: jnp.asarray(values) for name, values in description.get(key, {}).items()}
    for name in [name for name in arrays if name.startswith(f"{key}_") and not name.endswith("_mask")]:
        found[name.removeprefix(f"{key}_")] = lm.Vectors(arrays[name], arrays[f"{name}_mask"])
    return found or None


def guidance(run):
    """Of the run kind `guided`, or none."""
    if "cfg_coef" not in run:
        return None
    return lm.Guidance(run["cfg_coef"], run.get("cfg_is_masked_until", 0), not run.get("cfg_is_no_text", False))


def test_there_are_enough_models():
    assert len(NAMES) >= 8 and len(STREAMED) >= 6


def test_the_models_together_touch_every_supported_field():
    """Every field appears with a value that is not its default; every kind of norm, position and activation appears."""
    published = [load_fixture(name)[0]["config"] for name in NAMES]
    refused = {"quantize", "lora", "demux_second_text_stream"}  # (the last is another name of demux_second_stream)
    fields = (
        set(DEFAULTS) - refused - {"causal"} | {f"depformer_{name}" for name in INHERITED} | {"depformer_num_heads"}
    )
    touched = {field for config in published for field, value in config.items() if value != DEFAULTS.get(field, "")}
    assert fields - touched == set()

    def values(*names):
        return {config.get(name, DEFAULTS.get(name)) for config in published for name in names}

    assert values("norm") == set(NORM_KINDS)
    assert values("positional_embedding") == {"rope", "rope_concat", "sin", "sin_rope", "none"}
    assert values("depformer_pos_emb") == {"rope", "rope_concat", "sin", "sin_rope", "none"}
    gated = {"sigmoid", "tanh", "relu", "leaky_relu", "elu", "gelu", "silu", "mish", "softsign", "identity"}
    assert values("gating", "depformer_gating") - {None} == gated | {"none"}


@pytest.mark.parametrize("name", NAMES)
def test_published_config_comes_back(name):
    config = load(name)[0]
    assert lm_config(json.loads(json.dumps(published_config(config)))) == config


@pytest.mark.parametrize("name", NAMES)
def test_training_forward(name):
    config, params, want, description = load(name)
    assert lm.count_parameters(config) == sum(
        int(np.prod(shape)) for key, shape in description["tensors"].items() if config.depth or "depformer" not in key
    )
    codes = jnp.asarray(want["codes"])
    context = config.temporal.context
    assert context is None or codes.shape[2] > context
    output = jax.jit(functools.partial(lm.forward, config))(params, codes, conditions(description, want))
    np.testing.assert_array_equal(output.text_mask, want["text_mask"])
    kept = np.asarray(output.text_mask)[..., None]
    np.testing.assert_allclose(output.text_logits * kept, want["text_logits"] * kept, atol=1e-4, rtol=0)
    if config.depth is not None:
        np.testing.assert_array_equal(output.mask, want["mask"])
        kept = np.asarray(output.mask)[..., None]
        np.testing.assert_allclose(output.logits * kept, want["logits"] * kept, atol=1e-4, rtol=0)
    if config.extra_heads:
        extra = jax.nn.softmax(output.extra_logits, axis=-1).swapaxes(1, 2)
        np.testing.assert_allclose(extra, want["extra_heads"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["lm_moshi", "lm_schedule", "lm_rope_depth", "lm_cross"])
def test_training_layout_is_the_same_function(name):
    config, params, want, description = load(name)
    codes = jnp.asarray(want["codes"])
    output = jax.jit(functools.partial(lm.forward, config))(stack_layers(params), codes, conditions(description, want))
    kept = np.asarray(output.mask)[..., None]
    np.testing.assert_allclose(output.logits * kept, want["logits"] * kept, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", STREAMED)
def test_generation_token_for_token(name):
    config, params, want, description = load(name)
    batch = want["sync_out"].shape[1]

    @jax.jit
    def one(params, state, given, force, active, reset):
        state = lm.reset_generation(config, state, reset)
        return step(config, params, state, given, force, active)

    for kind, run in description["generation"].items():
        given = want[f"{kind}_given"]
        calls = given.shape[0]
        assert calls > config.temporal.context
        active = want.get(f"{kind}_active", np.ones((calls, batch), bool))
        reset = want.get(f"{kind}_reset", np.zeros((calls, batch), bool))
        free = np.full(want[f"{kind}_out"].shape, lm.tokens.UNGENERATED)
        force = want.get(f"{kind}_force", free)
        chosen = conditions(description, want, "generation_conditions")
        state = lm.init_generation(
            config, params, batch, lm.Sampling.greedy(), conditions=chosen, guidance=guidance(run)
        )
        for n in range(calls):
            state, output = one(params, state, given[n], force[n], active[n], reset[n])
            np.testing.assert_array_equal(output.out_BK, want[f"{kind}_out"][n], err_msg=f"{kind}, call {n + 1}")
            run = active[n]
            np.testing.assert_allclose(
                output.text_logits_BV[run], want[f"{kind}_text_logits"][n][run], atol=1e-4, rtol=0
            )
