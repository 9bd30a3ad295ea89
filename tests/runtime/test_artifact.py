"""What is refused before anything is compiled: wrong paths, machines, versions, and damaged files."""

from __future__ import annotations

import json
import shutil

import jax
import pytest

from moshijax import runtime
from moshijax.errors import ConfigError, DataError
from moshijax.runtime import manifest as manifests

FILES = ("weights.safetensors", "step.cpu.b1.jaxexp", "prefill.cpu.t4.jaxexp", "text_pieces.json")


@pytest.fixture
def copy(artifact_dir, tmp_path):
    return shutil.copytree(artifact_dir, tmp_path / "copy")


def edit(artifact, **changes):
    path = artifact / "artifact.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_no_such_path(tmp_path):
    with pytest.raises(ConfigError, match="no such path.*moshijax export"):
        runtime.load(tmp_path / "nothing")


def test_not_an_artifact(tmp_path):
    with pytest.raises(ConfigError, match="holds no artifact.json"):
        runtime.load(tmp_path)


def test_damaged_manifest(copy):
    (copy / "artifact.json").write_text('{"format": "moshij')
    with pytest.raises(DataError, match="damaged.*copy the artifact again"):
        runtime.load(copy)


def test_another_schema(copy):
    edit(copy, schema_version=2)
    with pytest.raises(DataError, match=rf"schema version 2.*reads 3.*moshijax export RUN {copy}-new"):
        runtime.load(copy)


def test_platform_it_was_not_made_for(artifact_dir):
    with pytest.raises(ConfigError, match=r"made for cpu, not for cuda.*moshijax export .* --platforms cuda"):
        runtime.load(artifact_dir, platform="cuda")


def test_batch_it_was_not_made_for(artifact_dir):
    with pytest.raises(ConfigError, match=r"batch sizes 1, 4, not for 3.*moshijax export .* --batch 3"):
        runtime.Rows(runtime.load(artifact_dir), 3)


@pytest.mark.parametrize("version", ["0.10.1", "0.13.0", "1.0"])
def test_jax_outside_the_tried_range(artifact_dir, monkeypatch, version):
    monkeypatch.setattr(jax, "__version__", version)
    with pytest.raises(
        ConfigError, match=rf"jax {version} .*0\.10\.2.*moshijax export {artifact_dir} {artifact_dir}-new"
    ):
        runtime.load(artifact_dir)


@pytest.mark.parametrize("version", ["0.10.2", "0.11.2", "0.12.0.1", "0.12.5.dev20261101"])
def test_jax_inside_the_tried_range(artifact_dir, version):
    manifests.check_jax(artifact_dir, manifests.read(artifact_dir), version)


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "step.cpu.b1.jaxexp", "prefill.cpu.t4.jaxexp", "text_pieces.json"]
)
def test_truncated_file(copy, name):
    path = copy / name
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2])
    with pytest.raises(DataError, match=f"{name} is incomplete: expected {size} bytes, got {size // 2}"):
        runtime.Rows(runtime.load(copy), 1)


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "step.cpu.b1.jaxexp", "prefill.cpu.t4.jaxexp", "text_pieces.json"]
)
def test_tampered_file(copy, name):
    path = copy / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=f"{name} differs from what was exported"):
        runtime.Rows(runtime.load(copy), 1)


def test_missing_file(copy):
    (copy / "step.cpu.b1.jaxexp").unlink()
    with pytest.raises(DataError, match=r"step.cpu.b1.jaxexp is missing"):
        runtime.Rows(runtime.load(copy), 1)


@pytest.mark.parametrize("content", [b"", b"no program", b"\xff" * 4096], ids=["empty", "text", "bytes"])
@pytest.mark.parametrize("name", ["step.cpu.b1.jaxexp", "prefill.cpu.t4.jaxexp", "weights.safetensors"])
def test_a_listed_file_of_another_content_is_refused_by_name(copy, name, content):
    """Its hash is right, as if it had been exported so."""
    (copy / name).write_bytes(content)
    files = json.loads((copy / "artifact.json").read_text())["files"]
    edit(copy, files={**files, name: manifests.file_record(copy / name)})
    with pytest.raises(DataError, match=f"{name} (is no exported program|cannot be read)"):
        runtime.Rows(runtime.load(copy), 1)


