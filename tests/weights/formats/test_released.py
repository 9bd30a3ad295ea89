"""Every released model by its own config: the size of its file, to the byte where it is known; nothing is allocated."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from moshijax import codec, lm
from moshijax.export import source as export_source
from moshijax.lm import configs
from moshijax.weights import load_lm, writer
from moshijax.weights.families.codec import CODEC
from moshijax.weights.families.lm import LANGUAGE_MODEL
from moshijax.weights.formats import huggingface
from moshijax.weights.formats.lm_config import lm_config, published_config
from moshijax.weights.formats.lm_table import lm_table
from moshijax.weights.opening import open_model
from moshijax.weights.transfer import export_weights, import_weights
from tests.weights.test_lm import published_tensors, write
from tests.weights.test_transfer import bits

# Parameters; format and size of the file that was published (or, for 7B and STT 1B, follows from the others).
RELEASED = {
    "MOSHI_7B": (7_687_729_152, "kyutai-fused", 15_375_500_136),
    "PERSONAPLEX_7B": (8_371_408_896, "kyutai-fused", 16_742_874_000),
    "HIBIKI_2B": (2_787_362_816, "kyutai-fused", 5_574_762_720),
    "HIBIKI_1B": (1_799_907_840, "mlx", 3_600_043_224),
    "HIBIKI_ZERO_3B": (3_131_686_912, "kyutai-fused", None),
    "STT_1B": (989_204_480, "kyutai-fused", 1_978_423_520),
    "STT_2_6B": (2_617_118_720, "kyutai-fused", 5_234_275_128),
    "TTS_1_6B": (1_836_550_272, "kyutai-fused", 3_683_719_712),
}
#: Whose conditioners are in bfloat16 like the rest; ours are float32, as the other models have them.
BFLOAT16_CONDITIONERS = ("HIBIKI_2B", "HIBIKI_1B")


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_model(name):
    config = getattr(configs, name)
    count, form, size = RELEASED[name]
    config = config.with_dtype("bfloat16", "bfloat16")
    shapes = {tensor: entry.shape for tensor, entry in lm_table(config).items()}
    assert sum(map(math.prod, shapes.values())) == lm.count_parameters(config) == count
    if size is not None:
        found = file_size(LANGUAGE_MODEL, config, form)
        if name in BFLOAT16_CONDITIONERS:
            # Every tensor comes before those in float32, but for the digits of a few offsets; checked without them.
            conditions = [tensor for tensor in shapes if tensor.startswith("condition_provider.")]
            assert len(conditions) == 3
            found = file_size(LANGUAGE_MODEL, config, form, "bfloat16")
        assert found == size
    assert lm_config(json.loads(json.dumps(published_config(config)))).with_dtype("bfloat16", "bfloat16") == named(
        config
    )


def file_size(family, config, form, dtype=None, metadata=None):
    """Bytes of the one file that a model makes in a format; `dtype`: of all tensors."""
    tensors = family.published_shapes(config)
    if dtype is not None:
        tensors.dtypes = dict.fromkeys(tensors.shapes, np.dtype(dtype))
    return writer.file_size(family.spelled(tensors, config, form), metadata)


def named(config):
    """With the speakers that a published config leads to: it knows delays, and who speaks of one kind of model only."""
    if any(stream.given and stream.scored for stream in config.layout.streams):
        return config
    layout = lm.layouts.from_delays(config.layout.delays, config.layout.dep_q)
    return dataclasses.replace(config, layout=layout)


#: What is known of Kyutai TTS 0.75B (`kyutai/tts-0.75b-en-public`), small: its sizes are not, so it has no config here.
SMALL_SYNTHESIS = {
    **{"model_type": "tts", "n_q": 16, "dep_q": 16, "delays": [0, 0, *[2] * 15], "card": 24, "context": 20},
    **{"text_card": 30, "text_card_out": 5, "demux_second_stream": True, "dim": 16, "num_heads": 2, "num_layers": 2},
    **{"hidden_scale": 4.125, "gating": "silu", "norm": "rms_norm_f32", "positional_embedding": "rope"},
    **{"depformer_dim": 8, "depformer_num_heads": 2, "depformer_num_layers": 1, "depformer_gating": "silu"},
    **{"depformer_multi_linear": True, "depformer_weights_per_step": True, "depformer_pos_emb": "none"},
    **{"depformer_weights_per_step_schedule": [*range(8), *[8] * 8], "depformer_low_rank_embeddings": 4},
    "conditioners": {
        "control": {"type": "lut", "lut": {"n_bins": 1, "dim": 4, "tokenizer": "noop", "possible_values": ["ok"]}}
    },
    "fuser": {"sum": ["control"], "cross": [], "prepend": []},
    "tts_config": {"audio_delay": 1.28, "second_stream_ahead": 2},
    "lm_gen_config": {"temp": 0.6, "temp_text": 0.6},
}


def test_a_synthesis_model_that_only_its_own_config_describes(tmp_path):
    """16 codebooks 16 frames behind the text, five choices of text, the voice as a prefix of sound."""
    import_weights(write(tmp_path / "given", SMALL_SYNTHESIS, published_tensors(SMALL_SYNTHESIS)), tmp_path / "ours")
    export_weights(open_model(tmp_path / "ours"), tmp_path / "back", "kyutai-fused")
    assert bits(tmp_path / "back") == bits(tmp_path / "given")
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == SMALL_SYNTHESIS
    config, _ = load_lm(tmp_path / "ours")
    assert (config.text_vocab, config.layout.dep_q, config.layout.max_delay) == (5, 16, 2)
    policy = export_source._policy(None, config, export_source._published(tmp_path / "ours"), 12.5)
    assert (policy.audio_delay, policy.look_ahead, policy.turn_tokens) == (16, 2, False)


def test_heads_that_hear_the_end_of_a_turn():
    with_heads = dataclasses.replace(configs.STT_1B, extra_heads=4)
    assert lm.count_parameters(with_heads) == lm.count_parameters(configs.STT_1B) + 49_152


def test_the_released_codec():
    config = codec.configs.MIMI
    assert file_size(CODEC, config, "kyutai-fused") == 384_644_900
    # The same tensors under the longer names of Transformers, with its line of metadata.
    assert file_size(CODEC, config, "huggingface", metadata=huggingface.METADATA) > 384_604_572
