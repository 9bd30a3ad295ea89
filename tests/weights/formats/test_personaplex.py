"""PersonaPlex: a config without an architecture, and files with half of its depth steps."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from moshijax import lm, weights
from moshijax.errors import DataError
from moshijax.weights.formats.lm_config import completed, lm_config, published_config
from moshijax.weights.opening import open_model
from moshijax.weights.transfer import export_weights, import_weights
from tests.weights.test_lm import PUBLISHED, published_tensors, write

DIALOGUE = {
    **PUBLISHED,
    **{"n_q": 4, "dep_q": 2, "delays": [0, 0, 1, 0, 1], "extra_heads_num_heads": 0},
    **{"depformer_weights_per_step_schedule": None, "depformer_dim_feedforward": 24},
}
STATED = {**DIALOGUE, "model_type": "personaplex", "dep_q": 4}


def test_a_config_without_an_architecture():
    found = lm_config(completed({"model_type": "personaplex", "version": "1.0.0"}))
    assert found.with_dtype("bfloat16", "float32") == lm.configs.PERSONAPLEX_7B
    assert lm_config(published_config(found)) == found
    stated = {**STATED, "mimi_name": "other.safetensors"}
    assert completed(stated) == stated


def test_half_of_the_steps_are_widened(tmp_path):
    """Steps 2 and 3 are copies of 0 and 1; the table of codebook 1, never an input before, is zero."""
    half = published_tensors(DIALOGUE)
    given = write(tmp_path / "given", STATED, half)
    import_weights(given, tmp_path / "ours")
    export_weights(open_model(tmp_path / "ours"), tmp_path / "whole", "kyutai-fused")
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    assert {name: array.shape for name, array in whole.items()} == {
        name: array.shape for name, array in published_tensors(STATED).items()
    }
    for name in ("in_proj_weight", "out_proj.weight"):
        name = f"depformer.layers.0.self_attn.{name}"
        np.testing.assert_array_equal(whole[name], np.concatenate([half[name], half[name]]))
    for step in range(4):
        for stem in ("linears.{}.weight", "depformer_in.{}.weight", "depformer.layers.0.gating.{}.linear_in.weight"):
            np.testing.assert_array_equal(whole[stem.format(step)], half[stem.format(step % 2)])
    for part in ("weight", "low_rank.weight"):
        np.testing.assert_array_equal(whole[f"depformer_emb.2.{part}"], half[f"depformer_emb.0.{part}"])
        assert not whole[f"depformer_emb.1.{part}"].any()
    np.testing.assert_array_equal(whole["emb.3.weight"], half["emb.3.weight"])

    # What it says and hears itself say is what the half did: the rows that are generated have not changed.
    codes = np.random.RandomState(0).randint(0, 10, (1, 5, 6)).astype(np.int32)
    forward = jax.jit(lm.forward, static_argnums=0)
    want = forward(*weights.load_lm(write(tmp_path / "half", DIALOGUE, half), stacked=True), codes)
    got = forward(*weights.load_lm(given, stacked=True), codes)
    np.testing.assert_allclose(got.logits[:, :2], want.logits, atol=1e-5)
    np.testing.assert_allclose(got.text_logits, want.text_logits, atol=1e-5)


def test_others_are_not_widened(tmp_path):
    given = write(tmp_path / "given", {**STATED, "model_type": "moshi"}, published_tensors(DIALOGUE))
    with pytest.raises(DataError, match="missing depformer_in.2.weight"):
        weights.load_lm(given)
    (given / "config.json").write_text(json.dumps({**STATED, "dep_q": 3}))
    with pytest.raises(DataError, match="missing depformer_in.2.weight"):
        weights.load_lm(given)
