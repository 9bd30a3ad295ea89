from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import jax
import numpy as np
import pytest

from moshijax import codec
from moshijax.codec import functions
from moshijax.errors import ConfigError, DataError
from moshijax.testing import check_streaming
from tests.codec.small import SMALL, filled, noise

FRAME = SMALL.frame_size


@pytest.fixture(scope="module")
def variables():
    return filled(SMALL)


SIDES = {
    "encoder": (codec.Encoder, (), FRAME, Fraction(1, FRAME)),
    "decoder": (codec.Decoder, 8, 1, Fraction(FRAME)),
}


@pytest.mark.parametrize("sizes", [(1, 2), pytest.param((1, 2, 3, 8), marks=pytest.mark.slow)])
@pytest.mark.parametrize("side", SIDES)
def test_whole_codec_streams(side, sizes):
    make, features, block_size, output_ratio = SIDES[side]
    layer = make(SMALL)
    assert (layer.block_size, layer.output_ratio) == (block_size, output_ratio)
    check_streaming(layer, jax.random.key(0), features, batch_size=2, blocks=11, sizes=sizes, splits=20, atol=2e-5)


def test_no_frame_rate_layers():
    config = replace(SMALL, frame_rate=25.0)
    assert config.resample_stride == 1
    variables = filled(config)
    waveform = noise(0, 1, 5 * config.frame_size)
    codes = codec.encode(config, variables, waveform)
    state = codec.init_encoder_state(config, 1)
    for t in range(5):
        piece = waveform[:, t * config.frame_size : (t + 1) * config.frame_size]
        state, column = codec.encode_step(config, variables, state, piece)
        np.testing.assert_array_equal(column, codes[:, :, t : t + 1])


@pytest.mark.parametrize("samples", [1, FRAME - 1, FRAME, FRAME + 1, 7 * FRAME + 5])
def test_any_length(variables, samples):
    waveform = noise(1, 2, samples)
    codes = codec.encode(SMALL, variables, waveform)
    frames = -(-samples // FRAME)
    assert codes.shape == (2, 4, frames) and codes.dtype == np.int32
    padded = np.pad(waveform, ((0, 0), (0, frames * FRAME - samples)))
    direct = codec.Mimi(SMALL).apply(variables, padded, method="encode")
    np.testing.assert_array_equal(codes, direct)
    latent = codec.encode_latent(SMALL, variables, waveform)
    np.testing.assert_allclose(latent, codec.Mimi(SMALL).apply(variables, padded, method="encode_latent"), atol=1e-5)
    decoded = codec.decode(SMALL, variables, codes)
    np.testing.assert_allclose(decoded, codec.Mimi(SMALL).apply(variables, direct, method="decode"), atol=1e-5)
    latent = codec.Mimi(SMALL).apply(variables, codes, method="dequantize")
    np.testing.assert_allclose(codec.decode_latent(SMALL, variables, latent), decoded, atol=1e-5)


def test_no_samples_give_no_frames(variables):
    codes = codec.encode(SMALL, variables, np.zeros((2, 0), np.float32), num_codebooks=3)
    assert codes.shape == (2, 3, 0)
    assert codec.decode(SMALL, variables, codes).shape == (2, 0)
    latent = codec.encode_latent(SMALL, variables, np.zeros((2, 0), np.float32))
    assert latent.shape == (2, 0, 8)
    assert codec.decode_latent(SMALL, variables, latent).shape == (2, 0)


def test_padded_rows_equal_single_rows(variables):
    lengths = np.array([0, 1, 3 * FRAME, 5 * FRAME + 2])
    waveform = noise(2, 4, 6 * FRAME)  # what follows a row's end is not zero
    codes = np.asarray(codec.encode(SMALL, variables, waveform, lengths_B=lengths))
    for row, length in enumerate(lengths):
        alone = codec.encode(SMALL, variables, waveform[row : row + 1, :length])[0]
        frames = alone.shape[1]
        np.testing.assert_array_equal(codes[row, :, :frames], alone)
        assert (codes[row, :, frames:] == -1).all()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_number_of_codebooks(variables, count):
    waveform = noise(3, 1, 4 * FRAME)
    codes = codec.encode(SMALL, variables, waveform)
    np.testing.assert_array_equal(codec.encode(SMALL, variables, waveform, count), codes[:, :count])
    state = codec.init_encoder_state(SMALL, 1)
    _, streamed = codec.encode_step(SMALL, variables, state, waveform, num_codebooks=count)
    np.testing.assert_array_equal(streamed, codes[:, :count])
    assert codec.decode(SMALL, variables, codes[:, :count]).shape == (1, 4 * FRAME)


def test_long_files_go_through_in_pieces_of_few_lengths(variables, monkeypatch):
    waveform = noise(4, 1, 45 * FRAME - 7)
    whole = codec.encode(SMALL, variables, waveform)
    decoded = codec.decode(SMALL, variables, whole)
    monkeypatch.setattr(functions, "FRAMES_PER_CALL", (2, 8, 12))
    assert functions._listed(45) == [12, 12, 12, 12]
    assert functions._listed(38) == [12, 12, 12, 2]
    jax.clear_caches()
    np.testing.assert_array_equal(codec.encode(SMALL, variables, waveform), whole)
    np.testing.assert_allclose(codec.decode(SMALL, variables, whole), decoded, atol=1e-5)
    for frames in (2, 3, 8, 11, 12, 14, 20, 24, 36):
        codes = codec.encode(SMALL, variables, waveform[:, : frames * FRAME])
        assert codes.shape == (1, 4, frames)
        assert codec.decode(SMALL, variables, codes).shape == (1, frames * FRAME)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )
    lengths = np.array([30 * FRAME - 1, 3])
    for samples in (29 * FRAME - 11, 28 * FRAME + 3, 5 * FRAME + 1, 3 * FRAME + 2):
        codes = codec.encode(SMALL, variables, noise(5, 1, samples))
        codec.encode(SMALL, variables, noise(5, 1, samples), lengths_B=lengths[:1])
        codec.decode(SMALL, variables, codes)
    assert not compiled  # a new length compiles nothing
    assert functions._encode_whole._cache_size() <= 3
    assert functions._encode_piece._cache_size() <= 3


