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
from moshijax.tokens import UNGENERATED
from moshijax.weights import load_lm
from moshijax.weights.formats.lm_config import DEFAULTS, INHERITED, lm_config, published_config
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
    # (demux_second_text_stream is another name of demux_second_stream.)
    fields = set(DEFAULTS) - {"causal", "demux_second_text_stream"} | {f"depformer_{name}" for name in INHERITED}
    fields |= {"depformer_num_heads", "lora_rank", "lora_scaling"}
    touched = {field for config in published for field, value in config.items() if value != DEFAULTS.get(field, "")}
    assert fields - touched == set()

    def values(*names):
        return {config.get(name, DEFAULTS.get(name)) for config in published for name in names}

    assert values("norm") == set(NORM_KINDS) - {"rms_norm_1e-6"}  # of Qwen2 alone
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


@pytest.mark.parametrize("split", [True, False], ids=["split", "fused"])
@pytest.mark.parametrize("way", ["apart", "off"])
def test_adapter(tmp_path, way, split):
    """Split and fused names; beside the weights and without (merged into them in `test_training_forward`)."""
    description, want = load_fixture("lm_lora")
    folder = write_checkpoint(tmp_path / "model", description, split)
    if way == "off":
        stated = {name: value for name, value in description["config"].items() if not name.startswith("lora")}
        (folder / "config.json").write_text(json.dumps(stated))
    config, params = load_lm(folder, stacked=True, merge_adapter=False)
    assert config.lora == (lm.LoRA(4, 0.3) if way == "apart" else None)
    output = jax.jit(functools.partial(lm.forward, config))(params, want["codes"], conditions(description, want))
    prefix = "off_" if way == "off" else ""
    for name, mask in (("logits", output.mask), ("text_logits", output.text_mask)):
        kept = np.asarray(mask)[..., None]
        np.testing.assert_allclose(getattr(output, name) * kept, want[prefix + name] * kept, atol=1e-4, rtol=0)
    assert np.abs(want["logits"] - want["off_logits"]).max() > 1  # the adapter says something


def test_int8_as_the_package_computes_it():
    """Its products are float16: we differ by their rounding, and name the same tokens but for near ties."""
    config, params, want, _ = load("lm_int8")
    output = jax.jit(functools.partial(lm.forward, config))(params, jnp.asarray(want["codes"]))
    for name, mask in (("logits", output.mask), ("text_logits", output.text_mask)):
        got, expected = np.asarray(getattr(output, name))[mask], want[f"half_{name}"][mask]
        assert np.abs(got - expected).max() < 0.05 * expected.std()
        assert np.mean(got.argmax(-1) == expected.argmax(-1)) > 0.95


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
    def one(params, state, given, greedy, guided, force, active, reset):
        state = lm.reset_generation(config, state, reset)
        return step(config, params, state, given, greedy, guided, force, active)

    for kind, run in description["generation"].items():
        given = want[f"{kind}_given"]
        calls = given.shape[0]
        assert calls > config.temporal.context
        active = want.get(f"{kind}_active", np.ones((calls, batch), bool))
        reset = want.get(f"{kind}_reset", np.zeros((calls, batch), bool))
        free = np.full(want[f"{kind}_out"].shape, UNGENERATED)
        force = want.get(f"{kind}_force", free)
        chosen = conditions(description, want, "generation_conditions")
        guided = None if guidance(run) is None else guidance(run).rows(batch)
        state = lm.init_generation(config, params, batch, conditions=chosen, guided=guided is not None)
        greedy = lm.Sampling.greedy().rows(batch)
        for n in range(calls):
            state, output = one(params, state, given[n], greedy, guided, force[n], active[n], reset[n])
            np.testing.assert_array_equal(output.out_BK, want[f"{kind}_out"][n], err_msg=f"{kind}, call {n + 1}")
            run = active[n]
            np.testing.assert_allclose(
                output.text_logits_BV[run], want[f"{kind}_text_logits"][n][run], atol=1e-4, rtol=0
            )
