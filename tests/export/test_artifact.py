"""Writing artifacts: every platform from here, types of weights, rebuilding, and nothing half-written."""

from __future__ import annotations

import dataclasses
import errno
import json
import os

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from moshijax import codec, lm, runtime
from moshijax.errors import ConfigError, DataError, MoshijaxError
from moshijax.export import artifact
from moshijax.export.step import CallStep, Signature, flatten
from moshijax.runtime import manifest, play

GREEDY = {"temperature": 0.0, "text_temperature": 0.0}


@pytest.fixture(scope="module")
def everywhere(models, tmp_path_factory):
    out = tmp_path_factory.mktemp("everywhere") / "artifact"
    return artifact.build(
        *models,
        out,
        platforms=("cpu", "cuda", "tpu"),
        batches=(1, 2),
        weights_dtype="bfloat16",
        prefill_lengths=(4, 16),
    )


def test_files_and_manifest(everywhere):
    description = json.loads((everywhere / "artifact.json").read_text())
    programs = {
        f"{name}.{platform}.{size}.jaxexp"
        for platform in ("cpu", "cuda", "tpu")
        for names, sizes in (
            (("init_state", "step", "step_tokens", "place"), ("b1", "b2")),
            (("prefill",), ("t4", "t16")),
            (("encode",), ("t16",)),
        )
        for name in names
        for size in sizes
    }
    files = {path.name for path in everywhere.iterdir()}
    assert files == programs | {"artifact.json", "weights.safetensors", "text_pieces.json"}
    assert set(description["files"]) == files - {"artifact.json"}
    for name, record in description["files"].items():
        assert record == manifest.file_record(everywhere / name)
    assert description["jax"] == {
        "exported_with": jax.__version__,
        "calling_convention_version": jax.export.maximum_supported_calling_convention_version,
        "tried": ["0.10.2", "0.13"],
    }
    assert description["platforms"] == ["cpu", "cuda", "tpu"] and description["batches"] == [1, 2]
    assert description["lengths"] == {"prefill": [4, 16], "encode": [16]}
    assert description["inputs"]["step"]["pcm"] == {"shape": [None, 640], "dtype": "float32"}
    assert description["outputs"]["step"]["codes"] == {"shape": [None, 7], "dtype": "int32"}
    assert description["layout"]["max_delay"] == 1
    assert [s["name"] for s in description["layout"]["streams"]][:2] == ["model text", "model codebook 0"]
    assert description["config"]["lm"]["temporal"]["context"] == 12


def test_every_platform_is_what_it_says(everywhere):
    for platform in ("cpu", "cuda", "tpu"):
        programs = [(name, 2) for name in ("init_state", "step", "step_tokens", "place")]
        for program in (*programs, ("prefill", 1, 4), ("encode", 1, 16)):
            file = everywhere / manifest.program_file(program[0], platform, *program[1:])
            assert jax.export.deserialize(bytearray(file.read_bytes())).platforms == (platform,)


def test_weights_types(everywhere, models):
    """bfloat16 stores the language model so, and the codec as float32; cpu computes in float32 all the same."""
    stored = load_file(everywhere / "weights.safetensors")
    kinds = {name.split("/")[0]: set() for name in stored}
    for name, value in stored.items():
        kinds[name.split("/")[0]].add(str(value.dtype))
    assert kinds == {"lm": {"bfloat16"}, "codec": {"float32"}}
    assert {str(value.dtype) for value in runtime.load(everywhere).weights.values()} == {"float32"}
    cuda = jax.export.deserialize(bytearray((everywhere / "step.cuda.b1.jaxexp").read_bytes()))
    (weights, state, _), _ = jax.tree.unflatten(cuda.in_tree, cuda.in_avals)
    assert str(weights["lm/text_head/kernel"].dtype) == "bfloat16"
    assert str(state["lm/temporal/layers/0/k"].dtype) == "bfloat16"


