"""Tensors under other names: groups that say the same in two vocabularies, and a view of the one as the other."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moshijax.errors import DataError
from moshijax.weights.tensors import Shapes, Tensors

Arrays = list[np.ndarray]
#: Groups whose other tensors are kept until they are asked for too.
_KEPT = 4


def _same(arrays: Arrays) -> Arrays:
    return arrays


@dataclass(frozen=True)
class Group:
    """Tensors of another vocabulary that together hold what some published tensors hold.

    Attributes:
      theirs: names and shapes in the other vocabulary.
      ours: published names and shapes.
      read: makes ours of theirs, in the order of the names.
      write: makes theirs of ours, in the order of the names.
    """

    theirs: Shapes
    ours: Shapes
    read: Callable[[Arrays], Arrays] = _same
    write: Callable[[Arrays], Arrays] = _same


def renamed(theirs: str, ours: str, shape: tuple[int, ...], as_shape: tuple[int, ...] | None = None) -> Group:
    """Return the group of one tensor, perhaps without the axes of length one (`as_shape`)."""
    if as_shape is None or as_shape == shape:
        return Group({theirs: shape}, {ours: shape})
    return Group({theirs: as_shape}, {ours: shape}, lambda a: [a[0].reshape(shape)], lambda a: [a[0].reshape(as_shape)])


def stacked(theirs: str, ours: Sequence[str], shape: tuple[int, ...]) -> Group:
    """Return the group of several tensors of one shape that are one with a leading axis there."""
    return Group(
        {theirs: (len(ours), *shape)}, dict.fromkeys(ours, shape), lambda a: list(a[0]), lambda a: [np.stack(a)]
    )


def concatenated(theirs: Sequence[str], ours: str, shape: tuple[int, ...]) -> Group:
    """Return the group of one tensor whose rows are several tensors there."""
    parts = len(theirs)
    part = (shape[0] // parts, *shape[1:])
    return Group(
        dict.fromkeys(theirs, part), {ours: shape}, lambda a: [np.concatenate(a)], lambda a: np.split(a[0], parts)
    )


def copied(theirs: Sequence[str], ours: str, shape: tuple[int, ...], as_shape: tuple[int, ...] | None = None) -> Group:
    """Return the group of one tensor that several repeat there.

    Reading them raises `DataError` where they differ.
    """
    theirs = list(theirs)
    inner = shape if as_shape is None else as_shape

    def read(arrays: Arrays) -> Arrays:
        for name, other in zip(theirs, arrays, strict=True):
            if not np.array_equal(arrays[0], other):
                raise DataError(f"{name} differs from {theirs[0]}, of which it must be a copy; this model has only one")
        return [arrays[0].reshape(shape)]

    return Group(dict.fromkeys(theirs, inner), {ours: shape}, read, lambda a: [a[0].reshape(inner)] * len(theirs))


class Renamed(Mapping):
    """Tensors under the names of the other side of their groups; each is made when it is asked for.

    Attributes:
      shapes, dtypes: name -> shape, numpy dtype.
    """

    def __init__(
        self, tensors: Tensors, groups: Sequence[Group], reading: bool, dtypes: Mapping[str, str] | None = None
    ):
        """`reading`: from theirs to ours. `dtypes`: of results, where it is not that of what they are made of."""
        self._tensors = tensors
        self._groups: dict[str, tuple[Shapes, Shapes, Callable]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, np.dtype] = {}
        for group in groups:
            sides = (group.theirs, group.ours, group.read) if reading else (group.ours, group.theirs, group.write)
            for name, shape in sides[1].items():
                self._groups[name] = sides
                self.shapes[name] = tuple(shape)
                self.dtypes[name] = np.dtype((dtypes or {}).get(name) or _common(tensors, sides[0]))
        self._made: OrderedDict[str, dict[str, np.ndarray]] = OrderedDict()

    def __getitem__(self, name: str) -> np.ndarray:
        sources, results, convert = self._groups[name]
        key = next(iter(results))
        if name not in self._made.get(key, {}):
            made = convert([self._tensors[source] for source in sources])
            self._made[key] = dict(zip(results, made, strict=True))
        found = self._made[key].pop(name)
        if not self._made[key]:
            del self._made[key]
        elif len(self._made) > _KEPT:
            self._made.popitem(last=False)
        return found.astype(self.dtypes[name], copy=False)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def _common(tensors: Tensors, names: Shapes) -> np.dtype:
    """The type of tensors; float32 where they differ."""
    found = {tensors.dtypes[name] for name in names}
    return found.pop() if len(found) == 1 else np.dtype(np.float32)


def theirs(groups: Sequence[Group]) -> Shapes:
    """Return all names and shapes of the other vocabulary."""
    return {name: shape for group in groups for name, shape in group.theirs.items()}
