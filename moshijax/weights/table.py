"""The correspondence between published tensors and our parameters: one table per model, read and written lazily.

A table maps every published name to an `Entry`, which says where the tensor's pieces go in our tree. Reading takes one
leaf (and the leaves that share a published tensor with it) at a time, writing one published tensor at a time: neither
ever holds a second copy of the model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from moshijax.weights.tensors import Tensors

Target = tuple[str, int | None]  # path in our tree ("a/b/c"), and the slot of its leading axis if it fills only one
Location = tuple[str, tuple[int, ...]]  # leaf of a tree in either layout, and the index that a piece takes in it

_NUMBERED = re.compile(r"^(layers|steps)_(\d+)$")
#: Alignment of buffers that jax takes over without a copy.
_ALIGNMENT = 64


@dataclass(frozen=True)
class Entry:
    """One published tensor and its pieces in our tree.

    Attributes:
      shape: of the published tensor.
      targets: where the pieces lie.
      split: makes the pieces of the tensor, in the order of the targets.
      join: makes the tensor of the pieces.
    """

    shape: tuple[int, ...]
    targets: tuple[Target, ...]
    split: Callable[[np.ndarray], list[np.ndarray]]
    join: Callable[[list[np.ndarray]], np.ndarray]


Table = Mapping[str, Entry]


def plain(shape: tuple[int, ...], path: str, slot: int | None = None, ours: tuple[int, ...] | None = None) -> Entry:
    """Return the entry of a tensor that is one piece, perhaps with axes of length one taken out (`ours`)."""
    inner = shape if ours is None else ours
    return Entry(shape, ((path, slot),), lambda a: [a.reshape(inner)], lambda p: p[0].reshape(shape))


def locate(path: str, slot: int | None, tree: Mapping[str, Any]) -> Location:
    """Find where a target lies in a flat tree of any layout (`moshijax.nn.layout`)."""
    parts = [(part, _NUMBERED.match(part)) for part in path.split("/")]
    for kept in (("layers", "steps"), ("layers",), ("steps",), ()):
        stacked = [(part, match if match and match[1] not in kept else None) for part, match in parts]
        name = "/".join(match[1] if match else part for part, match in stacked)
        if name in tree:
            break
    numbers = [int(match[2]) for _, match in stacked if match]
    return name, (*numbers, *(() if slot is None else (slot,)))


def _groups(table: Table, tree: Mapping[str, Any]) -> Iterator[tuple[list[str], dict[str, list[Location]]]]:
    """Leaves that have to be filled together, and the places of the pieces of each published tensor that fills them."""
    places = {name: [locate(path, slot, tree) for path, slot in entry.targets] for name, entry in table.items()}
    fills: dict[str, list[str]] = {}
    for name, pieces in places.items():
        for leaf, _ in pieces:
            fills.setdefault(leaf, []).append(name)
    done: set[str] = set()
    for first in fills:
        if first in done:
            continue
        leaves, names, waiting = [], {}, [first]
        done.add(first)
        while waiting:
            leaf = waiting.pop()
            leaves.append(leaf)
            for name in fills[leaf]:
                names[name] = places[name]
                for other, _ in places[name]:
                    if other not in done:
                        done.add(other)
                        waiting.append(other)
        yield leaves, names


class _Buffers:
    """The memory of one leaf: a numpy array, or one for each part of it that this process holds."""

    def __init__(self, spec: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding | None):
        self.spec, self.sharding = spec, sharding
        self.parts: dict[tuple[tuple[int, int], ...], np.ndarray] = {}
        self.devices: dict[jax.Device, tuple[tuple[int, int], ...]] = {}
        if sharding is None:
            self.parts[tuple((0, size) for size in spec.shape)] = aligned(spec.shape, spec.dtype)
            return
        for device, slices in sharding.addressable_devices_indices_map(spec.shape).items():
            part = tuple(s.indices(size)[:2] for s, size in zip(slices, spec.shape, strict=True))
            self.devices[device] = part
            if part not in self.parts:
                self.parts[part] = aligned(tuple(stop - start for start, stop in part), spec.dtype)

    def put(self, index: tuple[int, ...], piece: np.ndarray) -> None:
        for part, buffer in self.parts.items():
            lead, rest = part[: len(index)], part[len(index) :]
            if all(start <= i < stop for i, (start, stop) in zip(index, lead, strict=True)):
                local = tuple(i - start for i, (start, _) in zip(index, lead, strict=True))
                buffer[local] = piece[tuple(slice(start, stop) for start, stop in rest)]

    def array(self) -> Any:
        if self.sharding is None:
            return next(iter(self.parts.values()))
        arrays = [jax.device_put(self.parts[part], device) for device, part in self.devices.items()]
        return jax.make_array_from_single_device_arrays(self.spec.shape, self.sharding, arrays)


def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Allocate an array that jax on a CPU can use where it lies."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


class AsParameters(Mapping):
    """Published tensors as our parameters: flat path -> array, each made when it is asked for.

    Attributes:
      shapes, dtypes: flat path -> shape, numpy dtype.
    """

    def __init__(
        self,
        table: Table,
        tensors: Tensors,
        abstract: Mapping[str, Any],
        shardings: Mapping[str, Any] | None = None,
    ):
        """`abstract`: our tree of shapes and dtypes, either layout. `shardings`: the like; without, numpy arrays."""
        self._table, self._tensors = table, tensors
        self._specs = flatten_dict(abstract, sep="/")
        self._shardings = None if shardings is None else flatten_dict(shardings, sep="/")
        self._groups = {leaf: group for group in _groups(table, self._specs) for leaf in group[0]}
        self._made: dict[str, Any] = {}
        self.shapes = {path: tuple(spec.shape) for path, spec in self._specs.items()}
        self.dtypes = {path: np.dtype(spec.dtype) for path, spec in self._specs.items()}

    def __getitem__(self, path: str) -> Any:
        if path not in self._made:
            paths, names = self._groups[path]
            buffers = {p: _Buffers(self._specs[p], self._shardings and self._shardings[p]) for p in paths}
            for name, places in names.items():
                for (leaf, index), piece in zip(places, self._table[name].split(self._tensors[name]), strict=True):
                    buffers[leaf].put(index, piece)
            self._made |= {leaf: buffers.pop(leaf).array() for leaf in paths}
        return self._made.pop(path)

    def __iter__(self) -> Iterator[str]:
        """Leaves that come from the same tensors follow each other."""
        return (path for paths in dict.fromkeys(tuple(group[0]) for group in self._groups.values()) for path in paths)

    def __len__(self) -> int:
        return len(self._specs)

    def tree(self) -> dict[str, Any]:
        """Return all parameters as a nested dict."""
        return unflatten_dict({path: self[path] for path in self}, sep="/")


def same(abstract: Mapping[str, Any]) -> dict[str, Entry]:
    """Return the table of a model whose file has our own names."""
    flat = flatten_dict(abstract, sep="/")
    return {path: plain(tuple(spec.shape), path) for path, spec in flat.items()}


class AsPublished(Mapping):
    """Our parameters as published tensors; each is made when it is asked for.

    Attributes:
      shapes, dtypes: published name -> shape, numpy dtype.
    """

    def __init__(self, table: Table, parameters: Tensors, dtypes: Mapping[str, str] | None = None):
        """Wrap parameters.

        Args:
          table: of the model.
          parameters: by their paths, in either layout.
          dtypes: published name -> dtype, where it is not that of the parameter.
        """
        self._table, self._parameters = table, parameters
        self._locations = {
            name: [locate(path, slot, parameters.shapes) for path, slot in entry.targets]
            for name, entry in table.items()
        }
        self.shapes = {name: entry.shape for name, entry in table.items()}
        types = parameters.dtypes
        found = {name: types[places[0][0]] for name, places in self._locations.items()}
        # A flag of ours is a number there.
        found = {name: np.dtype(np.float32) if dtype.kind == "b" else dtype for name, dtype in found.items()}
        self.dtypes = {name: np.dtype((dtypes or {}).get(name, dtype)) for name, dtype in found.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        pieces = [np.asarray(self._parameters[path][index]) for path, index in self._locations[name]]
        joined = np.asarray(self._table[name].join(pieces))
        return np.ascontiguousarray(joined.astype(self.dtypes[name], copy=False)).reshape(self.shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)
