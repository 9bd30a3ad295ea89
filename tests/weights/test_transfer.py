"""Import and export: nothing is lost on the way, whatever the names, types and files."""

from __future__ import annotations

import json

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from moshijax import codec, lock, weights
from moshijax.errors import ConfigError, DataError
from moshijax.export import source as export_source
from moshijax.weights.opening import open_model
from moshijax.weights.safetensors import open_tensors
from moshijax.weights.transfer import export_weights, import_weights
from tests.parity.weights_by_name import FIXTURES, load_fixture, write_checkpoint
from tests.weights.test_lm import PUBLISHED, published_tensors, split_names, write

STATED = {
    **PUBLISHED,
    "model_type": "stt",
    "lm_gen_config": {"temp": 0, "temp_text": 0, "top_k": 250, "top_k_text": 50},
    "stt_config": {"audio_delay_seconds": 0.5, "audio_silence_prefix_seconds": 0.0},
    "model_id": {"sig": "0ab1", "epoch": 12},
    "moshi_name": "model.safetensors",
    "depformer_causal": True,
    "depformer_context": 3,
}
CONDITIONED = {
    **PUBLISHED,
    "conditioners": {"description": {"type": "lut", "lut": {"n_bins": 4, "dim": 5, "tokenizer": "noop"}}},
    "fuser": {"sum": ["description"], "cross": [], "prepend": []},
}


def typed(tensors, rule):
    return {name: tensor.astype(rule(name)) for name, tensor in tensors.items()}


def bits(folder):
    """Name -> type, shape and bytes of every tensor."""
    tensors = open_tensors(folder / "model.safetensors")
    return {name: (str(tensors.dtypes[name]), tensors.shapes[name], tensors[name].tobytes()) for name in tensors}


BF16, F32, F16 = ml_dtypes.bfloat16, np.float32, np.float16
TYPES = {
    "float32": lambda name: F32,
    "bfloat16": lambda name: BF16,
    "float16": lambda name: F16,
    "conditioners apart": lambda name: F32 if name.startswith("condition_provider.") else BF16,
    "mixed": lambda name: F32 if "norm" in name else BF16,
}


@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("form", ["kyutai", "kyutai-fused"])
def test_language_model_there_and_back(tmp_path, types, form):
    tensors = published_tensors(CONDITIONED)
    tensors = typed(split_names(tensors) if form == "kyutai" else tensors, TYPES[types])
    write(tmp_path / "given", CONDITIONED, tensors)
    import_weights(tmp_path / "given", tmp_path / "ours")
    export_weights(open_model(tmp_path / "ours"), tmp_path / "back", form)
    assert bits(tmp_path / "back") == bits(tmp_path / "given")
    # Straight through, and to the other spelling and back.
    export_weights(open_model(tmp_path / "given"), tmp_path / "other", {"kyutai": "kyutai-fused"}.get(form, "kyutai"))
    export_weights(open_model(tmp_path / "other"), tmp_path / "again", form)
    assert bits(tmp_path / "again") == bits(tmp_path / "given")
    assert set(bits(tmp_path / "other")) != set(bits(tmp_path / "given"))


def test_codec_there_and_back(tmp_path):
    description, _ = load_fixture("mimi_small")
    given = write_checkpoint(tmp_path / "given", description)
    import_weights(given, tmp_path / "ours")
    files = export_weights(open_model(tmp_path / "ours"), tmp_path / "back", "kyutai-fused")
    assert [file.name for file in files] == ["config.json", "model.safetensors"]
    assert bits(tmp_path / "back") == bits(given)
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == description["config"]


@pytest.mark.slow
def test_the_released_codec_has_its_size(tmp_path):
    description, _ = load_fixture("mimi_full")
    given = write_checkpoint(tmp_path / "given", description)
    import_weights(given, tmp_path / "ours")
    export_weights(open_model(tmp_path / "ours"), tmp_path / "back", "kyutai-fused")
    assert (tmp_path / "back" / "model.safetensors").stat().st_size == 384_644_900
    assert bits(tmp_path / "back") == bits(given)


