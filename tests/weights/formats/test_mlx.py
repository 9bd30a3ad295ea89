"""Files that MLX quantised: packed integers with a scale and a bias per group of values."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from moshijax import weights
from moshijax.errors import DataError
from moshijax.weights.formats.mlx import unpacked
from moshijax.weights.opening import open_model
from moshijax.weights.transfer import export_weights
from tests.weights.test_lm import PUBLISHED, published_tensors, write

WIDE = {
    **PUBLISHED,
    **{"dim": 32, "depformer_dim": 32, "hidden_scale": 6, "extra_heads_num_heads": 0, "depformer_norm": None},
    **{"depformer_low_rank_embeddings": 32, "depformer_dim_feedforward": 96},
}


def test_as_mlx_reads_it():
    """A row that `mlx.core.quantize` (0.32.4) made, and the first values that its `dequantize` gives back."""
    words = [2338257822, 2576013464, 1805670781, 2564651071, 1994233604, 3009868068, 2822153329, 360019352]
    scales, biases = np.float32([[0.31835938, 0.24804688]]), np.float32([[-2.546875, -1.984375]])
    row = unpacked(np.array([words], np.uint32), scales, biases, 4)
    assert row.shape == (1, 64)
    np.testing.assert_array_equal(
        row[0, :6], np.float32([1.91015625, 0.31835938, 0.9550781, 2.2285156, 1.91015625, -0.9550781])
    )


def quantised(tensors, bits, group):
    """Every matrix as the package writes it, and the values that it then stands for."""
    out, values = {}, {}
    for name, tensor in tensors.items():
        if tensor.ndim != 2:
            out[name] = values[name] = tensor
            continue
        rows = tensor.reshape(len(tensor), -1, group)
        low, high = rows.min(-1, keepdims=True), rows.max(-1, keepdims=True)
        scale = (high - low) / np.float32(2**bits - 1)
        codes = np.rint((rows - low) / scale).astype(np.uint32)
        per_word = 32 // bits
        shifts = (np.arange(per_word) * bits).astype(np.uint32)
        words = (codes.reshape(len(tensor), -1, per_word) << shifts).sum(-1, dtype=np.uint32)
        stem = name.removesuffix(".weight")
        out |= {name: words, f"{stem}.scales": scale[..., 0], f"{stem}.biases": low[..., 0]}
        values[name] = (codes.astype(np.float32) * scale + low).reshape(tensor.shape)
    return out, values


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (8, 32)])
def test_every_matrix_becomes_float32(tmp_path, bits, group):
    given = write(tmp_path / "given", WIDE, published_tensors(WIDE))
    export_weights(open_model(given), tmp_path / "theirs", "mlx")
    file = tmp_path / "theirs" / "model.safetensors"
    packed, values = quantised(load_file(file), bits, group)
    save_file(packed, file)
    config, params = weights.load_lm(tmp_path / "theirs")
    assert config.temporal.param_dtype == "float32"
    np.testing.assert_allclose(params["text_head"]["kernel"], values["text_linear.weight"], atol=1e-6)
    export_weights(open_model(tmp_path / "theirs"), tmp_path / "back", "mlx")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert set(back) == set(values)
    for name, value in values.items():
        np.testing.assert_allclose(back[name], value, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.pop("text_linear.scales"),
        lambda a: a.update({"text_linear.biases": a["text_linear.biases"][:-1]}),
        lambda a: a.update({"text_linear.weight": a["text_linear.weight"][:, :3]}),
    ],
    ids=["no scales", "biases", "words"],
)
def test_halves_of_it_are_refused(tmp_path, change):
    given = write(tmp_path / "given", WIDE, published_tensors(WIDE))
    export_weights(open_model(given), tmp_path / "theirs", "mlx")
    file = tmp_path / "theirs" / "model.safetensors"
    packed, _ = quantised(load_file(file), 4, 32)
    change(packed)
    save_file(packed, file)
    with pytest.raises(DataError, match=r"text_linear\.weight .*is no row of 2, 4 or 8 bit values for \[12, 32\]"):
        weights.load_lm(tmp_path / "theirs")
