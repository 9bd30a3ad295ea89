"""The real codec behind preparation: batches, lengths and pieces do not change codes."""

from __future__ import annotations

import pickle

import jax
import numpy as np
import pytest

from moshijax import codec
from moshijax.codec.configs import TINY
from moshijax.data.encoder import CodecEncoder
from moshijax.errors import ConfigError, DataError
from tests.parity.weights_by_name import load_fixture, write_checkpoint


@pytest.fixture(scope="module")
def model():
    return TINY, codec.init(TINY, jax.random.key(0))


def waveform(seconds, seed):
    noise = np.random.RandomState(seed).standard_normal(round(seconds * TINY.sample_rate)).astype(np.float32)
    return 0.1 * noise * np.sin(np.arange(len(noise)) / 4000)


def test_rows_lengths_and_pieces(model):
    encoder = CodecEncoder(*model, num_codebooks=4)
    waveforms = [waveform(s, i) for i, s in enumerate((0.05, 0.9, 2.0, 0.0, 1.1))]
    codes = encoder.encode(waveforms)
    assert [c.shape for c in codes] == [(4, 1), (4, 12), (4, 25), (4, 0), (4, 14)]
    for single, together in zip(waveforms, codes, strict=True):
        if len(single):
            alone = np.asarray(codec.encode(*model, single[None], 4))[0]
            assert (alone != together).mean() < 0.01
    silence = np.zeros(30_000, np.float32)
    twice = encoder.encode([silence, waveforms[1], silence])
    np.testing.assert_array_equal(twice[0], np.asarray(codec.encode(*model, silence[None], 4))[0])
    np.testing.assert_array_equal(twice[0], twice[2])
    stereo = np.stack([waveform(6.0, 8), waveform(6.0, 9)], axis=1)
    pieces = encoder.encode_blocks(iter(np.array_split(stereo, 7)))
    whole = np.stack(encoder.encode([stereo[:, 0], stereo[:, 1]]))
    assert pieces.shape == whole.shape == (2, 4, 75)
    assert (pieces != whole).mean() < 0.01


def test_hash_binds_weights_and_config(model):
    config, params = model
    assert CodecEncoder(config, params).sha256 == CodecEncoder(config, params).sha256
    other = codec.init(config, jax.random.key(1))
    assert CodecEncoder(config, other).sha256 != CodecEncoder(config, params).sha256


def test_pickles_as_its_path(model, tmp_path):
    """A plan that goes to another process carries where the codec lies, and notices another codec there."""
    with pytest.raises(TypeError, match="not read from a path"):
        pickle.dumps(CodecEncoder(*model))
    description, _ = load_fixture("mimi_small")
    encoder = CodecEncoder.load(write_checkpoint(tmp_path / "codec", description), num_codebooks=3)
    sent = pickle.dumps(encoder)
    assert len(sent) < 1000 and pickle.loads(sent).sha256 == encoder.sha256
    np.testing.assert_array_equal(pickle.loads(sent).encode([waveform(1.0, 0)]), encoder.encode([waveform(1.0, 0)]))
    encoder.sha256 = "0" * 64
    with pytest.raises(DataError, match="the job was planned with 000000000000"):
        pickle.loads(pickle.dumps(encoder))


def test_too_many_codebooks(model):
    with pytest.raises(ConfigError, match="num_codebooks is 99: this codec has 1 to 8"):
        CodecEncoder(*model, num_codebooks=99)


def test_the_code_of_silence_is_that_of_the_end_of_two_silent_seconds(model):
    encoder = CodecEncoder(*model, num_codebooks=4)
    codes = np.asarray(codec.encode(*model, np.zeros((1, 2 * TINY.sample_rate), np.float32), 4))
    assert encoder.silence() == codes[0, :, -1].tolist()
    np.testing.assert_array_equal(codes[0, :, -1], codes[0, :, -2])  # it lasts
