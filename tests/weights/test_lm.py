from __future__ import annotations

import json
import re

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from moshijax import lm, weights
from moshijax.errors import ConfigError, DataError
from moshijax.export.source import _sampling
from moshijax.nn.layout import is_stacked, stack_layers, unpack_in_proj, unstack_layers
from moshijax.weights.formats.lm_config import LEGACY_7B, lm_config, published_config, unused_fields
from moshijax.weights.formats.lm_table import lm_table
from moshijax.weights.table import AsParameters, AsPublished
from moshijax.weights.tensors import InMemory

PUBLISHED = {
    "dim": 16,
    "num_layers": 2,
    "num_heads": 4,
    "hidden_scale": 4.125,
    "context": 8,
    "n_q": 4,
    "dep_q": 3,
    "card": 10,
    "text_card": 12,
    "delays": [0, 0, 1, 1, 0],
    "norm": "rms_norm_f32",
    "gating": "silu",
    "positional_embedding": "rope",
    "kv_repeat": 2,
    "depformer_dim": 8,
    "depformer_num_heads": 2,
    "depformer_num_layers": 1,
    "depformer_multi_linear": True,
    "depformer_weights_per_step": True,
    "depformer_weights_per_step_schedule": [0, 1, 1],
    "depformer_dim_feedforward": [24, 36],
    "depformer_pos_emb": "none",
    "depformer_norm": "layer_norm",
    "depformer_low_rank_embeddings": 3,
    "extra_heads_num_heads": 2,
}


def published_tensors(published, seed=0):
    random = np.random.RandomState(seed)
    entries = lm_table(lm_config(published))
    return {name: random.standard_normal(entry.shape).astype(np.float32) for name, entry in entries.items()}


def write(folder, published, tensors):
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    if published is not None:
        (folder / "config.json").write_text(json.dumps(published))
    return folder


def leaves(tensors):
    config = lm_config(PUBLISHED)
    return AsParameters(lm_table(config), tensors, lm.abstract(config, stacked=False)).tree()


def split_names(tensors, weights_per_step=2):
    """The in-memory names of the package: one projection per distinct weight."""
    out = {}
    for name, tensor in tensors.items():
        match = re.match(r"(.*)\.(in_proj_weight|out_proj\.weight)$", name)
        if match is None:
            out[name] = tensor
            continue
        part = "in_projs" if match[2].startswith("in") else "out_projs"
        pieces = np.split(tensor, weights_per_step if name.startswith("depformer.") else 1)
        out |= {f"{match[1]}.{part}.{i}.weight": piece for i, piece in enumerate(pieces)}
    return out


def test_names_and_sizes_of_the_released_7b():
    config = lm_config(LEGACY_7B)
    entries = lm_table(config)
    shapes = {name: entry.shape for name, entry in entries.items()}
    assert len(shapes) == 355
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 7_687_729_152
    assert shapes["depformer.layers.5.self_attn.in_proj_weight"] == (24576, 1024)
    assert shapes["transformer.layers.31.gating.linear_in.weight"] == (22528, 4096)
    assert shapes["out_norm.alpha"] == (1, 1, 4096)
    assert config.with_dtype("bfloat16") == lm.configs.MOSHI_7B


