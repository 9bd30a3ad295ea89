"""`moshijax export` from runs and older artifacts, and `moshijax codec`, as commands."""

from __future__ import annotations

import io
import json
import shutil
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from moshijax import codec, runtime, weights
from moshijax.config_json import to_json
from moshijax.data import records
from moshijax.data.encoder import CodecEncoder, codec_sha256
from moshijax.data.grids import GridData
from moshijax.data.text import train_tokenizer
from moshijax.errors import DataError
from moshijax.export import source
from moshijax.files import write_json
from moshijax.runtime import audio, manifest
from moshijax.testing import tiny
from moshijax.train.experiment import ExperimentConfig
from moshijax.train.run.checkpoint import Checkpointer
from moshijax.train.run.init_from import check_meanings
from moshijax.train.run.run_dir import RunDir
from moshijax.train.state import TrainState
from moshijax.train.tasks.lm import AudioSteps, LMTask
from moshijax.weights.opening import open_model

pytest.importorskip("sentencepiece")
GREEDY = {"temperature": 0.0, "text_temperature": 0.0}


def write_config(path, config, data_folder):
    """The config of a run that trains a language model on some data."""
    steps = AudioSteps(GridData((str(data_folder),)))
    write_json(path / "config.json", to_json(ExperimentConfig(task=LMTask(config, "tokenizer.model", steps))))


def write_run(path, kind, config, params, model_state, data_folder=None):
    """A run directory as training leaves it, with one checkpoint."""
    run = RunDir(path)
    path.mkdir()
    write_json(path / "model.json", {"kind": kind, "config": to_json(config)})
    if data_folder is not None:
        write_config(path, config, data_folder)
    params, model_state = (
        {name: jnp.asarray(value) if not isinstance(value, dict) else value for name, value in tree.items()}
        for tree in (params, model_state)
    )
    zero = jnp.zeros((), jnp.int32)
    state = TrainState(step=zero, params=params, model_state=model_state, opt_states={}, ema={}, nonfinite=zero)
    checkpointer = Checkpointer(run)
    checkpointer.save(state, 1, {})
    checkpointer.close()
    return path


@pytest.fixture(scope="module")
def models():
    return tiny.tiny_models()


@pytest.fixture(scope="module")
def runs(models, tmp_path_factory):
    """A codec run, data encoded with it, and a run of a language model on that data."""
    import jax

    root = tmp_path_factory.mktemp("runs")
    (codec_config, codec_params), (lm_config, lm_params), _ = jax.tree.map(
        lambda leaf: jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf, models
    )
    write_run(root / "codec", "codec", codec_config, codec_params["params"], codec_params["codebooks"])
    encoder = CodecEncoder.load(root / "codec")
    (root / "grids").mkdir()
    index = {"codec": {"sha256": encoder.sha256, "source": encoder.source}}
    write_json(root / "grids" / records.INDEX, index)
    write_run(root / "lm", "lm", lm_config, lm_params, {}, root / "grids")
    text = ["yes no the red blue green door train leaves soon late never at ten"]
    train_tokenizer(text, vocab_size=40, byte_fallback=False).save(root / "lm" / "tokenizer.model")
    return root


@pytest.fixture(scope="module")
def exported(runs):
    from moshijax.cli.main import run

    assert run(["export", str(runs / "lm"), str(runs / "artifact"), "--batch", "2"]) == 0
    return runs / "artifact"


def greedy_codes(path):
    rows = runtime.Rows(runtime.load(path), 2, prompts=False)
    row = rows.open(runtime.CallOptions(sampling=GREEDY))
    pcm = np.random.RandomState(0).randn(8, 2, 640).astype(np.float32) * 0.3
    frames = [rows.step(piece) for piece in pcm]
    return np.stack([frame.codes[row] for frame in frames])


def test_a_run_leads_to_its_codec_and_tokenizer(exported, runs):
    description = manifest.read(exported)
    assert description["platforms"] == ["cpu"] and description["batches"] == [2]
    assert description["config"]["codec"] == to_json(tiny.CODEC)
    pieces = json.loads((exported / "text_pieces.json").read_text(encoding="utf-8"))
    assert pieces[:4] == ["<unk>", "<s>", "</s>", "<pad>"] and 4 < len(pieces) <= 48