def test_a_config_is_written_as_it_was_stated(tmp_path):
    write(tmp_path / "given", STATED, published_tensors(PUBLISHED))
    import_weights(tmp_path / "given", tmp_path / "ours")
    export_weights(open_model(tmp_path / "ours"), tmp_path / "back", "kyutai-fused")
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == STATED


@pytest.mark.parametrize("name", sorted(path.stem for path in FIXTURES.glob("lm_*.json")))
def test_every_kind_of_language_model(tmp_path, name):
    """`lm_recognition` has a projection that nobody uses."""
    description, _ = load_fixture(name)
    given = write_checkpoint(tmp_path / "given", description)
    assert name != "lm_recognition" or "depformer_in.0.weight" in load_file(given / "model.safetensors")
    import_weights(given, tmp_path / "ours")
    export_weights(open_model(tmp_path / "ours"), tmp_path / "back", "kyutai-fused")
    assert bits(tmp_path / "back") == bits(given)


def test_the_end_of_text_of_a_translation_model_is_kept_in_files(tmp_path):
    given = write(tmp_path / "given", {**PUBLISHED, "model_type": "hibiki"}, published_tensors(PUBLISHED))
    import_weights(given, tmp_path / "ours")
    for folder in (given, tmp_path / "ours"):
        _, params = weights.load_lm(folder)
        table = params["text_embedding"]["table"][0]
        np.testing.assert_array_equal(table[2], table[3])
    export_weights(open_model(tmp_path / "ours"), tmp_path / "back", "kyutai-fused")
    assert bits(tmp_path / "back") == bits(given)