@pytest.mark.parametrize("split", [False, True])
def test_load_fused_and_split_names(tmp_path, split):
    tensors = published_tensors(PUBLISHED)
    folder = write(tmp_path / "model", PUBLISHED, split_names(tensors) if split else tensors)
    config, params = weights.load_lm(folder)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, lm.abstract(config, stacked=False))
    assert not is_stacked(params) and is_stacked(weights.load_lm(folder, stacked=True)[1])
    np.testing.assert_array_equal(params["audio_embedding"]["table"][2], tensors["emb.2.weight"])
    np.testing.assert_array_equal(params["out_norm"]["scale"], tensors["out_norm.alpha"][0, 0])
    np.testing.assert_array_equal(
        unpack_in_proj(params["temporal"]["layers_1"]["attention"]["in_proj"]["kernel"], 4, 2),
        tensors["transformer.layers.1.self_attn.in_proj_weight"],
    )
    gate = params["temporal"]["layers_0"]["mlp"]["gate"]["kernel"]
    np.testing.assert_array_equal(gate, tensors["transformer.layers.0.gating.linear_in.weight"][:44])
    np.testing.assert_array_equal(params["extra_heads"][1], tensors["extra_heads.1.weight"])
    for layout in (params, stack_layers(params), unstack_layers(stack_layers(params), ("layers",))):
        back = AsPublished(lm_table(config), InMemory(flatten_dict(layout, sep="/")))
        assert set(back) == set(tensors)
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(back[name], tensor, err_msg=name)


def test_steps_are_slices_of_the_fused_tensor():
    """Step s is slice s of the rows, and inside it come q, k and v."""
    tensors = published_tensors(PUBLISHED)
    rows, dim = tensors["depformer.layers.0.self_attn.in_proj_weight"].shape
    counter = np.arange(rows * dim, dtype=np.float32).reshape(rows, dim)
    tensors["depformer.layers.0.self_attn.in_proj_weight"] = counter
    params = leaves(tensors)
    for step in range(2):
        kernel = params["depth"]["layers_0"]["attention"]["in_proj"][f"steps_{step}"]["kernel"]
        np.testing.assert_array_equal(unpack_in_proj(kernel, 2, 2), counter[step * rows // 2 : (step + 1) * rows // 2])


def test_uneven_widths_are_padded_with_zeros():
    params = leaves(published_tensors(PUBLISHED))
    mlp = params["depth"]["layers_0"]["mlp"]
    assert mlp["up"]["steps_0"]["kernel"].shape == mlp["up"]["steps_1"]["kernel"].shape == (24, 8)
    assert (mlp["up"]["steps_0"]["kernel"][16:] == 0).all() and (mlp["up"]["steps_0"]["kernel"][:16] != 0).all()
    assert (mlp["down"]["steps_0"]["kernel"][:, 16:] == 0).all()


def test_types(tmp_path):
    import ml_dtypes

    tensors = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in published_tensors(PUBLISHED).items()}
    folder = write(tmp_path / "model", PUBLISHED, tensors)
    config, params = weights.load_lm(folder)
    assert config.temporal.param_dtype == config.temporal.dtype == config.depth.transformer.dtype == "bfloat16"
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    config, params = weights.load_lm(folder, dtype="float32")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {"float32"} == {config.temporal.param_dtype}


def test_everything_that_does_not_fit_is_listed_together(tmp_path):
    tensors = published_tensors(PUBLISHED)
    del tensors["emb.0.weight"]
    tensors["emb.9.weight"] = np.zeros((11, 16), np.float32)
    tensors["text_linear.weight"] = np.zeros((11, 16), np.float32)
    folder = write(tmp_path / "model", PUBLISHED, tensors)
    with pytest.raises(DataError) as error:
        weights.load_lm(folder)
    message = str(error.value)
    assert "\n" not in message and "3 tensors" in message
    for part in ("missing emb.0.weight [11, 16]", "unexpected emb.9.weight [11, 16]"):
        assert part in message
    assert "mis-shaped text_linear.weight: file [11, 16], model [12, 16]" in message


def test_truncated_file(tmp_path):
    folder = write(tmp_path / "model", PUBLISHED, published_tensors(PUBLISHED))
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])
    with pytest.raises(DataError, match=f"expected {len(data)} bytes, found {len(data) - 100}"):
        weights.load_lm(folder)


def test_a_directory_without_a_config(tmp_path):
    folder = write(tmp_path / "model", None, published_tensors(PUBLISHED))
    with pytest.raises(DataError, match=r"no config\.json"):
        weights.load_lm(folder)
    with pytest.raises(DataError, match="do not fit"):  # a file alone is read as the released 7B
        weights.load_lm(folder / "model.safetensors")