def test_nothing_is_deserialised_before_its_hash_is_right(copy, monkeypatch):
    def refuse(data):
        raise AssertionError("deserialised")

    monkeypatch.setattr(jax.export, "deserialize", refuse)
    data = bytearray((copy / "step.cpu.b1.jaxexp").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "step.cpu.b1.jaxexp").write_bytes(data)
    with pytest.raises(DataError, match="step.cpu.b1.jaxexp differs from what was exported"):
        runtime.load(copy).program("step")


@pytest.mark.parametrize("content", ["{", "{}", "[1]", "[" * 100_000])
def test_pieces_that_are_no_texts(copy, content):
    (copy / "text_pieces.json").write_text(content)
    files = json.loads((copy / "artifact.json").read_text())["files"]
    edit(copy, files={**files, "text_pieces.json": manifests.file_record(copy / "text_pieces.json")})
    with pytest.raises(DataError, match="text_pieces.json is not a list of texts"):
        runtime.load(copy)


def changed(described, path, value):
    """The content of `artifact.json` with another value at a path; without the entry where the value is `...`."""
    *parents, last = path.split(".")
    table = described
    for name in parents:
        table = table[name]
    table[last] = value
    if value is ...:
        del table[last]
    return described


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("batches", [0]),
        ("batches", []),
        ("batches", 1),
        ("jax.tried", None),
        ("jax.tried", ["0.10.2"]),
        ("audio.frame_size", "x"),
        ("audio.frame_size", 641),
        ("audio.sample_rate", -1),
        ("audio.sample_rate", 8000.5),
        ("audio.frame_rate", float("nan")),
        ("audio.frame_rate", True),
        ("sampling.defaults", {"temperature": "0.8"}),
        ("sampling.defaults", {"temperature": 0.8}),
        ("sampling.limits", {"temperature": [0]}),
        ("files", []),
        ("config.policy.type", "Karaoke"),
        ("config.policy.type", "Recognition"),
        ("config.lm.temporal", None),
        ("conditions", {"voice": {"dim": 0}}),
        ("layout.max_delay", 10**9),
        ("layout.streams", []),
        ("layout.streams", [{"kind": "text"}]),
        ("text.special.pad", ...),
        ("inputs.step", ...),
        ("weights.program_dtypes", {}),
        ("weights.program_dtypes", {"cpu": {"float32": "complex64"}}),
    ],
)
def test_a_manifest_with_a_value_of_another_kind_is_refused_by_name(copy, path, value):
    file = copy / "artifact.json"
    file.write_text(json.dumps(changed(json.loads(file.read_text()), path, value)))
    with pytest.raises(DataError, match=f"artifact.json: .*({path.replace('.', '|')}).*; copy the artifact again"):
        manifests.read(copy)


@pytest.mark.parametrize("content", ["[]", "[" * 100_000, '{"format": 1}', "\\ud800"])
def test_a_manifest_that_is_none(copy, content):
    (copy / "artifact.json").write_text(content)
    with pytest.raises(DataError, match="artifact.json (is damaged|does not describe)"):
        manifests.read(copy)


def test_a_step_with_another_interface_than_the_manifest_says(copy):
    described = json.loads((copy / "artifact.json").read_text())
    described["outputs"]["step"]["ready"]["shape"] = [None, 10**6]
    (copy / "artifact.json").write_text(json.dumps(described))
    with pytest.raises(DataError, match="step.cpu.b1.jaxexp has other outputs than artifact.json says"):
        runtime.load(copy).program("step")


def test_every_file_can_be_read_by_whoever_may_read_the_manifest(artifact_dir):
    modes = {path.name: path.stat().st_mode & 0o777 for path in artifact_dir.iterdir()}
    assert set(modes.values()) == {modes["artifact.json"]}, modes
