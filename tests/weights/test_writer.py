from __future__ import annotations

import numpy as np
from safetensors.numpy import load_file

from moshijax.weights import writer
from moshijax.weights.tensors import InMemory


def test_scalars_and_views_are_written_as_they_are(tmp_path):
    grid = np.arange(12, dtype=np.float32).reshape(3, 4)
    tensors = {"scalar": np.array(3, np.int32), "empty": np.zeros((0, 2), np.float16), "view": grid.T[::2]}
    writer.write(tmp_path / "x.safetensors", InMemory(tensors))
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        np.testing.assert_array_equal(found[name], tensor)
