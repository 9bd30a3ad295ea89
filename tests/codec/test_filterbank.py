from __future__ import annotations

import jax
import numpy as np
import pytest

from moshijax import codec
from moshijax.codec import filterbank
from moshijax.codec.config import MimiConfig, QuantizerConfig, SeanetConfig
from moshijax.codec.seanet import elu
from moshijax.errors import ConfigError
from moshijax.nn.transformer import TransformerConfig

CONFIG = MimiConfig(
    seanet=SeanetConfig(dimension=16, n_filters=16, ratios=(2, 4, 120), n_residual_layers=0),
    transformer=TransformerConfig(dim=16, num_layers=1, num_heads=2, hidden_dim=32, context=10),
    quantizer=QuantizerConfig(dim=8, bins=16, num_codebooks=2),
)


def envelopes(params, waveform: np.ndarray, bands: int) -> np.ndarray:
    """[frames at 50 Hz, bands]: the linear channels of the third convolution, computed from the kernels alone."""
    layers = params["encoder"]["seanet"]
    first, bank, envelope = ({k: np.asarray(v, np.float64) for k, v in layers[f"parts_{i}"].items()} for i in (0, 2, 4))
    assert np.count_nonzero(first["kernel"][:, 0, 0]) == 1
    x = np.asarray(elu(waveform))[:, None]
    rate = np.stack([x[t * 120 : t * 120 + 240, 0] @ bank["kernel"][:, 0] for t in range(len(x) // 120 - 1)])
    rate = np.asarray(elu(rate))
    return np.stack(
        [np.einsum("ki,kio->o", rate[t * 4 : t * 4 + 8], envelope["kernel"])[:bands] for t in range(len(rate) // 4 - 1)]
    )


def test_each_band_answers_to_its_own_tone():
    params = filterbank.apply(CONFIG, codec.init(CONFIG, jax.random.key(0))["params"])
    bands = 16
    _, centres = filterbank.band_filters(bands, 240, 24_000)
    time = np.arange(9600) / 24_000
    answers = np.stack([envelopes(params, 0.1 * np.sin(2 * np.pi * f * time), bands).mean(0) for f in centres])
    np.testing.assert_array_equal(answers.argmax(axis=1)[3:], np.arange(bands)[3:])
    assert (np.abs(answers.argmax(axis=1) - np.arange(bands)) <= 1).all()


def test_the_rest_of_the_codec_is_untouched_and_it_still_runs():
    variables = codec.init(CONFIG, jax.random.key(0))
    params = filterbank.apply(CONFIG, variables["params"])
    assert jax.tree.structure(params) == jax.tree.structure(variables["params"])
    assert jax.tree.map(lambda a: (a.shape, a.dtype), params) == jax.tree.map(
        lambda a: (a.shape, a.dtype), variables["params"]
    )
    first = [tree["decoder"]["seanet"]["parts_0"]["kernel"] for tree in (params, variables["params"])]
    np.testing.assert_array_equal(*first)
    jitted = jax.jit(lambda p: filterbank.apply(CONFIG, p))(variables["params"])
    for a, b in zip(jax.tree.leaves(jitted), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_a_codec_without_room_for_it_is_refused():
    config = codec.configs.TINY
    with pytest.raises(ConfigError, match="filterbank start needs"):
        filterbank.apply(config, codec.init(config, jax.random.key(0))["params"])


def test_the_decoder_ends_as_a_bank_and_the_frozen_part_gets_no_gradient():
    params = filterbank.apply(CONFIG, codec.init(CONFIG, jax.random.key(0))["params"])
    layers = params["decoder"]["seanet"]
    bank, passing = np.asarray(layers["parts_6"]["kernel"]), np.asarray(layers["parts_8"]["kernel"])
    np.testing.assert_allclose(np.abs(bank[:, :, 0]).max(axis=1), filterbank.SYNTHESIS, rtol=1e-6)
    np.testing.assert_array_equal(passing[:, 0, 0], [0, 0, 1])

    def total(params):
        return sum(jax.numpy.sum(leaf) for leaf in jax.tree.leaves(filterbank.freeze(params)))

    gradient = jax.grad(total)(params)["encoder"]["seanet"]
    for name, layer in gradient.items():
        frozen = name in filterbank.FROZEN
        assert all((np.abs(leaf).max() == 0) == frozen for leaf in jax.tree.leaves(layer)), name
