from __future__ import annotations

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from moshijax.errors import DataError
from moshijax.weights.safetensors import TensorFile, check_names_and_shapes


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.safetensors"
    tensors = {
        "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
        "b": np.arange(4).astype(ml_dtypes.bfloat16),
        "c": np.zeros((0, 3), np.float16),
        "d": np.array([True, False, True]),
        "e": np.array(3.0, np.float32),
    }
    save_file(tensors, path, metadata={"format": "pt"})
    return path, tensors


def test_reads_what_the_library_wrote(file):
    path, tensors = file
    read = TensorFile(path)
    assert read.metadata == {"format": "pt"}
    assert set(read) == set(tensors)
    for name, value in tensors.items():
        assert read.shapes[name] == value.shape
        assert read[name].dtype == value.dtype
        np.testing.assert_array_equal(read[name], value)


@pytest.mark.parametrize("keep", [0, 4, 20, -1])
def test_truncated(file, keep):
    path, _ = file
    data = path.read_bytes()
    path.write_bytes(data[:keep])
    with pytest.raises(DataError, match=r"incomplete, expected (at least )?\d+ bytes, found \d+") as error:
        TensorFile(path)
    if keep == -1:
        assert f"expected {len(data)} bytes, found {len(data) - 1}" in str(error.value)


def test_trailing_bytes(file):
    path, _ = file
    path.write_bytes(path.read_bytes() + b"xyz")
    with pytest.raises(DataError, match="3 bytes too many"):
        TensorFile(path)


def test_lfs_pointer(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 384644900\n")
    with pytest.raises(DataError, match="git-lfs pointer.*git lfs pull"):
        TensorFile(path)


@pytest.mark.parametrize(
    "content", [b"RIFF" + b"\xff" * 40, struct.pack("<Q", 4) + b"oops", struct.pack("<Q", 2) + b"[]"]
)
def test_other_files(tmp_path, content):
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a safetensors file"):
        TensorFile(path)


def test_inconsistent_header(tmp_path):
    path = tmp_path / "x"
    header = json.dumps({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 8)
    with pytest.raises(DataError, match="'a' F32 .* needs 12 bytes, the header gives it 8"):
        TensorFile(path)


def test_missing_and_directory(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        TensorFile(tmp_path / "none")
    with pytest.raises(DataError, match="is a directory"):
        TensorFile(tmp_path)


def test_everything_that_does_not_fit_is_listed_together():
    with pytest.raises(DataError) as error:
        check_names_and_shapes(
            "f", {"a": (2,), "b": (3, 1), "x": (1,), "skip": ()}, {"a": (2,), "b": (3,), "c": (4,)}, ["skip"]
        )
    message = str(error.value)
    for part in ("3 tensors", "missing c [4]", "unexpected x [1]", "mis-shaped b: file [3, 1], model [3]"):
        assert part in message
    assert "skip" not in message and "\n" not in message
    check_names_and_shapes("f", {"a": (2,)}, {"a": (2,)})
