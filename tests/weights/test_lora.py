"""LoRA adapters: split and fused names, kept apart or merged, and what is wrong with one."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from moshijax import lm, weights
from moshijax.errors import ConfigError, DataError
from moshijax.lm import generation
from moshijax.nn.layout import stack_layers
from moshijax.testing import tiny
from moshijax.tokens import UNGENERATED
from moshijax.weights.formats.kyutai import LINEAR
from moshijax.weights.formats.lm_table import lm_table
from moshijax.weights.opening import open_model
from moshijax.weights.transfer import export_weights, import_weights
from tests.weights.test_lm import PUBLISHED, published_tensors, write
from tests.weights.test_transfer import bits

RANK, SCALING = 2, 1.5
STATED = {**PUBLISHED, "lora": True, "lora_rank": RANK, "lora_scaling": SCALING, "lora_name": "lora.safetensors"}


def base_tensors():
    """Linear maps of the size that training begins with: larger ones saturate attention, which magnifies rounding."""
    return {
        name: tensor / np.float32(tensor.shape[1] ** 0.5) if LINEAR.search(name) else tensor
        for name, tensor in published_tensors(PUBLISHED).items()
    }


def adapter_tensors(split=True):
    """A pair for every linear map, steps apart or stacked; what a pair adds is as large as its map."""
    random, out = np.random.RandomState(3), {}
    for name, tensor in base_tensors().items():
        if not LINEAR.search(name):
            continue
        rows, columns = tensor.shape
        steps = 2 if name.startswith("depformer.") and "_proj" in name else 1
        a = (random.standard_normal((steps, RANK, columns)) / columns**0.5).astype(np.float32)
        b = (random.standard_normal((steps, rows // steps, RANK)) / RANK**0.5).astype(np.float32)
        stem = name.removesuffix("_weight").removesuffix(".weight")
        if split and stem.endswith(("in_proj", "out_proj")):
            for s in range(steps):
                out[f"{stem}s.{s}.lora_A.weight"], out[f"{stem}s.{s}.lora_B.weight"] = a[s], b[s]
        else:
            out[f"{stem}.lora_A.weight"], out[f"{stem}.lora_B.weight"] = a.reshape(-1, columns), b.reshape(rows, RANK)
    return out


def model(folder, adapter, stated=STATED):
    write(folder, stated, base_tensors())
    save_file(adapter, folder / "lora.safetensors")
    return folder


@pytest.mark.parametrize("split", [True, False])
def test_apart_and_merged(tmp_path, split):
    given = model(tmp_path / "given", adapter_tensors(split))
    import_weights(given, tmp_path / "ours")
    export_weights(open_model(tmp_path / "ours"), tmp_path / "back", "kyutai-fused")
    assert bits(tmp_path / "back") == bits(given)
    assert (tmp_path / "back" / "lora.safetensors").read_bytes() == (given / "lora.safetensors").read_bytes()
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == STATED

    export_weights(open_model(tmp_path / "ours"), tmp_path / "merged", "kyutai-fused", merge=True)
    assert json.loads((tmp_path / "merged" / "config.json").read_text()) == PUBLISHED
    merged, base, pairs = (
        load_file(f)
        for f in (tmp_path / "merged" / "model.safetensors", given / "model.safetensors", given / "lora.safetensors")
    )
    name = "depformer.layers.0.self_attn.in_proj"
    for step in range(2):
        a, b = (
            pairs[f"{name}s.{step}.{letter}.weight"] if split else np.split(pairs[f"{name}.{letter}.weight"], 2)[step]
            for letter in ("lora_A", "lora_B")
        )
        want = np.split(base[f"{name}_weight"], 2)[step] + SCALING * b @ a
        np.testing.assert_allclose(np.split(merged[f"{name}_weight"], 2)[step], want, atol=1e-5)
    np.testing.assert_array_equal(merged["text_emb.weight"], base["text_emb.weight"])
    # Loading adds the adapter.
    _, params = weights.load_lm(given)
    want = (
        base["text_linear.weight"] + SCALING * pairs["text_linear.lora_B.weight"] @ pairs["text_linear.lora_A.weight"]
    )
    np.testing.assert_allclose(params["text_head"]["kernel"], want, atol=1e-5)
    np.testing.assert_array_equal(
        weights.load_lm(tmp_path / "merged")[1]["text_head"]["kernel"], params["text_head"]["kernel"]
    )
    with pytest.raises(ConfigError, match="--merge-adapter"):
        export_weights(open_model(given), tmp_path / "theirs", "mlx")


def test_apart_is_the_same_function_as_merged(tmp_path):
    """Whole sequences in the training layout, and generation in the other one; every kind of map has a pair."""
    given = model(tmp_path / "given", adapter_tensors())
    config, params = weights.load_lm(given)
    apart, pairs = weights.load_lm(given, merge_adapter=False)
    assert config.lora is None and apart.lora == lm.LoRA(RANK, SCALING)
    codes = np.random.RandomState(0).randint(0, 10, (2, 5, 9)).astype(np.int32)
    want, got = (
        jax.jit(lm.forward, static_argnums=0)(c, stack_layers(p), codes) for c, p in ((config, params), (apart, pairs))
    )
    for name in ("logits", "text_logits", "extra_logits"):
        np.testing.assert_allclose(getattr(got, name), getattr(want, name), atol=1e-4, rtol=1e-5, err_msg=name)

    seen = []
    for c, p in ((config, params), (apart, pairs)):
        state = lm.init_generation(c, p, 1)
        one, greedy = jax.jit(functools.partial(generation.step, c)), lm.Sampling.greedy().rows(1)
        free = np.full((1, 4), UNGENERATED, np.int32)
        outputs = []
        for t in range(4):
            state, output = one(p, state, codes[:1, 4:, t], greedy, None, free)
            outputs.append(output)
        seen.append(outputs)
    for want, got in zip(*seen, strict=True):
        np.testing.assert_array_equal(got.out_BK, want.out_BK)
        np.testing.assert_allclose(got.text_logits_BV, want.text_logits_BV, atol=1e-4, rtol=1e-5)


def test_some_maps_only(tmp_path):
    """An adapter for a part of the model names the modules that it has."""
    adapter = {n: a for n, a in adapter_tensors().items() if n.startswith("transformer.") and "self_attn" in n}
    given = model(tmp_path / "given", adapter)
    config, params = weights.load_lm(given, merge_adapter=False, stacked=True)
    assert config.lora.modules == ("temporal/attention/in_proj", "temporal/attention/out_proj")
    have = {path for path in flatten_dict(params, sep="/") if "lora" in path}
    assert have == {f"temporal/layers/attention/{part}_proj/lora_{ab}" for part in ("in", "out") for ab in "ab"}
    del adapter["transformer.layers.1.self_attn.in_projs.0.lora_A.weight"]
    del adapter["transformer.layers.1.self_attn.in_projs.0.lora_B.weight"]
    given = model(tmp_path / "uneven", adapter)
    weights.load_lm(given)
    with pytest.raises(ConfigError, match=r"layers.1.*in_proj.lora_A.weight is missing, which other layers"):
        weights.load_lm(given, merge_adapter=False)


def test_a_new_update_does_nothing_and_is_split_as_the_weights_are():
    base = tiny.LM
    config = dataclasses.replace(base, lora=lm.LoRA(4, modules=("depth/*", "*/mlp/up", "text_head")))
    params, plain = lm.init(config, jax.random.key(0)), lm.abstract(base)
    specs = lm.partition_specs(config)
    flat, specs = flatten_dict(params, sep="/"), flatten_dict(specs, sep="/")
    new = set(flat) - set(flatten_dict(plain, sep="/"))
    assert {path.split("/")[0] for path in new} == {"temporal", "depth", "text_head"}
    for path in new:
        kernel = specs[path.rsplit("/", 1)[0] + "/kernel"]
        if path.endswith("lora_b"):
            assert not np.any(flat[path]) and tuple(specs[path]) == (*kernel[:-1], None)
        else:
            assert np.any(flat[path]) and tuple(specs[path]) == (*kernel[:-2], None, kernel[-1])
    assert "temporal/layers/mlp/up/lora_a" in new and "temporal/layers/mlp/gate/lora_a" not in new


def test_the_adapter_of_a_7b_model():
    """As the PyTorch package counts its own: 674 tensors, 387 874 816 values at rank 128."""
    config = dataclasses.replace(lm.configs.MOSHI_7B, lora=lm.LoRA(128))
    names = {name: entry.shape for name, entry in lm_table(config).items() if "lora_" in name}
    stacked = [n for n in names if n.startswith("depformer.") and "_proj" in n]
    assert len(names) + 7 * len(stacked) == 674
    assert sum(np.prod(shape) for shape in names.values()) == 387_874_816


def test_an_adapter_on_top_of_a_model(tmp_path, cli):
    given = write(tmp_path / "given", PUBLISHED, base_tensors())
    (tmp_path / "tuned").mkdir()
    save_file(adapter_tensors(), tmp_path / "tuned" / "lora.safetensors")
    (tmp_path / "tuned" / "config.json").write_text(json.dumps(STATED))
    code, out, _ = cli("weights", "import", given, tmp_path / "ours", "--adapter", tmp_path / "tuned/lora.safetensors")
    assert code == 0 and "an adapter" in out
    _, want = weights.load_lm(model(tmp_path / "both", adapter_tensors()))
    _, got = weights.load_lm(tmp_path / "ours")
    np.testing.assert_array_equal(got["text_head"]["kernel"], want["text_head"]["kernel"])


def test_bfloat16_weights_keep_their_type(tmp_path):
    tensors = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in base_tensors().items()}
    write(tmp_path / "given", STATED, tensors)
    save_file(adapter_tensors(), tmp_path / "given" / "lora.safetensors")
    config, params = weights.load_lm(tmp_path / "given")
    assert config.temporal.param_dtype == "bfloat16" == params["text_head"]["kernel"].dtype


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda a: a.update({"text_linear.lora_A.weight": np.ones((RANK + 1, 16), np.float32)}),
            r"text_linear: file \[3, 16\] and \[12, 2\], model \[2, 16\] and \[12, 2\]",
        ),
        (
            lambda a: a.update(
                {
                    "nothing.lora_A.weight": a["text_linear.lora_A.weight"],
                    "nothing.lora_B.weight": a["text_linear.lora_B.weight"],
                }
            ),
            "nothing is no linear map of the model",
        ),
        (
            lambda a: a.pop("text_linear.lora_B.weight"),
            "text_linear has lora_A and lora_B for different steps",
        ),
        (lambda a: a.update({"text_linear.weight": np.ones((12, 16), np.float32)}), "is no part of an adapter"),
        (lambda a: [a[name].fill(0) for name in a if "lora_B" in name], r"\d+ of \d+ lora_B are zero"),
        (lambda a: a.clear(), "holds no adapter"),
    ],
    ids=["shape", "name", "half", "weight", "zero", "empty"],
)
def test_an_adapter_that_does_not_fit(tmp_path, change, message):
    adapter = adapter_tensors()
    change(adapter)
    with pytest.raises(DataError, match=message):
        weights.load_lm(model(tmp_path / "given", adapter))


def test_an_adapter_that_is_not_there(tmp_path):
    given = model(tmp_path / "given", adapter_tensors())
    (given / "lora.safetensors").unlink()
    with pytest.raises(DataError, match=r"lora\.safetensors: cannot be read"):
        weights.load_lm(given)


@pytest.mark.parametrize("scaling", [None, "two", float("nan"), float("inf"), [2.0], True])
def test_an_adapter_with_a_scaling_that_is_no_number(tmp_path, cli, scaling):
    given = write(tmp_path / "given", PUBLISHED, base_tensors())
    (tmp_path / "tuned").mkdir()
    save_file(adapter_tensors(), tmp_path / "tuned" / "lora.safetensors")
    (tmp_path / "tuned" / "config.json").write_text(json.dumps({"lora_scaling": scaling}))
    adapter = tmp_path / "tuned" / "lora.safetensors"
    code, out, err = cli("weights", "import", given, tmp_path / "ours", "--adapter", adapter)
    assert code == 2 and out == "" and "lora_scaling is" in err and err.count("\n") == 1
    assert not (tmp_path / "ours").exists()
