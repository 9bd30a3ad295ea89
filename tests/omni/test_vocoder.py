"""A waveform that is made piece by piece is that of the whole answer."""

from __future__ import annotations

import numpy as np
import pytest

from moshijax.errors import DataError
from moshijax.omni import vocoder
from moshijax.omni.vocoder import VocoderConfig
from tests.omni.small import vocoder_params

SMALL = VocoderConfig(20, 8, 16, (3, 2), (7, 4), (3, 5), ((1, 3), (1, 2)))


def whole(config: VocoderConfig, params: dict, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The waveform of all frames in one pass, and the durations of all units (compiled for this length)."""
    lasting = np.asarray(vocoder.durations(config, params, units[None]))[0]
    return np.asarray(vocoder.generate(config, params, np.repeat(units, lasting)[None]))[0], lasting


@pytest.fixture(scope="module")
def answer():
    units = np.random.RandomState(0).randint(0, SMALL.units, 211)
    params = vocoder_params(SMALL)
    return params, units, *whole(SMALL, params, units)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 10, 40, 64, 65, 128, 211])
def test_any_pieces_make_the_whole(answer, chunk):
    params, units, want, lasting = answer
    assert len(set(lasting)) > 2
    stream, pieces = vocoder.voice(SMALL, params), []
    for start in range(0, len(units), chunk):
        stream.feed(units[start : start + chunk])
        pieces.append(stream.take())
        known = min(start + chunk, len(units)) - SMALL.receptive_units
        certain = max(0, lasting[: max(known, 0)].sum() - SMALL.receptive_frames)
        assert sum(map(len, pieces)) == certain * SMALL.hop  # all that can be certain
    pieces.append(stream.take(done=True))
    np.testing.assert_allclose(np.concatenate(pieces), want, atol=1e-5)
    assert np.abs(want).max() > 1e-2


def test_pieces_of_any_sizes_and_short_answers(answer):
    params, units, *_ = answer
    random = np.random.RandomState(1)
    for length in (1, 5, 111):
        want, _ = whole(SMALL, params, units[:length])
        stream, pieces, at = vocoder.voice(SMALL, params), [], 0
        while at < length:
            size = random.randint(0, 25)
            stream.feed(units[at : min(at + size, length)])
            at = min(at + size, length)
            pieces.append(stream.take())
        np.testing.assert_allclose(np.concatenate([*pieces, stream.take(done=True)]), want, atol=1e-5)


def test_answers_of_all_lengths_share_their_programs(answer):
    params, units, *_ = answer
    for length in (3, 50, 200):
        vocoder.vocode(SMALL, params, units[:length])
    compiled = vocoder.vocode_chunk._cache_size(), vocoder.durations._cache_size()
    for length in range(1, 211, 9):
        vocoder.vocode(SMALL, params, units[:length])
    assert (vocoder.vocode_chunk._cache_size(), vocoder.durations._cache_size()) == compiled


def test_units_that_the_table_does_not_have(answer):
    stream = vocoder.voice(SMALL, answer[0])
    for units in ([3, 20], [-1]):
        with pytest.raises(DataError, match="ids from 0 to 19"):
            stream.feed(units)
