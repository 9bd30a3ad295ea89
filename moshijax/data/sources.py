"""What the files were that something was made of, so that a job notices those that have changed since."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from moshijax.data import buckets

_AT_ONCE = 16
_BLOCK = 1 << 20

#: Where a part of a file begins and ends, in bytes; None: the whole file.
Span = tuple[int, int] | None

#: Size in bytes, time of the last change in ns, and sha256 of a file; None: there was none that could be read.
Seen = list[int | str] | None


#: Size in bytes and time of the last change in ns of a file; None: it is not there.
Stamp = list[int] | None


def look(path: Path, span: Span = None) -> Seen:
    """Return what a file is now, with the hash of all its bytes, or of those of `span`."""
    try:
        if not buckets.is_here(path):
            about = buckets.stamp(path)
            with buckets.opened(path) as file:
                return [*about, _sha256(file, *(span or (0, about[0])))]
        # Opened without waiting: a pipe has no writer.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                return None
            return [status.st_size, status.st_mtime_ns, _sha256(file, *(span or (0, status.st_size)))]
    except (OSError, ValueError):  # a name with NUL is a ValueError
        return None


def _sha256(file: IO[bytes], start: int, stop: int) -> str:
    state = hashlib.sha256()
    file.seek(start)
    while block := file.read(min(_BLOCK, stop - start)):
        state.update(block)
        start += len(block)
    return state.hexdigest()


def stamps(paths: Mapping[str, Path]) -> dict[str, Stamp]:
    """Return the stamps of files by name; no file is read."""

    def stamp(path: Path) -> Stamp:
        try:
            return buckets.stamp(path)
        except (OSError, ValueError):
            return None

    with ThreadPoolExecutor(_AT_ONCE) as pool:  # on a network most of the time is waiting
        return dict(zip(paths, pool.map(stamp, paths.values()), strict=True))


def is_same(path: Path, seen: Seen, span: Span = None) -> bool:
    """Say whether a file is what it was; one of another time, such as a copy, is if its bytes are the same.

    With a span, only its bytes and the size of the file count.
    """
    try:
        size, changed = buckets.stamp(path)
    except (OSError, ValueError):
        return seen is None
    if seen is None or (buckets.is_here(path) and not os.access(path, os.R_OK)):
        return look(path, span) == seen
    if size != seen[0]:
        return False
    if changed == seen[1]:
        return True
    found = look(path, span)
    return found is not None and found[2] == seen[2]


def changed(files: Sequence[tuple[Path, Seen, Span]]) -> list[Path]:
    """Return those files that are not what they were, each given with what it was; see `is_same`."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        same = pool.map(lambda known: is_same(*known), files)
        return [path for (path, *_), kept in zip(files, same, strict=True) if not kept]


def listed(names: Iterable[str], most: int = 5) -> str:
    """Return names for a message: how many they are, and the first."""
    names = list(names)
    more = ", ..." if len(names) > most else ""
    return f"{len(names)} ({', '.join(names[:most])}{more})"
