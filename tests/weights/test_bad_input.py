"""Weights as they come in the wild: refused in one line that says what is wrong, and never in part."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.weights.test_lm import PUBLISHED, published_tensors, write


@pytest.fixture
def given(tmp_path):
    return write(tmp_path / "given", PUBLISHED, published_tensors(PUBLISHED))


def rejected(cli, tmp_path, source, code=3):
    """The message of an import that fails and leaves nothing behind."""
    before = set(tmp_path.iterdir())
    found, out, err = cli("weights", "import", source, tmp_path / "ours")
    assert found == code and out == "" and err.startswith("error: ") and err.count("\n") == 1, err
    assert set(tmp_path.iterdir()) == before
    return err


def test_an_interrupted_download(given, tmp_path, cli):
    file = given / "model.safetensors"
    data = file.read_bytes()
    for kept in (0, 5, 100, len(data) - 1):
        file.write_bytes(data[:kept])
        err = rejected(cli, tmp_path, given)
        assert "incomplete, expected" in err and f"found {kept}" in err


def test_a_git_lfs_pointer(given, tmp_path, cli):
    (given / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 15375500136\n"
    )
    assert "is a git-lfs pointer, not the file itself: run `git lfs pull`" in rejected(cli, tmp_path, given)


def test_bytes_after_the_tensors(given, tmp_path, cli):
    with open(given / "model.safetensors", "ab") as file:
        file.write(b"x" * 9)
    assert "9 bytes too many" in rejected(cli, tmp_path, given)


def test_a_vocabulary_padded_for_sharding(tmp_path, cli):
    tensors = published_tensors(PUBLISHED)
    for name in ("text_emb.weight", "text_linear.weight", "depformer_text_emb.weight"):
        tensors[name] = np.pad(tensors[name], ((0, 3), (0, 0)))
    given = write(tmp_path / "given", PUBLISHED, tensors)
    err = rejected(cli, tmp_path, given)
    assert "mis-shaped text_emb.weight: file [16, 16], model [13, 16]" in err


def test_a_config_of_another_model(given, tmp_path, cli):
    other = {**PUBLISHED, "dim": 32, "card": 11}
    (given / "config.json").write_text(json.dumps(other))
    err = rejected(cli, tmp_path, given)
    assert "mis-shaped emb.0.weight: file [11, 16], model [12, 32]" in err and err.count("mis-shaped") <= 12


def test_weights_where_a_config_is_expected(given, tmp_path, cli):
    (given / "model.safetensors").rename(given / "config.json")
    err = rejected(cli, tmp_path, given)
    assert "config.json is not UTF-8" in err
    (given / "config.json").write_text("[" * 100_000)
    assert "config.json is not JSON" in rejected(cli, tmp_path, given)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [10**30], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [[4]], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [4.0], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [4], "data_offsets": ["0", "16"]},
        {"dtype": ["F32"], "shape": [4], "data_offsets": [0, 16]},
        [],
    ],
    ids=["huge", "nested", "float", "text offsets", "list as type", "no table"],
)
def test_headers_with_unusable_entries(given, tmp_path, cli, entry):
    text = json.dumps({"a": entry}).encode()
    (given / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 16)
    assert "tensor 'a' has an unusable entry" in rejected(cli, tmp_path, given)


def test_a_header_of_deeply_nested_json(given, tmp_path, cli):
    text = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    (given / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    assert "its header is not JSON" in rejected(cli, tmp_path, given)


@pytest.mark.parametrize("index", [{"weight_map": {"a": 1}}, {"weight_map": []}, [], {"weight_map": {"a": "\0"}}])
def test_an_index_of_another_form(given, tmp_path, cli, index):
    (given / "model.safetensors").unlink()
    (given / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "is not an index of safetensors files" in rejected(cli, tmp_path, given)


@pytest.mark.parametrize("name", ["n" * 300, "a\0b", ""])
def test_names_that_no_file_can_have(given, tmp_path, cli, name):
    (given / "config.json").write_text(json.dumps({**PUBLISHED, "mimi_name": name}))
    assert "must be the name of a file" in rejected(cli, tmp_path, given, 2)


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "{file}", "--user", "a.wav", "--out", "b.wav"),
        ("weights", "export", "{folder}/missing", "{folder}/out", "--format", "kyutai"),
        ("weights", "verify", "{file}", "--reference", "{folder}/nothing"),
    ],
    ids=["an artifact", "a model", "a record"],
)
def test_one_path_where_another_is_expected(given, tmp_path, cli, arguments):
    places = {"file": given / "model.safetensors", "folder": tmp_path}
    code, out, err = cli(*(argument.format(**places) for argument in arguments))
    assert code in (2, 3) and err.startswith("error: ") and err.count("\n") == 1 and out == ""


def test_another_kind_of_model(given, tmp_path, cli):
    code, _, err = cli("codec", "encode", given / "x.wav", tmp_path / "x.npz", "--codec", given)
    assert code in (2, 3) and err.startswith("error: ")
    from moshijax import weights
    from moshijax.errors import DataError

    with pytest.raises(DataError, match="is a language model, a codec is needed"):
        weights.load_mimi(given)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_that_are_not_finite_are_named(tmp_path, cli, value, dtype):
    tensors = {name: tensor.astype(np.dtype(dtype)) for name, tensor in published_tensors(PUBLISHED).items()}
    tensors["out_norm.alpha"][..., -1] = value
    given = write(tmp_path / "given", PUBLISHED, tensors)
    assert "out_norm.alpha holds NaN or infinity" in rejected(cli, tmp_path, given)
    code, out, err = cli("weights", "export", given, tmp_path / "out", "--format", "kyutai")
    assert code == 3 and out == "" and "out_norm.alpha holds NaN or infinity" in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_imported_model_that_is_not_finite_is_named_at_export(given, tmp_path, cli):
    assert cli("weights", "import", given, tmp_path / "ours")[0] == 0
    file = tmp_path / "ours" / "parameters.safetensors"
    tensors = load_file(file)
    tensors["out_norm/scale"][..., 0] = np.nan
    save_file(tensors, file)
    code, out, err = cli("weights", "export", tmp_path / "ours", tmp_path / "out", "--format", "kyutai")
    assert code == 3 and out == "" and "out_norm.alpha holds NaN" in err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model."])
def test_names_from_within_a_wrapper(tmp_path, cli, prefix):
    tensors = {prefix + name: tensor for name, tensor in published_tensors(PUBLISHED).items()}
    given = write(tmp_path / "given", PUBLISHED, tensors)
    assert f"all names begin with '{prefix}'" in rejected(cli, tmp_path, given)
    assert f"all names begin with '{prefix}'" in rejected(cli, tmp_path, given / "model.safetensors")


@pytest.mark.parametrize(
    "fields",
    [
        {"architectures": ["CsmForConditionalGeneration"], "model_type": "csm", "codec_config": {"model_type": "mimi"}},
        {"architectures": ["EncodecModel"], "model_type": "encodec", "sampling_rate": 24000},
        {"architectures": ["DacModel"], "model_type": "dac", "hop_length": 512},
        {"architectures": ["DacModel"]},
        {"model_type": "encodec"},
    ],
)
def test_a_config_of_another_class_is_named(given, tmp_path, cli, fields):
    (given / "config.json").write_text(json.dumps(fields))
    message = rejected(cli, tmp_path, given, 2)
    named = fields.get("architectures", [fields.get("model_type")])[0]
    assert f"'{named}'" in message and "which is not read" in message and "remove it" not in message
    code, _, err = cli("codec", "encode", given / "x.wav", tmp_path / "x.npz", "--codec", given)
    assert code in (2, 3) and err.count("\n") == 1
