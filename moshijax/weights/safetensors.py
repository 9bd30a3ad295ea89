"""Reading published weight files: safetensors, lazily and strictly.

`open_tensors` opens a file, or several with an index, and checks their whole structure before any tensor is read, so
that an interrupted download or a git-lfs pointer is named as such. `check_names_and_shapes` reports everything that
does not fit a model at once.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from moshijax.annotations import shown
from moshijax.config_json import from_json
from moshijax.errors import ConfigError, DataError
from moshijax.files import check_fetched, check_file_name, read_json

if TYPE_CHECKING:
    from collections.abc import Iterable

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(bool),
}
MAX_HEADER = 100_000_000
SHOWN = 12
#: What the names of tensors begin with that were saved from within a wrapper.
WRAPPERS = {"_orig_mod.": "torch.compile", "module.": "DistributedDataParallel", "base_model.model.": "PEFT"}


class TensorFile(Mapping):
    """A safetensors file as a mapping from name to numpy array; a tensor is read each time it is asked for, not kept.

    Attributes:
      path: the file.
      metadata: the file's string-to-string metadata.
      shapes: name -> shape, known without reading any tensor.
      dtypes: name -> numpy dtype.

    Raises:
      DataError: the file is missing, a directory, a git-lfs pointer, not safetensors, truncated, or longer than it
        says.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        header, start, size = self._read_header()
        metadata = header.pop("__metadata__", None)
        self.metadata: dict[str, str] = dict(metadata) if isinstance(metadata, dict) else {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, np.dtype] = {}
        self._offsets: dict[str, int] = {}
        spans = []
        for name, entry in header.items():
            try:
                dtype, shape, (begin, end) = DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
                usable = all(type(number) is int and 0 <= number < 2**63 for number in (*shape, begin, end))
            except (KeyError, TypeError, ValueError):
                usable = False
            if not usable or not isinstance(entry["shape"], list):
                raise DataError(
                    f"{path}: tensor {shown(name)} has an unusable entry {shown(entry)}; fetch the file again"
                )
            length = math.prod(shape) * dtype.itemsize
            if end - begin != length:
                raise DataError(
                    f"{path}: tensor {name!r} {entry['dtype']} {list(shape)} needs {length} bytes, the header gives it "
                    f"{end - begin}; fetch the file again"
                )
            spans.append((begin, end, name))
            self.shapes[name], self.dtypes[name], self._offsets[name] = shape, dtype, start + begin
        end = 0
        for begin, stop, name in sorted(spans):
            if begin != end:
                raise DataError(
                    f"{path}: tensor {name!r} begins at data byte {begin}, must begin at {end}; fetch it again"
                )
            end = stop
        expected = start + end
        if size < expected:
            raise DataError(
                f"{path}: incomplete, expected {expected} bytes, found {size}; finish or repeat the download"
            )
        if size > expected:
            raise DataError(
                f"{path}: {size - expected} bytes too many, expected {expected}, found {size}; fetch it again"
            )

    def _read_header(self) -> tuple[dict, int, int]:
        path = self.path
        if path.is_dir():
            raise DataError(f"{path} is a directory, a .safetensors file is needed; name the file inside it")
        try:
            check_fetched(path)
            with open(path, "rb") as file:
                size = path.stat().st_size
                if size < 8:
                    raise DataError(f"{path}: incomplete, expected at least 8 bytes, found {size}; repeat the download")
                (length,) = struct.unpack("<Q", file.read(8))
                if length > MAX_HEADER:
                    raise DataError(f"{path} is not a safetensors file (header of {length} bytes); check the path")
                if size < 8 + length:
                    raise DataError(
                        f"{path}: incomplete, expected at least {8 + length} bytes, found {size}; repeat the download"
                    )
                text = file.read(length)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from None
        try:
            header = json.loads(text)
        except (ValueError, RecursionError):
            header = None
        if not isinstance(header, dict):
            raise DataError(f"{path} is not a safetensors file (its header is not JSON); check the path")
        return header, 8 + length, size

    def __getitem__(self, name: str) -> np.ndarray:
        shape, dtype = self.shapes[name], self.dtypes[name]
        with open(self.path, "rb") as file:
            file.seek(self._offsets[name])
            return np.fromfile(file, dtype, math.prod(shape)).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


class ShardedFile(Mapping):
    """Several safetensors files with an index, as one mapping; the attributes are those of `TensorFile`.

    Raises:
      DataError: the index is not one, a file is missing or damaged, or does not hold what the index says.
    """

    def __init__(self, index: str | Path):
        self.path = Path(index)
        try:
            names = from_json(dict[str, str], read_json(self.path)["weight_map"])
            for file in names.values():
                check_file_name(file, "weight_map")
        except (KeyError, TypeError, ConfigError):
            raise DataError(f"{index} is not an index of safetensors files; fetch it again") from None
        files = {file: TensorFile(self.path.parent / Path(file).name) for file in sorted(set(names.values()))}
        problems = [f"{name} is not in {file}" for name, file in names.items() if name not in files[file]]
        problems += [f"{n} of {f} is not in the index" for f, held in files.items() for n in held if names.get(n) != f]
        if problems:
            raise DataError(f"{index}: {'; '.join(problems)}; fetch index and files of one model")
        self._files = {name: files[file] for name, file in names.items()}
        self.metadata = {key: value for file in files.values() for key, value in file.metadata.items()}
        self.shapes = {name: file.shapes[name] for name, file in self._files.items()}
        self.dtypes = {name: file.dtypes[name] for name, file in self._files.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._files[name][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


INDEX_SUFFIX = ".safetensors.index.json"


def open_tensors(path: str | Path) -> TensorFile | ShardedFile:
    """Open a weights file, or the index that stands for several (named, or in place of the file).

    Raises:
      DataError: as `TensorFile` and `ShardedFile`, or all names are those inside a wrapper.
    """
    path = Path(path)
    index = path.with_name(path.name.removesuffix(".safetensors") + INDEX_SUFFIX)
    if path.name.endswith(INDEX_SUFFIX):
        file = ShardedFile(path)
    else:
        file = ShardedFile(index) if not path.exists() and index.exists() else TensorFile(path)
    for prefix, wrapper in WRAPPERS.items():
        if len(file) and all(name.startswith(prefix) for name in file):
            raise DataError(
                f"{path}: all names begin with {prefix!r}, as {wrapper} calls them; save the module inside it, or take "
                "the prefix off the names"
            )
    return file


def check_names_and_shapes(
    path: str | Path,
    found: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    ignored: Iterable[str] = (),
) -> None:
    """Compare the tensors of a file with the ones a model needs.

    Args:
      path: for the message.
      found: name -> shape in the file.
      expected: name -> shape in the model.
      ignored: names that may be in the file and are not used.

    Raises:
      DataError: one line that lists the missing, the unexpected and the mis-shaped tensors together, with both
        shapes; of many the first `SHOWN`.
    """
    ignored = set(ignored)
    problems = [
        f"mis-shaped {name}: file {list(found[name])}, model {list(expected[name])}"
        for name in expected
        if name in found and tuple(found[name]) != tuple(expected[name])
    ]
    problems += [f"missing {name} {list(expected[name])}" for name in expected if name not in found]
    problems += [
        f"unexpected {name} {list(found[name])}" for name in found if name not in expected and name not in ignored
    ]
    if problems:
        more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise DataError(
            f"{path}: {len(problems)} tensors do not fit the model: {'; '.join(problems[:SHOWN])}{more}; "
            f"use the file and config of one model"
        )
