"""The artifact on disk: `artifact.json`, what it says about the other files, and the checks that they agree with it.

The builder and the runtime import it: only the standard library, `moshijax.errors` and the schema here.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from moshijax.errors import ConfigError, DataError
from moshijax.runtime import schema

FORMAT = "moshijax-artifact"
SCHEMA_VERSION = 3
MANIFEST = "artifact.json"
WEIGHTS = "weights.safetensors"
TEXT_PIECES = "text_pieces.json"
CONDITIONS = "conditions.safetensors"  # of models with conditioners
TOKENIZER = "tokenizer.model"  # where the artifact can be given text

# The jax versions that programs of this schema were run on: from the first, before the second.
TRIED_JAX = ("0.10.2", "0.13")

#: The policy of artifacts that answer questions one by one; all others take calls.
ANSWER = schema.ANSWER

PLATFORMS = ("cpu", "cuda", "tpu")


def program_file(program: str, platform: str, batch: int = 1, length: int | None = None) -> str:
    """Return the file name of one exported program: `step.cpu.b16.jaxexp`, or `prefill.cpu.t64.jaxexp` of one row."""
    return f"{program}.{platform}.{f'b{batch}' if length is None else f't{length}'}.jaxexp"


def file_record(path: Path) -> dict[str, Any]:
    """Return size and sha256 of one file, as `artifact.json` lists it."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def read(artifact: str | Path) -> dict[str, Any]:
    """Read `artifact.json` of the directory `artifact`.

    Raises:
      ConfigError: the path is not an artifact directory.
      DataError: `artifact.json` is damaged or of another schema version, or a value is not of the schema.
    """
    artifact = Path(artifact)
    path = artifact / MANIFEST
    if not artifact.exists():
        raise ConfigError(f"no artifact at {artifact}: no such path; `moshijax export SRC ARTIFACT` writes one")
    if not path.is_file():
        raise ConfigError(f"{artifact} is not an artifact: it holds no {MANIFEST}; `moshijax export` writes one")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged ({error}); copy the artifact again or export it again") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(f"{path} does not describe a {FORMAT}; give the directory that `moshijax export` wrote")
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise DataError(
            f"{path} has schema version {manifest.get('schema_version')!r}, this moshijax reads {SCHEMA_VERSION}; "
            f"export again from the run or the weights it was built from: moshijax export RUN {artifact}-new"
        )
    for problem in schema.problems(manifest):
        raise DataError(f"{path}: {problem}; copy the artifact again or export it again")
    return manifest


def read_pieces(artifact: Path, manifest: dict[str, Any], digest: bool = True) -> list[str]:
    """Return the text of every token id.

    Raises:
      DataError: the file is missing, incomplete or changed, or holds something else.
    """
    path = check_file(artifact, manifest, TEXT_PIECES, digest)
    try:
        pieces = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        pieces = None
    if not isinstance(pieces, list) or not all(isinstance(piece, str) for piece in pieces):
        raise DataError(f"{path} is not a list of texts; copy the artifact again or export it again")
    return pieces


def check_file(artifact: Path, manifest: dict[str, Any], name: str, digest: bool = True) -> Path:
    """Return the path of a listed file once its size and, with `digest`, its sha256 are found right.

    Raises:
      DataError: the file is missing, incomplete or changed.
    """
    path = artifact / name
    expected = manifest["files"].get(name)
    if expected is None:
        raise DataError(f"{name} is not listed in {artifact / MANIFEST}; export the artifact again")
    if not path.is_file():
        raise DataError(f"{path} is missing; copy the artifact again, all {len(manifest['files']) + 1} files of it")
    size = path.stat().st_size
    if size < expected["bytes"]:
        raise DataError(
            f"{path} is incomplete: expected {expected['bytes']} bytes, got {size}; copy the artifact again"
        )
    if size != expected["bytes"] or (digest and file_record(path)["sha256"] != expected["sha256"]):
        raise DataError(
            f"{path} differs from what was exported ({expected['bytes']} bytes, sha256 {expected['sha256'][:12]}... in "
            f"{MANIFEST}); copy the artifact again or export it again"
        )
    return path


def version_tuple(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: '0.10.2' -> (0, 10, 2); pre-release suffixes are dropped."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def check_jax(artifact: Path, manifest: dict[str, Any], version: str) -> None:
    """Refuse a jax outside the range the artifact was tried on, and say how to rebuild it.

    Raises:
      ConfigError: the version is outside the range.
    """
    first, before = manifest["jax"]["tried"]
    if not version_tuple(first) <= version_tuple(version) < version_tuple(before):
        raise ConfigError(
            f"jax {version} is outside the range {artifact} was tried on (>= {first}, < {before}); rebuild it from "
            f"itself with a moshijax for this jax: moshijax export {artifact} {artifact}-new"
        )
