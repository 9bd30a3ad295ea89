"""The classes of Transformers, from the files that they save, against what they compute."""

from __future__ import annotations

import numpy as np
import pytest

from moshijax import codec, lm
from moshijax.weights import load_lm, load_mimi
from moshijax.weights.opening import open_model
from moshijax.weights.transfer import export_weights
from tests.parity.weights_by_name import clip, load_fixture, write_checkpoint
from tests.weights.test_transfer import bits

TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=["hf_mimi", "hf_moshi", "hf_speech_to_text"])
def model(request, tmp_path_factory):
    description, want = load_fixture(request.param)
    return write_checkpoint(tmp_path_factory.mktemp("saved") / request.param, description), description, want


def test_the_same_numbers(model):
    folder, description, want = model
    if description["kind"] == "mimi":
        config, params = load_mimi(folder)
        waveform = np.stack([clip(seeds, config.frame_size) for seeds in description["frame_seeds"]])
        assert waveform.shape[1] > config.transformer.context * config.seanet.hop
        np.testing.assert_array_equal(codec.encode(config, params, waveform), want["codes"])
        decoded = codec.decode(config, params, want["codes"])
        np.testing.assert_allclose(decoded, want["decoded"], atol=TOLERANCE, rtol=0)
        return
    config, params = load_lm(folder)
    output = lm.forward(config, params, want["codes"])
    np.testing.assert_allclose(output.text_logits, want["text_logits"], atol=TOLERANCE, rtol=0)
    if config.depth is not None:
        np.testing.assert_array_equal(output.mask, want["mask"])
        kept = want["mask"][..., None]
        np.testing.assert_allclose(output.logits * kept, want["logits"] * kept, atol=TOLERANCE, rtol=0)


def test_their_file_comes_back(model, tmp_path):
    folder, _, _ = model
    export_weights(open_model(folder), tmp_path / "back", "huggingface")
    assert bits(tmp_path / "back") == bits(folder)
    assert (tmp_path / "back" / "config.json").exists()
