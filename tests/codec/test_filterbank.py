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


def small(n_filters: int, ratios: tuple[int, ...]) -> MimiConfig:
    return MimiConfig(
        seanet=SeanetConfig(dimension=16, n_filters=n_filters, ratios=ratios, n_residual_layers=0),
        transformer=TransformerConfig(dim=16, num_layers=1, num_heads=2, hidden_dim=32, context=10),
        quantizer=QuantizerConfig(dim=8, bins=16, num_codebooks=2),
    )


PLAIN, FOLDED = small(16, (2, 4, 120)), small(8, (2, 2, 15, 2, 8))


def convolve(x: np.ndarray, layer: dict, stride: int) -> np.ndarray:
    """A causal strided convolution by its definition."""
    kernel, bias = (np.asarray(layer[name], np.float64) for name in ("kernel", "bias"))
    x = np.pad(x, ((len(kernel) - stride, 0), (0, 0)))
    starts = range(0, len(x) - len(kernel) + 1, stride)
    return np.stack([np.einsum("ki,kio->o", x[t : t + len(kernel)], kernel) for t in starts]) + bias


def upsample(x: np.ndarray, layer: dict, stride: int) -> np.ndarray:
    """A causal transposed convolution by its definition."""
    kernel, bias = (np.asarray(layer[name], np.float64) for name in ("kernel", "bias"))
    out = np.zeros(((len(x) - 1) * stride + kernel.shape[1], kernel.shape[2]))
    for t, column in enumerate(x):
        out[t * stride : t * stride + kernel.shape[1]] += np.einsum("i,iko->ko", column, kernel)
    return out[: len(x) * stride] + bias


def envelopes(config: MimiConfig, params, waveform: np.ndarray) -> np.ndarray:
    """What the convolution after the bank says, from the kernels alone."""
    layers = params["encoder"]["seanet"]
    found = filterbank.stages(config)
    x = convolve(waveform[:, None], layers["parts_0"], 1)
    strides = (*found.folds, found.stride, config.seanet.ratios[-len(found.folds) - 2])
    for index, stride in enumerate(strides):
        x = convolve(np.asarray(elu(x), np.float64), layers[f"parts_{2 * index + 2}"], stride)
    return x


@pytest.mark.parametrize(("config", "hop", "bands"), [(PLAIN, 120, 10), (FOLDED, 240, 21)])
def test_each_band_answers_to_its_own_tone(config, hop, bands):
    params = filterbank.apply(config, codec.init(config, jax.random.key(0))["params"])
    assert filterbank.stages(config).hop == hop
    _, centres = filterbank.band_filters(bands, 2 * hop, 24_000)
    time = np.arange(4800) / 24_000
    tones = [0.1 * np.sin(2 * np.pi * f * time) for f in centres]
    answers = np.stack([envelopes(config, params, tone)[3:, :bands].mean(0) for tone in tones])
    assert (np.abs(answers.argmax(axis=1) - np.arange(bands)) <= 1).all()
    assert (answers.argmax(axis=1) == np.arange(bands)).mean() > 0.8


def test_an_envelope_hardly_depends_on_the_phase_of_a_tone():
    params = filterbank.apply(FOLDED, codec.init(FOLDED, jax.random.key(0))["params"])
    _, centres = filterbank.band_filters(21, 480, 24_000)
    time = np.arange(4800) / 24_000
    levels = envelopes(FOLDED, params, 0.1 * np.sin(2 * np.pi * centres[10] * time))[3:, 10]
    assert levels.std() < 0.1 * levels.mean()


@pytest.mark.parametrize("config", [PLAIN, FOLDED])
def test_the_decoder_plays_the_filter_of_each_channel(config):
    params = filterbank.apply(config, codec.init(config, jax.random.key(0))["params"])
    layers, found = params["decoder"]["seanet"], filterbank.stages(config)
    bands = (8 if config is FOLDED else 16) * 2 ** (len(found.folds) + 1) // filterbank.PHASES
    filters, _ = filterbank.band_filters(bands, 2 * found.hop, 24_000)
    bank = 2 * (len(config.seanet.ratios) - len(found.folds))
    x = np.zeros((5, layers[f"parts_{bank}"]["kernel"].shape[0]))
    x[2, 7] = 1.0
    for index, stride in enumerate((found.stride, *reversed(found.folds))):
        x = upsample(np.asarray(elu(x), np.float64) if index else x, layers[f"parts_{bank + 2 * index}"], stride)
    played = convolve(np.asarray(elu(x), np.float64), layers[f"parts_{2 * len(config.seanet.ratios) + 2}"], 1)[:, 0]
    wanted = filters.reshape(-1, 2 * found.hop)[7]
    wanted = filterbank.SYNTHESIS * wanted / np.abs(wanted).max()
    np.testing.assert_allclose(played[2 * found.hop : 4 * found.hop], wanted, atol=1e-6)
    np.testing.assert_allclose(played[: 2 * found.hop], 0.0, atol=1e-6)


def test_the_rest_of_the_codec_is_untouched_and_it_still_runs():
    variables = codec.init(FOLDED, jax.random.key(0))
    params = filterbank.apply(FOLDED, variables["params"])
    assert jax.tree.structure(params) == jax.tree.structure(variables["params"])
    assert jax.tree.map(lambda a: (a.shape, a.dtype), params) == jax.tree.map(
        lambda a: (a.shape, a.dtype), variables["params"]
    )
    first = [tree["decoder"]["seanet"]["parts_0"]["kernel"] for tree in (params, variables["params"])]
    np.testing.assert_array_equal(*first)
    jitted = jax.jit(lambda p: filterbank.apply(FOLDED, p))(variables["params"])
    for a, b in zip(jax.tree.leaves(jitted), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_a_codec_without_room_for_it_is_refused():
    config = codec.configs.TINY
    with pytest.raises(ConfigError, match="filterbank needs"):
        filterbank.apply(config, codec.init(config, jax.random.key(0))["params"])


def test_the_frozen_part_gets_no_gradient():
    params = filterbank.apply(FOLDED, codec.init(FOLDED, jax.random.key(0))["params"])

    def total(params):
        return sum(jax.numpy.sum(leaf) for leaf in jax.tree.leaves(filterbank.freeze(FOLDED, params)))

    gradient = jax.grad(total)(params)["encoder"]["seanet"]
    for name, layer in gradient.items():
        frozen = name in ("parts_0", "parts_2", "parts_4", "parts_6")
        assert all((np.abs(leaf).max() == 0) == frozen for leaf in jax.tree.leaves(layer)), name
