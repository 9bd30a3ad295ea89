"""What the parts do beside their numbers, which are in `tests/parity/test_omni.py`."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from moshijax.errors import ConfigError, DataError
from moshijax.nn.lora import LoRA, merged
from moshijax.nn.rope import RopeScaling
from moshijax.omni import adapter, config, spectrogram, text_model, units, vocoder, whisper
from moshijax.omni.adapter import AdapterConfig
from moshijax.omni.config import llama_stack
from moshijax.omni.speech_decoder import SpeechDecoder, SpeechDecoderConfig, collapse
from moshijax.omni.text_model import TextConfig, TextModel
from moshijax.omni.vocoder import VocoderConfig
from moshijax.omni.whisper import WhisperConfig, whisper_stack
from moshijax.testing import check_streaming

KEY = jax.random.key(0)
STACK = llama_stack(16, 1, 2, 1, 24, context=8, rope_scaling=RopeScaling(original_context=16))


def test_the_text_model_streams():
    check_streaming(TextModel(TextConfig(20, STACK)), KEY, 16, sizes=(1, 3), splits=2, gradients=False)


def test_updates_reach_maps_with_biases():
    """Queries, keys and values of Qwen2, whose biases stand beside the map."""
    stack = dataclasses.replace(STACK, attention_biases=("q", "k", "v"))
    c = TextConfig(20, stack, lora=LoRA(2, 2.0, ("stack/attention/*",)))
    params = text_model.init(c, KEY, False)
    update = params["stack"]["layers_0"]["attention"]["in_proj"]
    assert update["lora_b"].shape == (update["kernel"].shape[0], 2)
    x = jax.random.normal(KEY, (1, 4, 16))
    before = text_model.hidden(c, params, x)
    update["lora_b"] = update["lora_b"] + 1
    after = text_model.hidden(c, params, x)
    assert np.abs(after - before).max() > 1e-2
    plain = dataclasses.replace(c, lora=None)
    np.testing.assert_allclose(text_model.hidden(plain, merged(params, c.lora), x), after, atol=1e-5)


def test_the_speech_decoder_streams():
    stack = dataclasses.replace(STACK, context=10)
    decoder = SpeechDecoder(SpeechDecoderConfig(8, 6, stack, upsample=5))
    check_streaming(decoder, KEY, 8, sizes=(1, 2), splits=2, gradients=False)


def test_a_prompt_in_one_pass_and_its_rows_of_other_lengths():
    """Rows of a padded prompt go on from their own ends."""
    c = TextConfig(20, dataclasses.replace(STACK, context=32))
    params = text_model.init(c, KEY, False)
    x = jax.random.normal(KEY, (2, 9, 16))
    whole = text_model.hidden(c, params, x)
    state, first = text_model.step(c, params, text_model.init_state(c, 2), x[:, :6], lengths_B=np.array([6, 4]))
    np.testing.assert_allclose(first[0], whole[0, :6], atol=1e-5)
    rest = np.stack([x[0, 6:8], x[1, 4:6]])
    _, second = text_model.step(c, params, state, rest)
    np.testing.assert_allclose(second, np.stack([whole[0, 6:8], whole[1, 4:6]]), atol=1e-5)


def test_both_layouts_of_parameters():
    c = TextConfig(20, dataclasses.replace(STACK, num_layers=2), tied=True)
    stacked, flat = text_model.init(c, KEY), text_model.init(c, KEY, False)
    assert "layers" in stacked["stack"] and "layers_1" in flat["stack"] and "head" not in flat
    x = jax.random.normal(KEY, (1, 4, 16))
    got = [text_model.logits(c, p, text_model.hidden(c, p, x)) for p in (stacked, flat)]
    np.testing.assert_allclose(*got, atol=1e-5)


def test_collapsing_in_pieces_is_collapsing_the_whole():
    labels = np.random.RandomState(0).randint(0, 4, (3, 40))

    def said(row):
        merged = [x for i, x in enumerate(row) if i == 0 or x != row[i - 1]]
        return [x for x in merged if x != 3]

    keep, _ = collapse(labels, 3)
    assert [list(row[k]) for row, k in zip(labels, np.asarray(keep), strict=True)] == [said(row) for row in labels]
    last, pieces = None, []
    for start in range(0, 40, 8):
        piece, last = collapse(labels[:, start : start + 8], 3, last)
        pieces.append(piece)
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), keep)


def test_units_are_the_nearest_centroids():
    random = np.random.RandomState(0)
    features, centroids = random.standard_normal((2, 7, 5)), random.standard_normal((11, 5))
    want = np.square(features[:, :, None] - centroids).sum(-1).argmin(-1)
    found = units.assign(features.astype(np.float32), centroids.astype(np.float32))
    np.testing.assert_array_equal(found, want)
    with pytest.raises(DataError, match="same width"):
        units.assign(features[..., :4], centroids)


def test_positions_of_a_new_encoder_are_sines_then_cosines():
    c = WhisperConfig(80, 7, whisper_stack(12, 1, 2))
    angle = np.arange(7)[:, None] * 10000.0 ** (-np.arange(6) / 5)
    want = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    np.testing.assert_allclose(whisper.init(c, KEY)["positions"], want, atol=1e-6)


def test_sizes_of_the_published_models():
    def count(tree):
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    omni = config.LLAMA_OMNI_8B
    parts = {name: count(tree) for name, tree in config.abstract(omni, False).items()}
    assert parts == {"encoder": 636968960, "adapter": 21501952, "text": 8030261248, "decoder": 425649129}
    assert count(whisper.abstract(whisper.TINY)) == 8208384


def test_the_reach_of_the_vocoder():
    """The farthest frames that it names change the samples of a frame, and none beyond them does."""
    assert VocoderConfig().receptive_frames == 21
    c = VocoderConfig(5, 4, 8, (2, 2), (4, 4), (3,), ((1, 3),))
    params = vocoder.init(c, KEY)
    at, reach = 40, c.receptive_frames
    ids = np.zeros((1, 81), int)
    other = ids.copy()
    other[0, at] = 1
    changed = np.abs(vocoder.generate(c, params, ids) - vocoder.generate(c, params, other))[0].reshape(-1, c.hop).max(1)
    where = np.flatnonzero(changed)
    assert (where.min(), where.max()) == (at - reach, at + reach)


SMALL = WhisperConfig(80, 4, whisper_stack(8, 1, 2))
MEL = np.zeros((1, 10, 80), np.float32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: spectrogram.log_mel(np.zeros((1, 9), np.float32), 81), ConfigError, "80, 128"),
        (lambda: spectrogram.log_mel(np.zeros(9, np.float32), 80), ConfigError, "add the batch axis"),
        (lambda: spectrogram.log_mel(np.zeros((1, 9), np.float32), 80, 500), ConfigError, "multiple of 160"),
        (lambda: whisper.encode(SMALL, whisper.init(SMALL, KEY), MEL), ConfigError, r"\[B, 8, 80\]"),
        (lambda: WhisperConfig(80, 8, STACK), ConfigError, "an encoder of Whisper has"),
        (lambda: adapter.adapt(AdapterConfig(4, 8), {}, np.zeros((1, 3, 4), np.float32)), ConfigError, "5 frames or"),
        (lambda: vocoder.vocode(VocoderConfig(), {}, [3, 1000]), DataError, "ids from 0 to 999"),
        (lambda: vocoder.vocode(VocoderConfig(), {}, []), DataError, "units none"),
        (lambda: VocoderConfig(channels=48), ConfigError, "multiple of 32"),
        (lambda: TextConfig(8, whisper_stack(16, 1, 2)), ConfigError, "must be causal"),
        (
            lambda: dataclasses.replace(config.LLAMA_OMNI_8B, adapter=AdapterConfig(1280, 2048)),
            ConfigError,
            "adapter.output_dim=2048 must equal text.stack.dim=4096",
        ),
    ],
)
def test_what_cannot_be_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