def test_inference_layout(monkeypatch, variables):
    monkeypatch.setattr(functions, "MATRIX_KERNEL", 1)
    fast = codec.inference_layout(SMALL, variables)
    assert "kernel_rows" in fast["params"]["encoder"]["downsample"]
    assert "kernel_rows" in fast["params"]["decoder"]["seanet"]["parts_2"]
    again = codec.inference_layout(SMALL, fast)
    assert jax.tree.structure(again) == jax.tree.structure(fast)
    waveform = noise(5, 2, 9 * FRAME)
    codes = codec.encode(SMALL, variables, waveform)
    np.testing.assert_array_equal(codec.encode(SMALL, fast, waveform), codes)
    decoded = codec.decode(SMALL, variables, codes)
    np.testing.assert_allclose(codec.decode(SMALL, fast, codes), decoded, atol=1e-5)
    state = codec.init_encoder_state(SMALL, 2) | codec.init_decoder_state(SMALL, 2)
    encoder, decoder = {"encoder": state["encoder"]}, {"decoder": state["decoder"]}
    for t in range(9):
        encoder, column = codec.encode_step(SMALL, fast, encoder, waveform[:, t * FRAME : (t + 1) * FRAME])
        np.testing.assert_array_equal(column, codes[:, :, t : t + 1])
        decoder, pcm = codec.decode_step(SMALL, fast, decoder, column)
        np.testing.assert_allclose(pcm, decoded[:, t * FRAME : (t + 1) * FRAME], atol=1e-5)


def test_rows_freeze_and_reset(variables):
    waveform = noise(6, 2, 6 * FRAME)
    want = np.asarray(codec.encode(SMALL, variables, waveform))
    state, got, at = codec.init_encoder_state(SMALL, 2), [[], []], [0, 0]
    for active in ([1, 0], [1, 1], [0, 1], [1, 1], [1, 1]):
        piece = np.stack([waveform[b, at[b] * FRAME : (at[b] + 1) * FRAME] for b in range(2)])
        state, codes = codec.encode_step(SMALL, variables, state, piece, active=np.array(active, bool))
        for b in np.flatnonzero(active):
            got[b].append(np.asarray(codes)[b])
            at[b] += 1
    for b in range(2):
        np.testing.assert_array_equal(np.concatenate(got[b], 1), want[b, :, : at[b]])
    state = codec.reset_state(SMALL, state, np.array([True, False]))
    _, codes = codec.encode_step(SMALL, variables, state, waveform[:, :FRAME])
    np.testing.assert_array_equal(codes[0], want[0, :, :1])


def test_refusals(variables):
    with pytest.raises(ConfigError, match=r"must be float \[B, N\]"):
        codec.encode(SMALL, variables, np.zeros(FRAME, np.float32))
    with pytest.raises(ConfigError, match="int16"):
        codec.encode(SMALL, variables, np.zeros((1, FRAME), np.int16))
    with pytest.raises(ConfigError, match="num_codebooks 5 must be 1 to 4"):
        codec.encode(SMALL, variables, np.zeros((1, FRAME), np.float32), num_codebooks=5)
    with pytest.raises(ConfigError, match="one entry per row"):
        codec.encode(SMALL, variables, np.zeros((1, FRAME), np.float32), lengths_B=np.array([1, 2]))
    with pytest.raises(ConfigError, match="5 rows, must have 1 to 4"):
        codec.decode(SMALL, variables, np.zeros((1, 5, 2), int))
    with pytest.raises(DataError, match="code 16 is not below 16"):
        codec.decode(SMALL, variables, np.full((1, 2, 2), 16))
    with pytest.raises(ConfigError, match=f"multiple of {FRAME}"):
        codec.encode_step(SMALL, variables, codec.init_encoder_state(SMALL, 1), np.zeros((1, FRAME + 2), np.float32))
