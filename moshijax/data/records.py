"""Shards of records: ArrayRecord files that appear only when complete, and the `dataset.json` that binds them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from moshijax import files, optional
from moshijax.data import buckets
from moshijax.errors import DataError, MoshijaxError

FORMAT_VERSION = 3
INDEX = "dataset.json"
TEACHER = "teacher.json"  # the index of features
FILTERED = "filtered.json"  # the index of documents that are fit to train on
EXCHANGES = "exchanges.json"  # the index of questions and answers
FINGERPRINTS = "fingerprints.json"
COMMANDS = {
    INDEX: "data prepare",
    TEACHER: "data teacher",
    FILTERED: "data text",
    EXCHANGES: "data exchanges",
    FINGERPRINTS: "data deduplicate",
}
BEGUN = "begun.json"  # while a job is unfinished, instead of its index
SOURCES = "sources.json"  # what every shard was made of


def shard_name(index: int, count: int) -> str:
    """Return the file name of shard `index` of `count`."""
    return f"shard-{index:05d}-of-{count:05d}.arrayrecord"


def pack(record: dict[str, Any]) -> bytes:
    """Serialise a record as msgpack, with numpy arrays as {"dtype", "shape", "data"} (little endian).

    Raises:
      TypeError: a value that cannot be stored.
    """

    def default(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            value = value.astype(value.dtype.newbyteorder("<"), copy=False)
            return {"dtype": value.dtype.str, "shape": list(value.shape), "data": value.tobytes()}
        if isinstance(value, np.generic):
            return value.item()
        raise TypeError(f"{type(value).__name__} cannot be stored in a record")

    return optional.load("msgpack").packb(record, default=default)


def unpack(data: bytes) -> dict[str, Any]:
    """Return the record that `pack` serialised."""

    def hook(value: dict) -> Any:
        if value.keys() == {"dtype", "shape", "data"}:
            return np.frombuffer(value["data"], value["dtype"]).reshape(value["shape"])
        return value

    return optional.load("msgpack").unpackb(data, object_hook=hook)


def write_shard(path: Path, records: Iterable[dict[str, Any]]) -> str:
    """Write records to one shard, which appears only when complete, and return the sha256 of all of them.

    Raises:
      MoshijaxError: the disk is full, or what was written cannot be read back, or not sent to its bucket.
    """
    writer_module = optional.load("array_record.python.array_record_module")
    count, state = 0, hashlib.sha256()
    with files.staged(path) as temporary:
        with _full_disk(path):
            writer = writer_module.ArrayRecordWriter(str(temporary), "group_size:1")
        try:
            for record in records:
                data = pack(record)
                with _full_disk(path):
                    writer.write(data)
                count += 1
                state.update(len(data).to_bytes(8, "little") + data)
        finally:
            with _full_disk(path):
                writer.close()
        _check_complete(temporary, count)
    return state.hexdigest()


@contextmanager
def _full_disk(path: Path) -> Iterator[None]:
    """The writer tells of failed writes by a RuntimeError with a long text."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).split(";")[0]
        raise MoshijaxError(
            f"cannot write {path} ({reason}): free some space and run the same command again"
        ) from error


def _check_complete(path: Path, count: int) -> None:
    """The writer reports no full disk: what was written is read back before it is given its name."""
    reader_module = optional.load("array_record.python.array_record_module")
    try:
        reader = reader_module.ArrayRecordReader(str(path))
        found = reader.num_records()
        if found:
            reader.read([found - 1])
        reader.close()
    except (RuntimeError, ValueError, IndexError, OSError) as error:
        raise MoshijaxError(f"{path} is incomplete after writing ({error}): is the disk full?") from error
    if found != count:
        raise MoshijaxError(f"{path} holds {found} of {count} records after writing: is the disk full?")