def test_an_artifact_leads_to_another(exported, cli, tmp_path):
    code, out, _ = cli("export", exported, tmp_path / "again", "--platforms", "cpu,tpu")
    assert code == 0 and f"wrote {tmp_path / 'again'}" in out
    assert manifest.read(tmp_path / "again")["platforms"] == ["cpu", "tpu"]
    np.testing.assert_array_equal(greedy_codes(exported), greedy_codes(tmp_path / "again"))


def test_calls_through_an_int8_artifact(exported, cli, tmp_path):
    """Greedy and sampled, each the same twice."""
    small, user = tmp_path / "small", tmp_path / "user.wav"
    code, _, err = cli("export", exported, small, "--weights-dtype", "int8", "--cache-dtype", "int8", "--batch", "1")
    assert code == 0, err
    sound = np.random.RandomState(0).randn(640 * 12, 1).astype(np.float32) * 0.2
    audio.write(user, sound, 8000)
    runs = {}
    for name, options in {
        "greedy": ("--temperature", "0", "--text-temperature", "0"),
        "sampled": ("--seed", "3"),
    }.items():
        for number in (1, 2):
            out = tmp_path / f"{name}{number}.wav"
            code, _, err = cli("run", small, "--user", user, "--out", out, *options)
            assert code == 0, err
            runs[name, number] = audio.read(out)[0]
        np.testing.assert_array_equal(runs[name, 1], runs[name, 2])
    assert (runs["greedy", 1] != runs["sampled", 1]).any()


def test_a_codec_keeps_its_hash_in_every_form(runs, cli, tmp_path):
    """The hash that data is bound to is that of the codec, not of the files that it is read from."""
    data = CodecEncoder.load(runs / "codec").sha256
    for form in ("kyutai", "huggingface"):
        assert cli("weights", "export", runs / "codec", tmp_path / form, "--format", form)[0] == 0
        assert CodecEncoder.load(tmp_path / form).sha256 == data, form
    assert cli("weights", "export", runs / "lm", tmp_path / "both", "--format", "kyutai")[0] == 0
    assert cli("weights", "import", tmp_path / "both", tmp_path / "imported")[0] == 0
    for folder in ("both", "imported"):
        assert codec_sha256(*open_model(tmp_path / folder).codec.load()) == data, folder
        check_meanings(str(tmp_path / folder), {"codec": data})
        with pytest.raises(DataError, match=f"has a codec with the sha256 {data[:12]}.* one with 1{{12}}"):
            check_meanings(str(tmp_path / folder), {"codec": "1" * 64})


def test_another_codec_is_refused(runs, cli, tmp_path):
    (codec_config, codec_params), _, _ = tiny.tiny_models(seed=1)
    other = write_run(tmp_path / "other", "codec", codec_config, codec_params["params"], codec_params["codebooks"])
    code, _, err = cli("export", runs / "lm", tmp_path / "artifact", "--codec", other)
    assert code == 3 and "is not the one that the data of" in err and "--codec" in err
    assert not (tmp_path / "artifact").exists()


@pytest.mark.parametrize("content", [b"", b'{"task": {"aud', b'{"a": "\xff"}', b"[]"])
@pytest.mark.parametrize("command", [("export", "LM", "OUT"), ("weights", "export", "LM", "OUT", "--format", "kyutai")])
def test_a_damaged_config_of_a_run_is_named(runs, cli, tmp_path, command, content):
    damaged = shutil.copytree(runs / "lm", tmp_path / "lm")
    (damaged / "config.json").write_bytes(content)
    code, _, err = cli(*({"LM": damaged, "OUT": tmp_path / "out"}.get(word, word) for word in command))
    assert code == 3 and f"{damaged / 'config.json'} is damaged (" in err and "restore it from a copy" in err
    assert err.count("error: ") == 1 and not (tmp_path / "out").exists()


