"""Published files of the parts of LLaMA-Omni: round trips, what the released files hold, and files that are refused."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import struct

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from moshijax.errors import ConfigError, DataError
from moshijax.nn.layout import unstack_layers
from moshijax.nn.rope import RopeScaling
from moshijax.omni import config as omni
from moshijax.omni import text_model, vocoder, whisper
from moshijax.omni.adapter import AdapterConfig
from moshijax.omni.config import OmniConfig, llama_stack
from moshijax.omni.speech_decoder import SpeechDecoderConfig
from moshijax.omni.text_model import TextConfig
from moshijax.omni.vocoder import VocoderConfig
from moshijax.omni.whisper import WhisperConfig, whisper_stack
from moshijax.weights import omni as weights
from moshijax.weights.formats import code_hifigan, llama, llama_omni
from moshijax.weights.formats.ctranslate2 import encoder_groups
from moshijax.weights.formats.whisper import whisper_groups
from moshijax.weights.names import theirs
from moshijax.weights.opening import open_model
from moshijax.weights.transfer import export_weights, import_weights

LLAMA = TextConfig(20, llama_stack(16, 2, 4, 2, 24, max_period=5e5, rope_scaling=RopeScaling(factor=4.0), context=64))
QWEN2 = TextConfig(
    20,
    dataclasses.replace(
        llama_stack(16, 2, 4, 2, 24, context=64, attention_biases=("q", "k", "v")), norm="rms_norm_1e-6"
    ),
    tied=True,
)
WHISPER = WhisperConfig(80, 6, whisper_stack(64, 2, 1))
VOCODER = VocoderConfig(5, 4, 8, (2, 2), (4, 4), (3,), ((1, 3),))
OMNI = OmniConfig(
    WHISPER,
    AdapterConfig(64, 16),
    LLAMA,
    SpeechDecoderConfig(16, 9, dataclasses.replace(LLAMA.stack, num_layers=1, dim=8, num_heads=2, kv_repeat=1)),
)


def filled(shapes, dtype=np.float32):
    random = np.random.RandomState(0)
    return jax.tree.map(lambda leaf: random.standard_normal(leaf.shape).astype(dtype), shapes)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("config", [LLAMA, QWEN2], ids=["llama", "qwen2"])
def test_a_text_model_out_and_in_again(config, tmp_path):
    """From the training layout into several files, and back into either layout."""
    params = filled(text_model.abstract(config))
    weights.save_text_model(config, params, tmp_path / "model", max_bytes=4000)
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    found, stacked = weights.load_text_model(tmp_path / "model", stacked=True)
    assert found == config
    equal(stacked, params)
    equal(weights.load_text_model(tmp_path / "model")[1], unstack_layers(params))


def test_types_are_those_of_the_file(tmp_path):
    half = LLAMA.with_dtype("float16", "float16")
    weights.save_text_model(half, filled(text_model.abstract(half), np.float16), tmp_path / "model")
    found, params = weights.load_text_model(tmp_path / "model")
    assert found.stack.dtype == found.stack.param_dtype == "float16" and params["table"].dtype == np.float16
    found, params = weights.load_text_model(tmp_path / "model", "float32")
    assert found.stack.dtype == "float32" and params["table"].dtype == np.float32


def test_a_whole_model_out_and_in_again(tmp_path):
    params = filled(omni.abstract(OMNI, False))
    weights.save_llama_omni(OMNI, params, tmp_path / "model")
    found, read = weights.load_llama_omni(tmp_path / "model")
    assert found == OMNI
    equal(read, params)


@pytest.mark.parametrize("form", code_hifigan.FORMS)
def test_a_vocoder_out_and_in_again(form, tmp_path):
    """Weight norm cannot be told from its product: what is read again is the same within a rounding."""
    params = filled(vocoder.abstract(VOCODER))
    weights.save_vocoder(VOCODER, params, tmp_path / "model", form)
    found, read = weights.load_vocoder(tmp_path / "model")
    assert found == VOCODER
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), read, params)


def test_the_released_files():
    """Counts, bytes and names that are known of them."""
    groups = llama_omni.omni_groups(omni.LLAMA_OMNI_8B)
    shapes = theirs(groups)
    assert 2 * sum(math.prod(shape) for shape in shapes.values()) == 18_228_762_578
    for name, shape in {
        "model.embed_tokens.weight": (128256, 4096),
        "model.layers.31.self_attn.k_proj.weight": (1024, 4096),
        "model.layers.0.mlp.down_proj.weight": (4096, 14336),
        "lm_head.weight": (128256, 4096),
        "model.speech_encoder.conv1.weight": (1280, 128, 3),
        "model.speech_encoder.positional_embedding": (1500, 1280),
        "model.speech_encoder.blocks.31.attn.value.bias": (1280,),
        "model.speech_encoder.blocks.0.mlp.0.weight": (5120, 1280),
        "model.speech_encoder.ln_post.bias": (1280,),
        "model.speech_projector.linear1.weight": (2048, 6400),
        "model.speech_projector.linear2.bias": (4096,),
        "speech_generator.input_proj.weight": (4096, 4096),
        "speech_generator.layers.1.self_attn.k_proj.weight": (4096, 4096),
        "speech_generator.layers.0.mlp.gate_proj.weight": (11008, 4096),
        "speech_generator.output_proj.bias": (1001,),
    }.items():
        assert shapes[name] == shape
    assert not [name for name in shapes if name.endswith(("attn.key.bias", "speech_generator.norm.weight"))]
    config = llama_omni.published_omni_config(omni.LLAMA_OMNI_8B)
    assert config["ctc_decoder_config"] == "(2,4096,32,11008)" and config["rope_scaling"]["factor"] == 8
    assert llama_omni.omni_config(config, omni.LLAMA_OMNI_8B.encoder) == omni.LLAMA_OMNI_8B

    normed = theirs(code_hifigan.vocoder_groups(VocoderConfig()))
    assert len(normed) == 302
    assert round(sum(math.prod(shape) for shape in normed.values()) / 1e6, 2) == 13.49
    assert normed["ups.0.weight_v"] == (512, 256, 11) and normed["ups.0.weight_g"] == (512, 1, 1)
    assert normed["resblocks.14.convs2.2.weight_v"] == (16, 16, 11)
    hf = theirs(whisper_groups(whisper.LARGE_V3, "huggingface"))
    assert hf["model.encoder.layers.31.fc1.weight"] == (5120, 1280)
    # Sizes in the names count the embeddings once where they are tied.
    sizes = {"0.5B": 494032768, "1.5B": 1543714304, "3B": 3085938688, "7B": 7615616512, "14B": 14770033664}
    for name, size in sizes.items():
        groups = llama.text_groups(omni.QWEN25[name])
        assert sum(math.prod(shape) for shape in theirs(groups).values()) == size


def edited(folder, change=None, **fields):
    """The directory with tensors changed by a function, and fields of its config set, or taken out where None."""
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))
    if change is not None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture
def saved(tmp_path):
    weights.save_text_model(LLAMA, filled(text_model.abstract(LLAMA)), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "mistral"}, "must be one of llama, qwen2"),
        ({"vocab_size": ...}, "lacks vocab_size"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu': must be silu"),
        ({"rms_norm_eps": 1e-3}, "rms_norm_eps=0.001: must be 1e-05 or 1e-06"),
        ({"num_key_value_heads": 3}, "does not divide"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "must be default or llama3"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "lacks factor"),
        ({"hidden_size": "16"}, "hidden_size is '16'"),
        ({"use_sliding_window": True}, "use_sliding_window=True"),
    ],
)
def test_configs_of_other_models_are_refused(fields, message, saved):
    with pytest.raises(ConfigError, match=re.escape(message)):
        weights.load_text_model(edited(saved, **fields))


def test_tensors_that_do_not_fit_are_all_named(saved):
    def change(tensors):
        del tensors["model.norm.weight"]
        tensors["more"] = tensors["lm_head.weight"]
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:3]

    with pytest.raises(DataError, match=r"3 tensors.*mis-shaped lm_head.*missing model.norm.*unexpected more"):
        weights.load_text_model(edited(saved, change))


def test_more_layers_than_tensors_are_refused_before_they_are_made(saved):
    with pytest.raises(DataError, match="declares 4000 layers"):
        weights.load_text_model(edited(saved, num_hidden_layers=4000))


def test_values_that_are_not_finite_are_refused(saved):
    with pytest.raises(DataError, match=r"lm_head.weight holds NaN"):
        weights.load_text_model(edited(saved, lambda tensors: tensors["lm_head.weight"].fill(np.nan)))


def test_buffers_of_old_files_are_left_alone(saved):
    def change(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)

    assert weights.load_text_model(edited(saved, change))[0] == LLAMA


def test_the_new_form_of_rope_parameters_is_read_too(saved):
    fields = json.loads((saved / "config.json").read_text())
    both = {**fields["rope_scaling"], "rope_theta": fields["rope_theta"]}
    assert weights.load_text_model(edited(saved, rope_theta=..., rope_scaling=..., rope_parameters=both))[0] == LLAMA


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ctc_decoder_config": "__import__('os')"}, "hidden width"),
        ({"speech_encoder_hidden_size": 32}, "the encoder is 64 wide"),
        ({"speech_projector_type": "cnn"}, "must be linear"),
        ({"unit_vocab_size": ...}, "lacks unit_vocab_size"),
    ],
)
def test_other_kinds_of_the_whole_model_are_refused(fields, message, tmp_path):
    weights.save_llama_omni(OMNI, filled(omni.abstract(OMNI, False)), tmp_path / "model")
    with pytest.raises(ConfigError, match=message):
        weights.load_llama_omni(edited(tmp_path / "model", **fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"multispkr": "yes"}, "only units are read"),
        ({"resblock": "2"}, "must be 1"),
        ({"code_hop_size": 5}, "must be 4"),
        ({"sampling_rate": ...}, "lacks sampling_rate"),
    ],
)
def test_other_vocoders_are_refused(fields, message, tmp_path):
    weights.save_vocoder(VOCODER, filled(vocoder.abstract(VOCODER)), tmp_path / "model")
    with pytest.raises(ConfigError, match=message):
        weights.load_vocoder(edited(tmp_path / "model", **fields))


def test_models_that_no_class_can_hold_are_not_written(tmp_path):
    with pytest.raises(ConfigError, match="attention_biases"):
        odd = dataclasses.replace(LLAMA, stack=dataclasses.replace(LLAMA.stack, attention_biases=("out",)))
        weights.save_text_model(odd, {}, tmp_path / "model")
    with pytest.raises(ConfigError, match=r"decoder\.stack"):
        odd = dataclasses.replace(OMNI, decoder=dataclasses.replace(OMNI.decoder, stack=LLAMA.stack))
        weights.save_llama_omni(odd, {}, tmp_path / "model")
    assert not (tmp_path / "model").exists()


# CTranslate2 ---------------------------------------------------------------------------------------------------------


def binary(variables, version=6, spec="WhisperSpec"):
    """A file as CTranslate2 writes it, of float32 variables and one int16 number."""

    def text(value):
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    out = struct.pack("<I", version) + text(spec) + struct.pack("<II", 3, len(variables))
    for name, value in variables.items():
        kind = {np.dtype(np.float32): 0, np.dtype(np.int16): 2}[value.dtype]
        out += text(name) + struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)
        out += struct.pack("<BI", kind, value.nbytes) + value.tobytes()
    return out + struct.pack("<I", 0)


@pytest.fixture
def variables():
    """A tiny encoder under the names of CTranslate2, and something of a decoder."""
    random = np.random.RandomState(0)
    shapes = theirs(encoder_groups(WHISPER))
    out = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    for name in out:
        if name.endswith("self_attention/linear_0/bias"):
            out[name][64:128] = 0
    return out | {"encoder/num_heads": np.int16([1]).reshape(()), "decoder/projection": np.ones(3, np.float32)}


def test_the_encoder_of_ctranslate2(variables, tmp_path):
    """It is what the same weights are under openai's names."""
    (tmp_path / "model.bin").write_bytes(binary(variables))
    config, params = weights.load_whisper(tmp_path)
    assert config == WHISPER
    weights.save_whisper(config, params, tmp_path / "openai", "openai")
    equal(weights.load_whisper(tmp_path / "openai" / "model.safetensors")[1], params)
    saved = load_file(tmp_path / "openai" / "model.safetensors")
    q, _, v = np.split(variables["encoder/layer_1/self_attention/linear_0/weight"], 3)
    np.testing.assert_array_equal(saved["encoder.blocks.1.attn.query.weight"], q)
    np.testing.assert_array_equal(saved["encoder.blocks.1.attn.value.weight"], v)
    np.testing.assert_array_equal(saved["encoder.ln_post.weight"], variables["encoder/layer_norm/gamma"])