def read_index(folder: str | Path, name: str = INDEX) -> dict[str, Any]:
    """Read the `dataset.json` of a prepared data set, or another index.

    Raises:
      DataError: it is missing, unfinished, damaged or of another format.
    """
    folder = buckets.place(folder)
    path, command = folder / name, COMMANDS[name]
    if not path.exists():
        begun = [n for n in buckets.listed(folder) if n.endswith(".arrayrecord")] if folder.is_dir() else []
        if begun or (folder / BEGUN).exists():
            raise DataError(
                f"data set {folder} is unfinished ({len(begun)} shards, no {name}): run the same `{command}` again"
            )
        raise DataError(f"{folder} holds no {name}: make it with `moshijax {command}`")
    files.check_fetched(path)
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        version = index["format_version"]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error}): delete {folder} and run `{command}` again") from error
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path} has format version {version}, this code reads {FORMAT_VERSION}: delete {folder} and run "
            f"`{command}` again"
        )
    return index


class RecordSource(Sequence):
    """Random access to the records of a data set: `source[i]` is a dict. Shards are opened when they are first read.

    Raises:
      DataError: a shard that the index lists is missing, or shorter than the index says; or the set is in a bucket.
    """

    def __init__(self, folder: str | Path, index_name: str = INDEX):
        self.folder, self.name = buckets.place(folder), index_name
        if not buckets.is_here(self.folder):
            raise DataError(f"data set {folder} is in a bucket: copy it to this machine, or mount the bucket")
        self.index = read_index(folder, index_name)
        self.shards = [(self.folder / shard["file"], shard["records"]) for shard in self.index["shards"]]
        for path, _ in self.shards:
            if not path.exists():
                raise DataError(f"shard {path} is missing: copy it again, or run `{COMMANDS[index_name]}` again")
        self._firsts = list(accumulate((count for _, count in self.shards), initial=0))
        self._open = _Open()

    def __len__(self) -> int:
        return self._firsts[-1]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _open=_Open())

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect_right(self._firsts, index) - 1
        path, count = self.shards[number]
        try:
            data = self._open.read(path, count, index - self._firsts[number])
        except (RuntimeError, ValueError, IndexError, OSError) as error:
            if os.strerror(errno.EMFILE).lower() in str(error).lower():
                raise MoshijaxError(
                    f"{path} cannot be opened (too many open files): raise the limit with `ulimit -n 4096`"
                ) from error
            files.check_fetched(path)
            raise DataError(
                f"record {index} of {self.folder} cannot be read ({path.name}: {error}): copy it again"
            ) from error
        return unpack(data)


class _Open:
    """Readers of shards; the least recently used one is closed when there are too many, as open files are limited."""

    MOST = 256

    def __init__(self) -> None:
        self._readers: OrderedDict[Path, Any] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: Path, count: int, number: int) -> bytes:
        """Return record `number` of a shard that has to hold `count`."""
        with self._lock:
            reader = self._readers.pop(path, None)
            if reader is None:
                while len(self._readers) >= self.MOST:
                    self._readers.popitem(last=False)[1].close()
                module = optional.load("array_record.python.array_record_module")
                reader = module.ArrayRecordReader(str(path), "readahead_buffer_size:0,max_parallelism:0")
                if reader.num_records() != count:
                    found = reader.num_records()
                    reader.close()
                    raise ValueError(f"it holds {found} records, not {count}")
            self._readers[path] = reader
            return reader.read([number])[0]


def digest(*parts: Any) -> str:
    """Return the sha256 of a JSON form of values, the same for equal values in any process."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def tree_digest(tree: Any) -> str:
    """Return the sha256 of names, shapes, dtypes and bytes of a nested dict of arrays."""
    state = hashlib.sha256()

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key in sorted(value):
                add(f"{prefix}/{key}", value[key])
        elif isinstance(value, list | tuple):
            for number, part in enumerate(value):
                add(f"{prefix}/{number}", part)
        else:
            array = np.ascontiguousarray(np.asarray(value))
            state.update(f"{prefix} {array.dtype} {array.shape}".encode())
            state.update(array.view(np.uint8).reshape(-1).data if array.size else b"")

    add("", tree)
    return state.hexdigest()