def test_several_files_with_an_index(tmp_path):
    given = write(tmp_path / "given", PUBLISHED, published_tensors(PUBLISHED))
    files = export_weights(open_model(given), tmp_path / "parts", "kyutai-fused", max_bytes=6000)
    names = [file.name for file in files]
    assert "model.safetensors.index.json" in names and len(names) > 5
    for part in (tmp_path / "parts").glob("*.safetensors"):
        assert sum(array.nbytes for array in load_file(part).values()) <= 6000
    index = json.loads((tmp_path / "parts" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {name for name in names if name.endswith(".safetensors")}
    import_weights(tmp_path / "parts", tmp_path / "ours")
    export_weights(open_model(tmp_path / "ours"), tmp_path / "back", "kyutai-fused")
    assert bits(tmp_path / "back") == bits(given) == bits(tmp_path / "parts")
    # A part that is missing, cut, or of another model.
    part = tmp_path / "parts" / names[2]
    data = part.read_bytes()
    part.write_bytes(data[:-1])
    with pytest.raises(DataError, match=f"{part.name}: incomplete, expected {len(data)} bytes"):
        open_model(tmp_path / "parts")
    save_file({"other": np.zeros(3, np.float32)}, part)
    with pytest.raises(DataError, match="is not in .*other of .* is not in the index"):
        open_model(tmp_path / "parts")
    part.unlink()
    with pytest.raises(DataError, match=f"{part.name}: cannot be read"):
        open_model(tmp_path / "parts")


def quantised(tensors):
    """The form of int8 files, with one row of zeros and one whose largest entry is not at the scale."""
    out = {}
    random = np.random.RandomState(5)
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and "emb" not in name and "condition" not in name:
            ints = random.randint(-127, 128, tensor.shape).astype(np.int8)
            ints[0] = 0
            ints[1] = np.clip(ints[1], -90, 90)
            scale = random.uniform(0.01, 2, len(ints)).astype(np.float32)
            scale[0] = 0
            out[name], out[f"{name}_scb"] = ints, scale
        else:
            out[name] = tensor.astype(BF16)
    return out


@pytest.mark.parametrize("split", [False, True])
def test_int8_there_and_back(tmp_path, split):
    tensors = published_tensors(PUBLISHED)
    int8 = quantised(split_names(tensors) if split else tensors)
    given = write(tmp_path / "given", {**PUBLISHED, "quantize": True}, int8)
    import_weights(given, tmp_path / "ours")
    config, params = weights.load_lm(tmp_path / "ours")
    assert config.temporal.param_dtype == "float32"
    want = int8["text_linear.weight"] * int8["text_linear.weight_scb"][:, None] / 127
    np.testing.assert_allclose(params["text_head"]["kernel"], want, rtol=1e-6)
    export_weights(open_model(tmp_path / "ours"), tmp_path / "back", "kyutai" if split else "kyutai-fused")
    assert bits(tmp_path / "back") == bits(given)
    # A config of the other kind of file.
    (given / "config.json").write_text(json.dumps(PUBLISHED))
    with pytest.raises(ConfigError, match=r"int8 weights with scales.*quantize=False"):
        open_model(given)


def test_int8_weights_without_their_scales(tmp_path):
    int8 = quantised(published_tensors(PUBLISHED))
    del int8["text_linear.weight_scb"]
    given = write(tmp_path / "given", {**PUBLISHED, "quantize": True}, int8)
    with pytest.raises(DataError, match=r"text_linear\.weight int8 has no counterpart"):
        open_model(given)


def test_a_model_with_its_codec_and_tokenizer(tmp_path, cli):
    description, _ = load_fixture("mimi_small")
    mimi = write_checkpoint(tmp_path / "mimi", description)
    stated = {**PUBLISHED, "mimi_name": "codec@1.safetensors", "tokenizer_name": "spm.model"}
    stated["mimi_config_name"] = "codec.json"
    given = write(tmp_path / "given", stated, published_tensors(PUBLISHED))
    (mimi / "model.safetensors").rename(given / "codec@1.safetensors")
    (mimi / "config.json").rename(given / "codec.json")
    (given / "spm.model").write_bytes(b"pieces")
    code, out, _ = cli("weights", "import", given, tmp_path / "ours")
    assert code == 0 and "a language model, its codec, its tokenizer" in out
    config, params = weights.load_mimi(tmp_path / "ours")
    assert config == weights.load_mimi(given)[0]
    waveform = np.zeros((1, config.frame_size), np.float32)
    assert codec.encode(config, params, waveform).shape == (1, config.num_codebooks, 1)
    code, out, _ = cli("weights", "export", tmp_path / "ours", tmp_path / "back", "--format", "kyutai-fused")
    assert code == 0
    assert {file.name: file.read_bytes() for file in (tmp_path / "back").iterdir() if file.suffix == ".model"} == {
        "spm.model": b"pieces"
    }
    assert sorted(file.name for file in (tmp_path / "back").iterdir()) == sorted(file.name for file in given.iterdir())
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == stated
    code, _, err = cli("weights", "export", tmp_path / "ours", tmp_path / "back", "--format", "kyutai")
    assert code == 2 and "exists" in err


def test_nothing_is_left_of_a_failed_import(tmp_path, cli):
    given = write(tmp_path / "given", PUBLISHED, published_tensors(PUBLISHED))
    file = given / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    code, _, err = cli("weights", "import", given, tmp_path / "ours")
    assert code == 3 and "incomplete" in err
    assert [path.name for path in tmp_path.iterdir()] == ["given"]


MOSHI = {
    **{key: value for key, value in PUBLISHED.items() if key not in ("kv_repeat", "extra_heads_num_heads")},
    **{"n_q": 6, "delays": [0, 0, 1, 1, 0, 1, 1], "depformer_weights_per_step_schedule": None},
    **{"depformer_dim_feedforward": None, "depformer_norm": None, "depformer_low_rank_embeddings": None},
    "model_type": "moshi",
}
RECOGNITION = {
    **{key: value for key, value in MOSHI.items() if not key.startswith("depformer")},
    **{"dep_q": 0, "delays": [0] * 7, "depformer_multi_linear": True, "model_type": "stt"},
}


def with_codec(folder, published, tensors):
    """A published language model with a small codec."""
    description, _ = load_fixture("mimi_small")
    write(folder, {**published, "mimi_name": "mimi.safetensors", "mimi_config_name": "mimi.json"}, tensors)
    mimi = write_checkpoint(folder / "mimi", description)
    (mimi / "model.safetensors").rename(folder / "mimi.safetensors")
    (mimi / "config.json").rename(folder / "mimi.json")
    mimi.rmdir()
    return folder


@pytest.mark.parametrize("published", [MOSHI, RECOGNITION, {**MOSHI, "kv_repeat": 2}], ids=["moshi", "stt", "grouped"])
def test_transformers_classes_there_and_back(tmp_path, published):
    tensors = typed(published_tensors(published), TYPES["bfloat16"])
    given = with_codec(tmp_path / "given", published, tensors)
    export_weights(open_model(given), tmp_path / "theirs", "huggingface")
    names = open_tensors(tmp_path / "theirs" / "model.safetensors")
    assert names.metadata == {"format": "pt"}
    if published["dep_q"]:
        # 3 steps of [q, k, v] become three tensors with a leading axis.
        assert names.shapes["depth_decoder.layers.0.self_attn.q_proj.linear.weight"][0] == 3
        assert names.shapes["depth_decoder.input_projections.weight"] == (3, 8, 16)
        # Rows 0 and 1 are a pair here, rows 0 and 2 there (heads of width 4).
        fused = tensors["transformer.layers.0.self_attn.in_proj_weight"]
        q = names["decoder.model.layers.0.self_attn.q_proj.linear.weight"]
        np.testing.assert_array_equal(q[:8], fused[[0, 2, 1, 3, 4, 6, 5, 7]])
    else:
        table = names["model.embed_tokens.embed_tokens.weight"]
        assert table.shape == (13 + 6 * 11 + 1, 16) and not table[-1].any()
        np.testing.assert_array_equal(table[13 + 11 : 13 + 22], tensors["emb.1.weight"])
    import_weights(tmp_path / "theirs", tmp_path / "ours")
    config, params = weights.load_lm(tmp_path / "ours")
    assert weights.load_mimi(tmp_path / "ours")[0] == weights.load_mimi(given)[0]
    want_config, want = weights.load_lm(given)
    assert config == want_config
    jax.tree.map(np.testing.assert_array_equal, params, want)
    export_weights(open_model(tmp_path / "ours"), tmp_path / "again", "huggingface")
    assert bits(tmp_path / "again") == bits(tmp_path / "theirs")
    written = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("again", "theirs")]
    assert written[0] == written[1]
    export_weights(open_model(tmp_path / "ours"), tmp_path / "back", "kyutai-fused")
    assert bits(tmp_path / "back") == bits(given)


def test_delays_of_recognition_lie_with_the_feature_extractor(tmp_path):
    said = {"audio_delay_seconds": 0.5, "audio_silence_prefix_seconds": 0.25}
    stated = {**RECOGNITION, "model_type": "stt", "stt_config": said}
    given = with_codec(tmp_path / "given", stated, published_tensors(RECOGNITION))
    export_weights(open_model(given), tmp_path / "theirs", "huggingface")
    file = tmp_path / "theirs" / "preprocessor_config.json"
    written = json.loads(file.read_text())
    rate = weights.load_mimi(given)[0].sample_rate
    assert written["feature_extractor_type"] == "KyutaiSpeechToTextFeatureExtractor"
    assert {**written, **said, "sampling_rate": rate, "feature_size": 1} == written
    import_weights(tmp_path / "theirs", tmp_path / "ours")
    for folder in ("theirs", "ours"):
        published = export_source._published(tmp_path / folder)
        assert published == {"model_type": "stt", "stt_config": said}
        assert export_source._policy(None, open_model(given).config, published, 12.5).text_delay == 0.5
    export_weights(open_model(tmp_path / "ours"), tmp_path / "back", "kyutai-fused")
    assert json.loads((tmp_path / "back" / "config.json").read_text())["stt_config"] == said
    export_weights(open_model(tmp_path / "ours"), tmp_path / "again", "huggingface")
    assert json.loads((tmp_path / "again" / "preprocessor_config.json").read_text()) == written
    file.write_text(json.dumps({**written, "sampling_rate": 16000}))
    with pytest.raises(ConfigError, match=rf"sampling_rate=16000 where the codec has {rate}"):
        open_model(tmp_path / "theirs")


def test_what_the_transformers_classes_cannot_hold(tmp_path):
    given = with_codec(tmp_path / "given", PUBLISHED, published_tensors(PUBLISHED))
    with pytest.raises(ConfigError, match="ConditionalGeneration cannot hold this model .* use --format kyutai"):
        export_weights(open_model(given), tmp_path / "theirs", "huggingface")
    alone = write(tmp_path / "alone", MOSHI, published_tensors(MOSHI))
    with pytest.raises(ConfigError, match="hold the codec too"):
        export_weights(open_model(alone), tmp_path / "theirs", "huggingface")
    assert not (tmp_path / "theirs").exists()


def test_a_row_that_must_be_zeros(tmp_path):
    given = with_codec(tmp_path / "given", RECOGNITION, published_tensors(RECOGNITION))
    export_weights(open_model(given), tmp_path / "theirs", "huggingface")
    file = tmp_path / "theirs" / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"][-1] = 1
    save_file(tensors, file)
    with pytest.raises(DataError, match=r"lm_head\.weight: row 12 must be zeros"):
        weights.load_lm(tmp_path / "theirs")


SHARED = {
    **PUBLISHED,
    "depformer_norm": None,
    "conditioners": CONDITIONED["conditioners"],
    "fuser": CONDITIONED["fuser"],
}


@pytest.mark.parametrize("published", [MOSHI, SHARED], ids=["moshi", "shared steps"])
def test_mlx_there_and_back(tmp_path, published):
    tensors = typed(published_tensors(published), TYPES["bfloat16"])
    given = write(tmp_path / "given", published, tensors)
    export_weights(open_model(given), tmp_path / "theirs", "mlx")
    names = open_tensors(tmp_path / "theirs" / "model.safetensors")
    assert {"audio_embs.5.weight", "depformer.slices.2.emb.weight"} & set(names) and "emb.0.weight" not in names
    assert names.shapes["out_norm.weight"] == (16,)
    norms = [names[f"depformer.slices.{k}.transformer.layers.0.norm1.weight"] for k in range(3)]
    np.testing.assert_array_equal(norms[1], norms[0])
    import_weights(tmp_path / "theirs", tmp_path / "ours")
    export_weights(open_model(tmp_path / "ours"), tmp_path / "again", "mlx")
    assert bits(tmp_path / "again") == bits(tmp_path / "theirs")
    export_weights(open_model(tmp_path / "ours"), tmp_path / "back", "kyutai-fused")
    assert bits(tmp_path / "back") == bits(given)
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == published
    # Copies that differ cannot be one weight of ours.
    changed = load_file(tmp_path / "theirs" / "model.safetensors")
    changed["depformer.slices.1.transformer.layers.0.norm1.weight"] += 1
    save_file(changed, tmp_path / "theirs" / "model.safetensors")
    with pytest.raises(DataError, match="must be a copy"):
        weights.load_lm(tmp_path / "theirs")


def test_of_two_commands_that_write_one_directory_the_second_is_refused(tmp_path, cli):
    given = write(tmp_path / "given", PUBLISHED, published_tensors(PUBLISHED))
    with lock.beside(tmp_path / "out"):
        for command in (("import", given, tmp_path / "out"), ("export", given, tmp_path / "out", "--format", "kyutai")):
            code, out, err = cli("weights", *command)
            assert code == 1 and out == "" and "out is being written by process" in err and err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given"]
    assert cli("weights", "import", given, tmp_path / "out")[0] == 0