def test_rebuilt_from_itself(rows1, artifact_dir, tmp_path):
    """An artifact alone is enough to make it again, for other batch sizes and platforms too."""
    again = artifact.rebuild(artifact_dir, tmp_path / "again", batches=(1, 3), platforms=("cpu", "tpu"))
    first, second = load_file(artifact_dir / "weights.safetensors"), load_file(again / "weights.safetensors")
    assert set(first) == set(second) and all((first[name] == second[name]).all() for name in first)
    old, new = manifest.read(artifact_dir), manifest.read(again)
    for part in (
        "lengths",
        "config",
        "conditions",
        "layout",
        "audio",
        "text",
        "sampling",
        "state",
        "inputs",
        "outputs",
    ):
        assert old[part] == new[part]
    assert new["batches"] == [1, 3] and new["platforms"] == ["cpu", "tpu"]
    wave = (np.random.RandomState(4).randn(640 * 9) * 0.3).astype(np.float32)
    [before], _ = play.play(rows1, [wave])
    [after], _ = play.play(runtime.Rows(runtime.load(again), 1, prompts=False), [wave])
    np.testing.assert_array_equal(before.codes, after.codes)
    np.testing.assert_array_equal(before.pcm, after.pcm)


@pytest.fixture(scope="module")
def integers(models, tmp_path_factory):
    out = tmp_path_factory.mktemp("integers") / "artifact"
    small = dict(weights_dtype="int8", cache_dtype="int8", prefill_lengths=(4,))
    return artifact.build(*models, out, ("cpu", "cuda"), (1, 2), **small)


def test_int8_weights_and_caches(integers):
    """Kernels of linear maps and rings of the temporal transformer alone; a CPU computes in float32 all the same."""
    stored = load_file(integers / "weights.safetensors")
    small = {name for name, value in stored.items() if value.dtype == np.int8}
    assert small == {name for name in stored if name.endswith("/kernel/integers")}
    kernels = {name.split("kernel")[0] for name in stored if name.startswith("lm/") and "/kernel" in name}
    assert small == {f"{name}kernel/integers" for name in kernels} and len(small) > 20
    kinds = {str(v.dtype) for n, v in stored.items() if n.startswith("lm/") and "/kernel/" not in n}
    assert kinds == {"bfloat16"} and stored["lm/text_head/kernel/scale"].dtype == np.float32
    described = manifest.read(integers)
    assert described["config"]["lm"]["temporal"]["cache_dtype"] == "int8"
    assert described["weights"]["tensors"]["lm/text_head/kernel/integers"]["dtype"] == "int8"
    assert {str(value.dtype) for value in runtime.load(integers).weights.values()} == {"float32"}
    cuda = jax.export.deserialize(bytearray((integers / "step.cuda.b1.jaxexp").read_bytes()))
    (weights, state, _), _ = jax.tree.unflatten(cuda.in_tree, cuda.in_avals)
    assert str(weights["lm/text_head/kernel/integers"].dtype) == "int8"
    assert str(weights["lm/text_embedding/table"].dtype) == "bfloat16"
    assert str(state["lm/temporal/layers/0/k/integers"].dtype) == "int8"
    assert str(state["lm/temporal/layers/0/v/scale"].dtype) == "float32"


def test_codes_of_the_user_do_not_depend_on_the_types(integers, rows1):
    """The codec is float32 in every artifact: what is heard is the same, bit for bit."""
    wave = (np.random.RandomState(4).randn(640 * 30) * 0.3).astype(np.float32)
    [exact], _ = play.play(rows1, [wave])
    [small], _ = play.play(runtime.Rows(runtime.load(integers), 1, prompts=False), [wave])
    heard = [row for row, stream in enumerate(rows1.artifact.streams) if stream["given"]]
    assert len(heard) == 3 and len(set(exact.codes[heard].ravel())) > 10
    np.testing.assert_array_equal(small.codes[heard], exact.codes[heard])
    np.testing.assert_array_equal(small.codes.shape, exact.codes.shape)


