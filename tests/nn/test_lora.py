"""Low-rank updates that reach modules from outside."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

from moshijax.errors import ConfigError
from moshijax.lm.embedding import TokenTables
from moshijax.lm.model import LanguageModel
from moshijax.nn.lora import LoRA, map_name, updates
from moshijax.nn.mlp import MLP
from moshijax.nn.projection import Linear, StepLinear
from tests.lm.models import codes, params, small
from tests.programs import Type, lowered, products_of_elements

UPDATE = LoRA(rank=2, scaling=0.5)


def initialised(module, *inputs):
    """The parameters of a module with updates, every B random."""
    tree = nn.meta.unbox(module.init(jax.random.key(0), *inputs))["params"]
    random = np.random.RandomState(0)

    def fill(path, leaf):
        return random.standard_normal(leaf.shape).astype(np.float32) if path[-1].key.endswith("lora_b") else leaf

    return jax.tree_util.tree_map_with_path(fill, tree)


def test_the_halves_of_a_gated_block_share_a_product():
    module, x = MLP(4, 6, gating="silu"), np.random.RandomState(1).standard_normal((5, 4)).astype(np.float32)
    with updates(UPDATE):
        tree = initialised(module, x)
        got = module.apply({"params": tree}, x)
        program = str(jax.make_jaxpr(module.apply)({"params": tree}, x))
    assert {name: set(part) for name, part in tree.items()} == {
        "gate": {"kernel", "lora_b"},
        "up": {"kernel", "lora_a", "lora_b"},
        "down": {"kernel", "lora_a", "lora_b"},
    }
    pairs = {name: (part["lora_b"], tree["up" if name == "gate" else name]["lora_a"]) for name, part in tree.items()}
    merged = {name: {"kernel": tree[name]["kernel"] + 0.5 * b @ a} for name, (b, a) in pairs.items()}
    np.testing.assert_allclose(got, module.apply({"params": merged}, x), atol=1e-5)
    assert program.count("dot_general") == 3 + 2 + 3  # maps, A, B


def test_scaling_multiplies_what_is_of_low_rank():
    """Not the wide results, and in the backward pass not their gradients."""
    module, x = Linear(8, 6), np.ones((5, 8), np.float32)
    with updates(UPDATE):
        tree = initialised(module, x)
        gradient = jax.grad(lambda params, x: module.apply({"params": params}, x).sum(), argnums=(0, 1))
        program = lowered(gradient, tree, x)
    assert products_of_elements(program) == [Type((5, 2), "f32")] * 2


def test_columns_that_a_step_does_not_use_stay_without_an_update():
    module = StepLinear(6, 5, (0, 1), used=(6, 2), used_axis=1, stacked=True)
    with updates(UPDATE):
        a = np.asarray(initialised(module, np.zeros((2, 1, 6)))["steps"]["lora_a"])
    assert a.shape == (2, 2, 6) and (a[1, :, 2:] == 0).all() and (a[0] != 0).all() and (a[1, :, :2] != 0).all()
    assert np.abs(a[0]).max() <= 6**-0.5 < np.abs(a[1]).max() <= 2**-0.5


def test_small_kernels_of_one_table_and_of_all():
    module, ids = TokenTables(3, 5, 4, low_rank=2), np.arange(12).reshape(3, 4) % 5
    with updates(UPDATE):
        tree = initialised(module, ids)
        whole = module.apply({"params": tree}, ids)
        for q in range(3):
            one = module.apply({"params": tree}, q, ids[q], method="one")
            np.testing.assert_allclose(one, whole[q], atol=1e-6)
    total = tree["low_rank"] + 0.5 * tree["low_rank_lora_b"] @ tree["low_rank_lora_a"]
    want = module.apply({"params": {"table": tree["table"], "low_rank": total}}, ids)
    np.testing.assert_allclose(whole, want, atol=1e-5)
    assert np.abs(whole - module.apply({"params": tree}, ids)).max() > 0.1


def test_a_model_does_not_run_without_its_updates():
    config = dataclasses.replace(small(), lora=UPDATE)
    module, variables = LanguageModel.of(config, params(config)), {"params": params(config)}
    with pytest.raises(ConfigError, match="call init or apply of the model"):
        module.bind(variables).embed(codes(config, 1, 3))
    with updates(config.lora):
        want = module.bind(variables)(codes(config, 1, 3)).text_logits
    np.testing.assert_array_equal(module.apply(variables, codes(config, 1, 3)).text_logits, want)


def test_names():
    assert map_name("temporal/layers_3/mlp/gate") == map_name("temporal/layers/mlp/up") == "temporal/mlp/up"
    assert map_name("depth/layers_0/mlp/gate/steps_1") == "depth/mlp/up" and map_name("text_head") == "text_head"
    every, some = LoRA(), LoRA(modules=("*/attention/*", "text_head"))
    assert every.has("depth/text_embedding/out1") and not every.has("text_embedding/out1")
    assert not every.has("temporal/cross_attention/q_proj") and not some.has("temporal/mlp/up")
    assert some.has("temporal/attention/in_proj") and some.has("text_head")
