"""LoRA adapters: split and fused names, kept apart or merged, and what is wrong with one."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from moshijax import weights
from moshijax.errors import ConfigError, DataError
from moshijax.weights.kyutai import LINEAR
from moshijax.weights.source import open_source
from moshijax.weights.transfer import export_weights, import_weights
from tests.weights.test_lm import PUBLISHED, published_tensors, write
from tests.weights.test_transfer import bits

RANK, SCALING = 2, 1.5
STATED = {**PUBLISHED, "lora": True, "lora_rank": RANK, "lora_scaling": SCALING, "lora_name": "lora.safetensors"}


def adapter_tensors(split=True):
    """A pair for every linear map, steps apart or stacked."""
    random, out = np.random.RandomState(3), {}
    for name, tensor in published_tensors(PUBLISHED).items():
        if not LINEAR.search(name):
            continue
        rows, columns = tensor.shape
        steps = 2 if name.startswith("depformer.") and "_proj" in name else 1
        a = random.standard_normal((steps, RANK, columns)).astype(np.float32)
        b = random.standard_normal((steps, rows // steps, RANK)).astype(np.float32)
        stem = name.removesuffix("_weight").removesuffix(".weight")
        if split and stem.endswith(("in_proj", "out_proj")):
            for s in range(steps):
                out[f"{stem}s.{s}.lora_A.weight"], out[f"{stem}s.{s}.lora_B.weight"] = a[s], b[s]
        else:
            out[f"{stem}.lora_A.weight"], out[f"{stem}.lora_B.weight"] = a.reshape(-1, columns), b.reshape(rows, RANK)
    return out


def model(folder, adapter, stated=STATED):
    write(folder, stated, published_tensors(PUBLISHED))
    save_file(adapter, folder / "lora.safetensors")
    return folder


@pytest.mark.parametrize("split", [True, False])
def test_apart_and_merged(tmp_path, split):
    given = model(tmp_path / "given", adapter_tensors(split))
    import_weights(given, tmp_path / "ours")
    export_weights(open_source(tmp_path / "ours"), tmp_path / "back", "kyutai-fused")
    assert bits(tmp_path / "back") == bits(given)
    assert (tmp_path / "back" / "lora.safetensors").read_bytes() == (given / "lora.safetensors").read_bytes()
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == STATED

    export_weights(open_source(tmp_path / "ours"), tmp_path / "merged", "kyutai-fused", merge=True)
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
        export_weights(open_source(given), tmp_path / "theirs", "mlx")


def test_an_adapter_on_top_of_a_model(tmp_path, cli):
    given = write(tmp_path / "given", PUBLISHED, published_tensors(PUBLISHED))
    (tmp_path / "tuned").mkdir()
    save_file(adapter_tensors(), tmp_path / "tuned" / "lora.safetensors")
    (tmp_path / "tuned" / "config.json").write_text(json.dumps(STATED))
    code, out, _ = cli("weights", "import", given, tmp_path / "ours", "--adapter", tmp_path / "tuned/lora.safetensors")
    assert code == 0 and "an adapter" in out
    _, want = weights.load_lm(model(tmp_path / "both", adapter_tensors()))
    _, got = weights.load_lm(tmp_path / "ours")
    np.testing.assert_array_equal(got["text_head"]["kernel"], want["text_head"]["kernel"])


def test_bfloat16_weights_keep_their_type(tmp_path):
    tensors = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in published_tensors(PUBLISHED).items()}
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
