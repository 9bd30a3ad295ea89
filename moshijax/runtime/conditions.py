"""Values of conditions as people give them, and the arrays that a call begins with.

The builder and the runtime import it: no model code here. `table` is the `conditions` section of `artifact.json`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moshijax.errors import ConfigError, DataError
from moshijax.runtime import manifest

Table = Mapping[str, Mapping[str, Any]]
Arrays = dict[str, np.ndarray]


def arrays(table: Table, name: str, value: Any) -> Arrays:
    """Return the arrays of one condition, without batch axis: {name: ...} and for vectors {name/mask: ...}.

    Args:
      table: the conditions of the artifact.
      name: which of them.
      value: of an attribute its name, its index or None for absent; of vectors `[S, d]`, a pair of them with a mask
        `[S]`, or None. Attributes whose values are not listed are hashed.

    Raises:
      ConfigError: an unknown condition or value, or vectors of another shape.
      DataError: vectors that are not finite.
    """
    if name not in table:
        raise ConfigError(f"unknown condition {name!r}: the model has {', '.join(table) or 'none'}")
    entry = table[name]
    if "bins" in entry:
        return {name: np.array(_index(name, entry, value), np.int32)}
    length, dim = entry["length"], entry["dim"]
    out, mask = np.zeros((length, dim), np.float32), np.zeros((length,), bool)
    if value is not None:
        given, present = vectors(value)
        if given.ndim != 2 or given.shape[1] != dim or present.shape != given.shape[:1]:
            raise ConfigError(
                f"condition {name} has shape {list(given.shape)}: it must be [S, {dim}] with S <= {length}"
            )
        if len(given) > length:
            raise ConfigError(f"condition {name} has {len(given)} positions: the artifact takes at most {length}")
        if not np.isfinite(given).all():
            raise DataError(f"condition {name} holds NaN or Inf; create it again")
        out[: len(given)], mask[: len(given)] = given, present
    return {name: out, f"{name}/mask": mask}


def all_arrays(table: Table, values: Mapping[str, Any]) -> Arrays:
    """Return the arrays of every condition of the table; those without a value are absent."""
    for name in values:
        arrays(table, name, None)  # an unknown name
    return {key: array for name in table for key, array in arrays(table, name, values.get(name)).items()}


def vectors(value: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors `[S, d]` and which of them are present, `[S]`."""
    if isinstance(value, tuple):
        return np.asarray(value[0], np.float32), np.asarray(value[1], bool)
    value = np.asarray(value, np.float32)
    return value, np.ones(value.shape[:1], bool)


def _index(name: str, entry: Mapping[str, Any], value: Any) -> int:
    if value is None:
        return -1
    if isinstance(value, int | np.integer):
        if not -1 <= value < entry["bins"]:
            raise ConfigError(f"condition {name}={value}: an index must be -1 (absent) to {entry['bins'] - 1}")
        return int(value)
    if entry["values"] is None:
        return int(hashlib.sha256(value.encode("utf-8")).hexdigest(), 16) % entry["bins"]
    if value not in entry["values"]:
        raise ConfigError(f"condition {name}={value!r}: must be one of {', '.join(entry['values'])}, or omitted")
    return entry["values"].index(value)


def read_vectors(name: str, paths: Sequence[str | Path]) -> np.ndarray:
    """Read vectors `[S, d]` from one or more files, one after the other.

    A `.npy` file holds `[S, d]`. A `.safetensors` file holds the tensor `name` as `[1, d, S]`, the form of published
    voices, or `[S, d]`.

    Raises:
      ConfigError: no such file, or another kind.
      DataError: not readable, or of another shape.
    """
    parts: list[np.ndarray] = []
    for path in map(Path, paths):
        if not path.is_file():
            raise ConfigError(f"condition {name}: no file {path}; give a .safetensors or .npy file")
        if path.suffix == ".npy":
            try:
                value = np.load(path)
            except (OSError, ValueError, EOFError) as error:
                raise DataError(f"{path} cannot be read ({error}); fetch it again") from None
        elif path.suffix == ".safetensors":
            from safetensors import SafetensorError
            from safetensors.numpy import load_file

            try:
                tensors = load_file(path)
            except SafetensorError as error:
                raise DataError(f"{path} cannot be read ({error}); fetch it again") from None
            if name not in tensors:
                raise DataError(f"{path} holds {', '.join(tensors)}: a tensor named {name} is needed")
            value = tensors[name]
        else:
            raise ConfigError(f"condition {name}: {path} must be a .safetensors or .npy file")
        if value.ndim == 3 and value.shape[0] == 1:
            value = value[0].T
        if value.ndim != 2 or (parts and value.shape[1] != parts[0].shape[1]):
            raise DataError(f"{path} holds {name} of shape {list(value.shape)}: it must be [1, d, S], or [S, d]")
        parts.append(value.astype(np.float32))
    return np.concatenate(parts)


def parse(table: Table, assignments: Sequence[str]) -> dict[str, Any]:
    """Read values of `NAME=VALUE` arguments: an attribute's value, or files of vectors with commas between them.

    Raises:
      ConfigError: no `=`, an unknown name, or as `read_vectors`.
      DataError: as `read_vectors`.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, separator, value = assignment.partition("=")
        if not separator or not value:
            raise ConfigError(f"condition {assignment!r} must be NAME=VALUE; known: {', '.join(table) or 'none'}")
        if name not in table:
            raise ConfigError(f"unknown condition {name!r}: the model has {', '.join(table) or 'none'}")
        values[name] = value if "bins" in table[name] else read_vectors(name, value.split(","))
    return values


def load_defaults(artifact: Path, description: Mapping[str, Any], verify: bool = True) -> Arrays:
    """Return the default arrays of an artifact, {condition/NAME..., null/NAME...}.

    Raises:
      DataError: their file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = manifest.check_file(artifact, description, manifest.CONDITIONS, digest=verify)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise DataError(f"{path} cannot be read ({error}); copy the artifact again or export it again") from None


def values_of(table: Table, defaults: Arrays, kind: str) -> dict[str, Any]:
    """Return the artifact's defaults as values: the inverse of `arrays`."""
    return {
        name: int(defaults[f"{kind}/{name}"])
        if "bins" in entry
        else (defaults[f"{kind}/{name}"], defaults[f"{kind}/{name}/mask"])
        for name, entry in table.items()
    }
