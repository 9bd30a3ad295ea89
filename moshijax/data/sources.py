"""What the files were that something was made of, so that a job notices those that have changed since."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_AT_ONCE = 16

#: Size in bytes, time of the last change in ns, and sha256 of a file; None: there was none that could be read.
Seen = list[int | str] | None


#: Size in bytes and time of the last change in ns of a file; None: it is not there.
Stamp = list[int] | None


def look(path: Path) -> Seen:
    """Return what a file is now."""
    try:
        # Opened without waiting: a pipe has no writer.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                return None
            return [status.st_size, status.st_mtime_ns, hashlib.file_digest(file, "sha256").hexdigest()]
    except (OSError, ValueError):  # a name with NUL is a ValueError
        return None


def stamps(paths: Mapping[str, Path]) -> dict[str, Stamp]:
    """Return the stamps of files by name; no file is read."""

    def stamp(path: Path) -> Stamp:
        try:
            status = path.stat()
        except (OSError, ValueError):
            return None
        return [status.st_size, status.st_mtime_ns]

    with ThreadPoolExecutor(_AT_ONCE) as pool:  # on a network most of the time is waiting
        return dict(zip(paths, pool.map(stamp, paths.values()), strict=True))


def is_same(path: Path, seen: Seen) -> bool:
    """Say whether a file is what it was; one of another time, such as a copy, is if its bytes are the same."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return seen is None
    if seen is None or not os.access(path, os.R_OK):
        return look(path) == seen
    if status.st_size != seen[0]:
        return False
    if status.st_mtime_ns == seen[1]:
        return True
    found = look(path)
    return found is not None and found[2] == seen[2]


def listed(names: Iterable[str], most: int = 5) -> str:
    """Return names for a message: how many they are, and the first."""
    names = list(names)
    more = ", ..." if len(names) > most else ""
    return f"{len(names)} ({', '.join(names[:most])}{more})"
