"""Tensors by name, and the simplest mappings that are such."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from flax.traverse_util import flatten_dict

from moshijax.errors import DataError

_BLOCK = 1 << 20
Shapes = Mapping[str, tuple[int, ...]]


class Tensors(Protocol):
    """Arrays by name, each made when it is asked for; names, shapes and dtypes are known before any is made.

    A whole model seldom fits into memory twice. Files (`safetensors.TensorFile`), the same tensors under other names
    (`names.Renamed`), as our parameters (`table.AsParameters`) and as published tensors (`table.AsPublished`) are all
    of this form, so that they can be chained and written one tensor at a time.

    Attributes:
      shapes: name -> shape.
      dtypes: name -> numpy dtype.
    """

    shapes: Shapes
    dtypes: Mapping[str, np.dtype]

    def __getitem__(self, name: str) -> np.ndarray: ...


class InMemory:
    """Arrays that are there already."""

    def __init__(self, arrays: Mapping[str, Any]):
        self._arrays = arrays
        self.shapes = {name: tuple(array.shape) for name, array in arrays.items()}
        self.dtypes = {name: np.dtype(array.dtype) for name, array in arrays.items()}

    def __getitem__(self, name: str) -> Any:
        return self._arrays[name]


class Finite(Mapping):
    """The tensors of a model, of which none that is asked for may hold NaN or infinity."""

    def __init__(self, tensors: Tensors, where: Path):
        self._tensors, self._where = tensors, where
        self.shapes, self.dtypes = tensors.shapes, tensors.dtypes

    def __getitem__(self, name: str) -> np.ndarray:
        """Return a tensor.

        Raises:
          DataError: it holds NaN or infinity.
        """
        value = self._tensors[name]
        flat = np.reshape(value, -1)
        # In blocks, so that there is no second array of the size of the tensor.
        if not all(np.isfinite(flat[start : start + _BLOCK]).all() for start in range(0, flat.size, _BLOCK)):
            raise DataError(
                f"{self._where}: {name} holds NaN or infinity; fetch it again, or use an earlier checkpoint"
            )
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


class ShapesOnly:
    """The shapes and dtypes of a tree of parameters; none of them can be asked for."""

    def __init__(self, tree: Mapping[str, Any]):
        flat = flatten_dict(tree, sep="/")
        self.shapes = {path: tuple(leaf.shape) for path, leaf in flat.items()}
        self.dtypes = {path: np.dtype(leaf.dtype) for path, leaf in flat.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        raise TypeError(f"{name}: only its shape and dtype are known")


class Combined:
    """The tensors of two sources, whose names are distinct."""

    def __init__(self, first: Tensors, second: Tensors):
        self._parts = first, second
        self.shapes = {**first.shapes, **second.shapes}
        self.dtypes = {**first.dtypes, **second.dtypes}

    def __getitem__(self, name: str) -> np.ndarray:
        first, second = self._parts
        return first[name] if name in first.shapes else second[name]
