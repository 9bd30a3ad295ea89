from __future__ import annotations

import json
from dataclasses import replace

import flax.linen as nn
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from moshijax import codec
from moshijax.errors import ConfigError, DataError
from moshijax.weights import load_mimi
from moshijax.weights.formats.mimi_config import mimi_config
from tests.parity.weights_by_name import load_fixture, write_checkpoint


@pytest.fixture
def published(tmp_path):
    description, _ = load_fixture("mimi_small")
    directory = write_checkpoint(tmp_path / "mimi", description)
    return directory, description


def rewrite(directory, change):
    path = directory / "model.safetensors"
    tensors = load_file(path)
    save_file(change(tensors), path)
    return path


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_every_variable_is_filled(published):
    directory, description = published
    config, params = load_mimi(directory)
    assert config == mimi_config(description["config"])
    expected = nn.meta.unbox(jax.eval_shape(lambda key: codec.init(config, key), jax.random.key(0)))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(lambda x: (x.shape, x.dtype), expected)
    assert sum(x.size for x in jax.tree.leaves(params)) == sum(np.prod(s) for s in description["tensors"].values())


def test_split_attention_and_old_codebook_names(published):
    directory, _ = published
    _, want = load_mimi(directory)
    names = {
        "self_attn.in_proj_weight": "self_attn.in_projs.0.weight",
        "self_attn.out_proj.weight": "self_attn.out_projs.0.weight",
        "_codebook._initialized": "_codebook.inited",
        "_codebook.cluster_usage": "_codebook.cluster_size",
        "_codebook.embedding_sum": "_codebook.embed_sum",
    }

    def rename(tensors):
        for new, old in names.items():
            tensors = {name.replace(new, old): value for name, value in tensors.items()}
        return tensors

    rewrite(directory, rename)
    same(load_mimi(directory)[1], want)


def test_lone_file_with_a_config(published):
    directory, _ = published
    config, want = load_mimi(directory)
    same(load_mimi(directory / "model.safetensors", config)[1], want)
    # A published repository: the language model's config names the codec's file.
    (directory / "model.safetensors").rename(directory / "tokenizer.safetensors")
    (directory / "config.json").write_text(json.dumps({"dim": 4096, "mimi_name": "tokenizer.safetensors"}))
    same(load_mimi(directory, config)[1], want)


def test_what_does_not_fit_is_listed_together(published):
    directory, _ = published

    def spoil(tensors):
        tensors["encoder.model.0.conv.conv.weight"] = np.zeros((4, 1, 5), np.float32)
        tensors["extra"] = tensors.pop("upsample.convtr.convtr.convtr.weight")
        return tensors

    rewrite(directory, spoil)
    with pytest.raises(DataError) as error:
        load_mimi(directory)
    for part in (
        "missing upsample.convtr.convtr.convtr.weight [32, 1, 4]",
        "unexpected extra [32, 1, 4]",
        "mis-shaped encoder.model.0.conv.conv.weight: file [4, 1, 5], model [4, 1, 7]",
    ):
        assert part in str(error.value)


def test_incomplete_download(published):
    directory, _ = published
    path = directory / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1000])
    with pytest.raises(DataError, match=f"expected {len(data)} bytes, found {len(data) - 1000}"):
        load_mimi(directory)


def test_wrong_paths(tmp_path, published):
    directory, description = published
    with pytest.raises(DataError, match="cannot be read"):
        load_mimi(tmp_path / "nowhere.safetensors")
    with pytest.raises(DataError, match="cannot be read"):
        load_mimi(tmp_path)
    (directory / "config.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        load_mimi(directory)


def test_configs_that_are_not_supported():
    description, _ = load_fixture("mimi_small")
    fields = description["config"]
    with pytest.raises(ConfigError, match="seanet activation is 'ReLU', only 'ELU' is supported"):
        mimi_config({**fields, "seanet": {**fields["seanet"], "activation": "ReLU"}})
    with pytest.raises(ConfigError, match="lacks ratios"):
        mimi_config({**fields, "seanet": {k: v for k, v in fields["seanet"].items() if k != "ratios"}})
    with pytest.raises(ConfigError, match="must all equal seanet dimension 32"):
        mimi_config({**fields, "quantizer": {**fields["quantizer"], "input_dimension": 33}})


def test_config_round_trip_of_rings():
    description, _ = load_fixture("mimi_small")
    config = mimi_config(description["config"])
    assert config.ring == "exact"
    assert replace(config, ring="window").ring == "window"