def test_what_cannot_be_found_is_named(runs, cli, tmp_path):
    lone = shutil.copytree(runs / "lm", tmp_path / "lm")
    (lone / "tokenizer.model").unlink()
    code, _, err = cli("export", lone, tmp_path / "artifact")
    assert code == 2 and "has no tokenizer.model or tokenizer.json; give the file with --tokenizer" in err
    write_config(lone, tiny.LM, tmp_path / "gone")
    code, _, err = cli("export", lone, tmp_path / "artifact")
    assert code == 2 and "does not lead to its codec; give it with --codec" in err
    assert not (tmp_path / "artifact").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("nowhere", "OUT"), 2, "nothing at nowhere"),
        (("LM", "LM"), 2, "would replace the input"),
        (("LM", "CODEC"), 2, "exists; choose another path or remove it first"),
        (("LM", "OUT", "--platforms", "cpu,rocm"), 2, "unknown platform 'rocm'"),
        (("LM", "OUT", "--batch", "1,x"), 2, "--batch 1,x must be whole numbers"),
        (("LM", "OUT", "--batch", "0"), 2, "batches > 0"),
        (("LM", "OUT", "--weights-dtype", "int4"), 2, "int4"),
        (("CODEC", "OUT"), 3, "a language model is needed"),
    ],
)
def test_bad_arguments(cli, runs, tmp_path, arguments, code, message):
    places = {"LM": runs / "lm", "CODEC": runs / "codec", "OUT": tmp_path / "artifact"}
    got, _, err = cli("export", *[places.get(argument, argument) for argument in arguments])
    assert got == code and message in err and err.count("\n") == 1
    assert not (tmp_path / "artifact").exists()


def test_what_an_artifact_has_no_place_for_is_printed(runs, cli, tmp_path):
    """Values of the published generator: null stands for the default, `use_sampling` false is greedy."""
    published, said = tmp_path / "published", tmp_path / "published" / "config.json"
    assert cli("weights", "export", runs / "lm", published, "--format", "kyutai", "--codec", runs / "codec")[0] == 0
    shutil.copy(runs / "lm" / "tokenizer.model", published)
    fields = json.loads(said.read_text())
    own = {"temp": 0.3, "text_temp": 0.4, "top_k": 7, "top_k_text": 5, "use_sampling": True}
    said.write_text(json.dumps({**fields, "lm_gen_config": own}))
    sampling = {"temperature": 0.3, "text_temperature": 0.4, "top_k": 7, "text_top_k": 5}
    assert source.load(published).use["sampling"] == sampling
    generation = {"use_sampling": False, "cfg_coef": 3.0, "check": True, "temp": None, "top_k": None, "text_temp": 0.6}
    said.write_text(json.dumps({**fields, "lm_gen_config": generation}))
    code, out, _ = cli("export", published, tmp_path / "artifact")
    assert (
        code == 0 and "not used, because an artifact has no place for it: lm_gen_config.cfg_coef, lm_gen_config" in out
    )
    defaults = manifest.read(tmp_path / "artifact")["sampling"]["defaults"]
    assert defaults["temperature"] == defaults["text_temperature"] == 0 and defaults["top_k"] == 32
    said.write_text(json.dumps({**fields, "lm_gen_config": {"temp": -1}}))
    code, _, err = cli("export", published, tmp_path / "again")
    assert code == 2 and "temp is -1" in err and not (tmp_path / "again").exists()


