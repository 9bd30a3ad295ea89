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