def test_damaged_files_of_ctranslate2_are_refused(variables, tmp_path):
    file = tmp_path / "model.bin"
    whole = binary(variables)
    for content, message in (
        (whole[: len(whole) // 2], "cut off"),
        (b"", "cut off"),
        (binary(variables, version=4), "version 4, must be 6"),
        (binary(variables, spec="TransformerSpec"), "must be of 'WhisperSpec'"),
        (binary({"decoder/x": np.ones(2, np.float32)}), "no encoder of Whisper"),
    ):
        file.write_bytes(content)
        with pytest.raises(DataError, match=message):
            weights.load_whisper(file)
    variables["encoder/layer_0/self_attention/linear_0/bias"][:] = 1
    file.write_bytes(binary(variables))
    with pytest.raises(DataError, match="that of the keys must be zeros"):
        weights.load_whisper(file)


@pytest.mark.parametrize("max_bytes", [None, 100_000], ids=["one file", "several"])
def test_a_whole_model_is_imported_and_written_again_to_the_byte(max_bytes, tmp_path):
    params = filled(omni.abstract(OMNI, stacked=False))
    weights.save_llama_omni(OMNI, params, tmp_path / "published", max_bytes)
    edited(tmp_path / "published", transformers_version="4.43.4")  # which says nothing about the model, and is kept
    import_weights(tmp_path / "published", tmp_path / "imported")
    model = open_model(tmp_path / "imported")
    assert model.config == OMNI
    equal(model.load()[1], params)
    export_weights(model, tmp_path / "again", "huggingface", max_bytes)
    files, again = (
        {
            path.name: json.loads(path.read_text()) if path.name == "config.json" else path.read_bytes()
            for path in (tmp_path / name).iterdir()
        }
        for name in ("published", "again")
    )
    assert files == again
    assert (len(files) > 2) == (max_bytes is not None)
    with pytest.raises(ConfigError, match="no format kyutai; give --format huggingface"):
        export_weights(model, tmp_path / "other", "kyutai")