def test_a_prompted_call_over_int8_caches_is_the_same_in_any_slot(integers):
    """The prompt is processed in blocks and placed beside a call that goes on; prompts of other tokens differ."""
    rows, talk = runtime.Rows(runtime.load(integers), 2), np.random.RandomState(1).randn(20, 640).astype(np.float32)
    prompts = np.random.RandomState(2).randint(4, 32, (2, 7, 21)).astype(np.int32)

    def codes(prompt):
        row = rows.open(runtime.CallOptions(7, prompt=prompt))
        sent, found = 0, []
        while len(found) < 12:
            pcm_BN = np.zeros((2, 640), np.float32)
            pcm_BN[row] = 0.3 * talk[sent]
            tick = rows.submit(pcm_BN)
            sent += tick.heard[row]
            frame = tick.result()
            if frame.ready[row]:
                found.append(frame.codes[row])
        return row, np.stack(found)

    first, alone = codes(prompts[0])
    second, beside = codes(prompts[0])
    assert {int(first), int(second)} == {0, 1}
    np.testing.assert_array_equal(beside, alone)
    rows.close(first)
    assert (codes(prompts[1])[1] != alone).any()


def test_int8_from_an_older_artifact_and_back(models, integers, artifact_dir, tmp_path):
    small = dict(weights_dtype="int8", cache_dtype="int8")
    later = artifact.rebuild(artifact_dir, tmp_path / "later", **small)
    again = artifact.rebuild(integers, tmp_path / "again")
    weights = (integers / "weights.safetensors").read_bytes()
    assert (later / "weights.safetensors").read_bytes() == weights == (again / "weights.safetensors").read_bytes()
    assert manifest.read(again)["config"] == manifest.read(integers)["config"]
    back = artifact.rebuild(
        integers, tmp_path / "back", weights_dtype="float32", cache_dtype="computed", platforms=("cpu",)
    )
    assert manifest.read(back)["config"]["lm"]["temporal"]["cache_dtype"] == "computed"
    stored, (_, (_, params), _) = load_file(back / "weights.safetensors"), models
    kernel = params["text_head"]["kernel"]
    apart = np.abs(stored["lm/text_head/kernel"] - kernel)
    assert 0 < apart.max() <= 0.501 * np.abs(kernel).max() / 127


def test_int8_holds_no_infinity(models, tmp_path):
    codec_model, (lm_config, lm_params), pieces = models
    broken = np.array(lm_params["text_head"]["kernel"])
    broken[3, 1] = np.inf
    params = {**lm_params, "text_head": {**lm_params["text_head"], "kernel": broken}}
    with pytest.raises(DataError, match="lm/text_head/kernel has values that are not finite"):
        artifact.build(codec_model, (lm_config, params), pieces, tmp_path / "artifact", weights_dtype="int8")
    assert list(tmp_path.iterdir()) == []