def test_translation_models_do_not_end(tmp_path):
    tensors = published_tensors(PUBLISHED)
    _, params = weights.load_lm(write(tmp_path / "model", {**PUBLISHED, "model_type": "hibiki"}, tensors))
    table = params["text_embedding"]["table"][0]
    np.testing.assert_array_equal(table[2], tensors["text_emb.weight"][3])
    np.testing.assert_array_equal(table[1], tensors["text_emb.weight"][1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_head": 4}, "unknown field 'num_head'; did you mean 'num_heads'"),
        ({"num_layers": None}, "lacks num_layers"),
        ({"delays": [0, 1]}, "2 delays for n_q=4"),
        ({"cross_attention": True}, "kv_repeat=2 with cross_attention"),
        ({"conditioners": {"a": {"type": "lut"}}}, "conditioner 'a' is not in the fuser"),
        ({"fuser": {"sum": ["a"]}}, "conditioner 'a' has type=None: must be lut or tensor"),
        ({"fuser": {"prepend": ["a"]}}, "prepends"),
        ({"hidden_scale": "4"}, "hidden_scale is '4': must be a number from 1e-06"),
        ({"num_heads": 3}, "num_heads=3 does not divide dim=16"),
        ({"num_heads": 2**31 - 1}, "does not divide dim=16"),
        ({"max_period": 0}, "max_period is 0: must be a number from 1e-06"),
        ({"hidden_scale": float("inf")}, "hidden_scale is inf: must be a number"),
        ({"context": 10**30}, "context is 1000000000000000000000000000000: must be a whole number from 1 to 1048576"),
        ({"delays": [None] * 5}, r"delays\[0\] is None: must be a whole number from 0 to 10000"),
        ({"depformer_max_period": None}, "depformer_max_period is None: must be a number"),
        ({"depformer_dim_feedforward": "x"}, "depformer_dim_feedforward is 'x': must be"),
        ({"lora_scaling": None}, "lora_scaling is None: must be a number"),
        ({"lm_gen_config": {"temp": -1}}, "lm_gen_config: temp is -1: must be a number from 0"),
    ],
)
def test_bad_configs(change, message):
    with pytest.raises(ConfigError, match=message):
        lm_config({**PUBLISHED, **change})


def test_what_releases_say_of_generation_is_read_or_named():
    said = {"temp": 0.6, "text_temp": None, "use_sampling": False, "cfg_coef": 3.0, "check": True}
    published = {**PUBLISHED, "lm_gen_config": said, "tts_config": {"audio_delay": 1.28, "new": 1}}
    lm_config(published)
    assert unused_fields(published) == ["lm_gen_config.cfg_coef", "lm_gen_config.check", "tts_config.new"]
    assert _sampling({"lm_gen_config": said}) == {"temperature": 0.0, "text_temperature": 0.0}
    assert _sampling({"lm_gen_config": {"text_temp": 0.5, "temp": None}}) == {"text_temperature": 0.5}


def test_more_layers_than_tensors_are_refused_at_once(tmp_path):
    folder = write(tmp_path / "model", {**PUBLISHED, "num_layers": 4096}, published_tensors(PUBLISHED))
    with pytest.raises(DataError, match="tensors, its config declares 4096 layers"):
        weights.load_lm(folder)


def test_config_round_trip():
    for config in (lm_config(PUBLISHED), lm.configs.MOSHI_7B.with_dtype("float32"), lm_config(LEGACY_7B)):
        assert lm_config(json.loads(json.dumps(published_config(config)))) == config
    dev = lm.configs.DEV_2B.with_dtype("float32")
    again = lm_config(published_config(dev))
    assert again == dev and lm.count_parameters(again) == 3_729_805_312