class TestCodec:
    @pytest.fixture
    def speech(self, tmp_path):
        samples = np.random.RandomState(0).uniform(-0.3, 0.3, (640 * 6 + 7, 2)).astype(np.float32)
        audio.write(tmp_path / "speech.wav", samples, 8000)
        return tmp_path / "speech.wav"

    @pytest.mark.parametrize("streaming", [(), ("--streaming",)])
    def test_there_and_back(self, cli, runs, speech, tmp_path, streaming):
        codes, again = tmp_path / "speech.npz", tmp_path / "again.wav"
        code, out, _ = cli("codec", "encode", speech, codes, "--codec", runs / "codec", *streaming)
        assert code == 0 and "2 channel(s), 4 codebooks, 7 frames" in out
        config, params = weights.load_mimi(runs / "codec")
        samples, _ = audio.read(speech)
        expected = np.asarray(codec.encode(config, params, samples.T.copy()))
        np.testing.assert_array_equal(np.load(codes)["codes"], expected)
        code, out, _ = cli("codec", "decode", codes, again, "--codec", runs / "codec", *streaming)
        assert code == 0 and "2 channel(s)" in out
        back, rate = audio.read(again)
        waveform = np.asarray(codec.decode(config, params, expected))[:, : len(samples)].T
        assert rate == 8000 and back.shape == samples.shape
        np.testing.assert_allclose(back, waveform.clip(-1, 1), atol=2e-4)

    def test_fewer_codebooks(self, cli, runs, speech, tmp_path):
        codes = tmp_path / "speech.npz"
        assert cli("codec", "encode", speech, codes, "--codec", runs / "codec", "--num-codebooks", 2)[0] == 0
        assert np.load(codes)["codes"].shape == (2, 2, 7)
        code, _, err = cli("codec", "encode", speech, codes, "--codec", runs / "codec", "--num-codebooks", 5)
        assert code == 2 and "--num-codebooks 5 must be 1 to 4" in err

    def test_bad_input(self, cli, runs, speech, tmp_path):
        out = tmp_path / "out.wav"
        (tmp_path / "x.npz").write_bytes(b"not a zip")
        np.savez(tmp_path / "y.npz", codes=np.full((1, 2, 3), 99), samples=10)
        for arguments, code, message in (
            (("encode", tmp_path / "no.wav", tmp_path / "a.npz"), 2, "no audio file at"),
            (("encode", speech, tmp_path / "a.txt"), 2, "must end in .npz"),
            (("encode", speech, tmp_path / "no" / "a.npz"), 2, "its folder does not exist"),
            (("decode", tmp_path / "no.npz", out), 2, "no codes file at"),
            (("decode", tmp_path / "x.npz", out), 3, "was not written by `moshijax codec encode`"),
            (("decode", tmp_path / "y.npz", out), 3, "ids 99 to 99, this codec has 0 to 31"),
        ):
            got, _, err = cli("codec", *arguments, "--codec", runs / "codec")
            assert got == code and message in err
        assert not out.exists()

    @pytest.mark.parametrize(
        ("codes", "samples", "message"),
        [
            (np.zeros((2000, 2, 3), np.int32), 10, "holds 2000 channels of 3 frames"),
            (np.zeros((1, 5, 3), np.int32), 10, "holds 5 codebooks, this codec has 4"),
            (np.zeros((1, 2, 3), np.int32), -1, "says -1 samples for 3 frames"),
            (np.zeros((1, 2, 3), np.int32), 1921, "says 1921 samples for 3 frames"),
            (np.zeros((1, 2, 3), np.float32), 10, "codes must be integers"),
            (np.zeros((1, 0, 3), np.int32), 10, "codes must be integers"),
            (np.zeros(3, np.int32), 10, "codes must be integers"),
            (np.zeros((1, 2, 3), np.uint64) + 2**63, 10, "ids 9223372036854775808"),
            (np.zeros((1, 2, 3), np.int32), "x", "was not written by"),
        ],
    )
    def test_codes_that_are_none(self, cli, runs, tmp_path, codes, samples, message):
        np.savez(tmp_path / "x.npz", codes=codes, samples=samples)
        code, _, err = cli("codec", "decode", tmp_path / "x.npz", tmp_path / "out.wav", "--codec", runs / "codec")
        assert code == 3 and message in err and err.count("\n") == 1
        assert not (tmp_path / "out.wav").exists()

    def test_a_header_that_promises_terabytes_is_refused_before_it_is_read(self, cli, runs, tmp_path):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<i4", "fortran_order": False, "shape": (8, 4, 10**11)})
        with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
            archive.writestr("codes.npy", header.getvalue())
        code, _, err = cli("codec", "decode", tmp_path / "x.npz", tmp_path / "out.wav", "--codec", runs / "codec")
        assert code == 3 and "a WAV file takes" in err

    def test_many_channels_are_those_of_a_few_at_a_time(self, cli, runs, tmp_path):
        codes = np.random.RandomState(1).randint(0, 32, (19, 4, 2)).astype(np.int32)
        np.savez(tmp_path / "x.npz", codes=codes, samples=1000)
        code, out, _ = cli("codec", "decode", tmp_path / "x.npz", tmp_path / "out.wav", "--codec", runs / "codec")
        assert code == 0 and "19 channel(s)" in out
        config, params = weights.load_mimi(runs / "codec")
        want = np.asarray(codec.decode(config, params, codes))[:, :1000].T
        np.testing.assert_allclose(audio.read(tmp_path / "out.wav")[0], want.clip(-1, 1), atol=2e-4)