def test_rebuilding_a_damaged_artifact_is_refused(artifact_dir, tmp_path):
    import shutil

    copy = shutil.copytree(artifact_dir, tmp_path / "copy")
    data = bytearray((copy / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "weights.safetensors").write_bytes(bytes(data))
    with pytest.raises(DataError, match="weights.safetensors differs"):
        artifact.rebuild(copy, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_either_parameter_layout_gives_the_same_artifact(models, artifact_dir, tmp_path):
    from moshijax.nn.layout import unstack_layers

    codec_model, (lm_config, lm_params), pieces = models
    unstacked = lm_config, unstack_layers(lm_params)
    again = artifact.build(codec_model, unstacked, pieces, tmp_path / "again", prefill_lengths=(4,))
    assert (again / "weights.safetensors").read_bytes() == (artifact_dir / "weights.safetensors").read_bytes()


def test_it_does_not_write_over_other_things(models, artifact_dir, tmp_path):
    with pytest.raises(ConfigError, match="exists; choose another path"):
        artifact.build(*models, artifact_dir)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "precious.txt").write_text("x")
    with pytest.raises(ConfigError, match="exists and is not an artifact"):
        artifact.build(*models, tmp_path / "notes", overwrite=True)
    assert (tmp_path / "notes" / "precious.txt").exists()


def test_nothing_half_written_is_left(models, tmp_path, monkeypatch):
    """The disk runs full on the way: one line, and no directory that looks finished."""

    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(MoshijaxError, match="No space left on device; free some space or choose another path"):
        artifact.build(*models, tmp_path / "artifact")
    assert list(tmp_path.iterdir()) == []


def test_overwriting_replaces_the_whole_directory(models, tmp_path):
    out = artifact.build(*models, tmp_path / "artifact", batches=(1, 2))
    artifact.build(*models, out, batches=(1,), overwrite=True)
    assert not (out / "step.cpu.b2.jaxexp").exists() and [path.name for path in tmp_path.iterdir()] == ["artifact"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"platforms": ("cpu", "rocm")}, "unknown platform 'rocm'; choose from cpu, cuda, tpu"),
        ({"platforms": ()}, "name at least one of each"),
        ({"batches": (0,)}, "batches > 0"),
        ({"weights_dtype": "int4"}, "weights_dtype='int4' must be one of float32, bfloat16, int8"),
        ({"cache_dtype": "int4"}, "cache_dtype='int4': must be one of computed, int8"),
    ],
)
def test_impossible_requests(models, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        artifact.build(*models, tmp_path / "artifact", **options)
    assert list(tmp_path.iterdir()) == []


def test_models_and_pieces_that_do_not_fit(models, tmp_path):
    codec_model, (lm_config, lm_params), pieces = models
    with pytest.raises(ConfigError, match="49 text pieces do not fit text_card=48"):
        artifact.build(codec_model, (lm_config, lm_params), [*pieces, "x"], tmp_path / "artifact")
    wider = dataclasses.replace(lm_config, text_card=64)
    with pytest.raises(ConfigError, match="parameters do not fit the model's config"):
        artifact.build(codec_model, (wider, lm_params), pieces, tmp_path / "artifact")


def test_sampling_defaults_and_limits(models, tmp_path):
    out = artifact.build(*models, tmp_path / "artifact", sampling={"temperature": 0.5, "top_k": 9}, top_k_limit=20)
    sampling = manifest.read(out)["sampling"]
    assert sampling["defaults"] == {
        "temperature": 0.5,
        "text_temperature": 0.7,
        "top_k": 9,
        "text_top_k": 20,
        "pad_bonus": 0.0,
    }
    assert sampling["limits"]["top_k"] == [0, 20]
    rows = runtime.Rows(runtime.load(out), 1, prompts=False)
    with pytest.raises(ConfigError, match="top_k=21 is outside what the artifact allows .0 to 20"):
        rows.open(runtime.CallOptions(sampling={"top_k": 21}))
    [one], _ = play.play(rows, [np.zeros(640 * 3, np.float32)])
    assert one.codes.shape == (7, 3)


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_the_full_size_models_export(platform):
    """Mimi and Moshi 7B in one program, traced without their weights; the state is what one call costs in memory."""
    full_codec, full_lm = codec.configs.MIMI, lm.configs.MOSHI_7B.with_dtype("bfloat16", "bfloat16")
    step = CallStep(full_codec, full_lm)
    inference = jax.eval_shape(lambda: codec.inference_layout(full_codec, codec.init(full_codec, jax.random.key(0))))
    weights = flatten({"codec": inference, "lm": lm.abstract(full_lm, stacked=False)})
    exported = artifact.export_program(
        Signature("step", 1), step, platform, weights
    )  # checks that every state array is donated
    assert exported.platforms == (platform,) and len(exported.serialize()) < 4e6
    state = jax.eval_shape(lambda: step.init_state(1))
    caches = [spec for name, spec in state.items() if name.startswith("lm/temporal/layers")]
    assert sum(spec.size for spec in caches) == 2 * 32 * 3000 * 4096 and {str(c.dtype) for c in caches} == {"bfloat16"}


def test_an_artifact_whose_config_is_of_another_version_is_not_rebuilt(artifact_dir, tmp_path):
    import shutil

    copy = shutil.copytree(artifact_dir, tmp_path / "copy")
    described = json.loads((copy / "artifact.json").read_text())
    described["config"]["codec"]["sample_rate"] = "8 kHz"
    (copy / "artifact.json").write_text(json.dumps(described))
    with pytest.raises(DataError, match="artifact.json: config.codec.sample_rate is '8 kHz': must be"):
        artifact.rebuild(copy, tmp_path / "again")
