"""Writing safetensors files tensor by tensor, in one file or in several with an index."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from moshijax import files
from moshijax.errors import MoshijaxError
from moshijax.weights.safetensors import DTYPES, INDEX_SUFFIX
from moshijax.weights.tensors import Tensors

NAMES = {dtype: name for name, dtype in DTYPES.items()}
Progress = Callable[[str], None]


def _size(tensors: Tensors, name: str) -> int:
    return math.prod(tensors.shapes[name]) * tensors.dtypes[name].itemsize


def header_of(tensors: Tensors, names: list[str], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the first bytes of a file of these tensors, in this order."""
    header: dict = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        begin, end = end, end + _size(tensors, name)
        header[name] = {
            "dtype": NAMES[tensors.dtypes[name]],
            "shape": list(tensors.shapes[name]),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def order(tensors: Tensors) -> list[str]:
    """Return the names in the order of the safetensors library: wide types first, then by name."""
    return sorted(tensors.shapes, key=lambda name: (-tensors.dtypes[name].itemsize, NAMES[tensors.dtypes[name]], name))


def file_size(tensors: Tensors, metadata: Mapping[str, str] | None = None) -> int:
    """Return how many bytes `write` makes of all tensors in one file; nothing is computed."""
    names = order(tensors)
    return len(header_of(tensors, names, metadata)) + sum(_size(tensors, name) for name in names)


def write(
    path: Path,
    tensors: Tensors,
    max_bytes: int | None = None,
    metadata: Mapping[str, str] | None = None,
    progress: Progress = lambda name: None,
) -> list[Path]:
    """Write all tensors, one at a time.

    Args:
      path: ends in `.safetensors`. With more than `max_bytes` of tensors, files `STEM-00001-of-0000N.safetensors`
        and their index are written in its place.
      tensors: what to write.
      max_bytes: of tensors in one file; None: no limit.
      metadata: of every file's header.
      progress: called with every name before it is written.

    Returns:
      The files, the index last. Each appears only when it is complete.

    Raises:
      MoshijaxError: a tensor is not what its shape and dtype say (a defect), or the disk is full.
    """
    shards: list[list[str]] = [[]]
    held = 0
    for name in order(tensors):
        size = _size(tensors, name)
        if shards[-1] and max_bytes is not None and held + size > max_bytes:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    if len(shards) == 1:
        _write_one(path, tensors, shards[0], metadata, progress)
        return [path]
    stem = path.name.removesuffix(".safetensors")
    parts = [path.with_name(f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors") for i in range(len(shards))]
    for part, names in zip(parts, shards, strict=True):
        _write_one(part, tensors, names, metadata, progress)
    total = sum(_size(tensors, name) for name in tensors.shapes)
    weight_map = {name: part.name for part, names in zip(parts, shards, strict=True) for name in names}
    index = path.with_name(stem + INDEX_SUFFIX)
    files.write_json(index, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})
    return [*parts, index]


def _write_one(
    path: Path, tensors: Tensors, names: list[str], metadata: Mapping[str, str] | None, progress: Progress
) -> None:
    with files.staged(path) as partial, open(partial, "wb") as file:
        file.write(header_of(tensors, names, metadata))
        for name in names:
            progress(name)
            value = np.asarray(tensors[name], order="C")
            if value.dtype != tensors.dtypes[name] or value.shape != tuple(tensors.shapes[name]):
                raise MoshijaxError(
                    f"{name} came out as {value.dtype} {list(value.shape)}, announced were {tensors.dtypes[name]} "
                    f"{list(tensors.shapes[name])}; report this"
                )
            file.write(value.reshape(-1).view(np.uint8).data)
