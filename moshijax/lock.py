"""One process at a time in a folder that is being filled, or at a path that is being replaced."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from moshijax import files
from moshijax.errors import MoshijaxError

NAME = ".lock"
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Be the only process that fills a folder, which exists, until the block ends.

    Raises:
      MoshijaxError: another process does, which is named with its host; or the folder cannot be written.
    """
    with _held(folder / NAME, folder):
        yield


@contextlib.contextmanager
def beside(path: Path) -> Iterator[None]:
    """Be the only process that makes a file or folder which appears at once (`moshijax.files`), until the block ends.

    The folder that it appears in is created if need be.

    Raises:
      MoshijaxError: as `inside`.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.cannot_write(path, error) from error
    with _held(path.with_name(f".{path.name}{NAME}"), path):
        yield


@contextlib.contextmanager
def _held(lock: Path, target: Path) -> Iterator[None]:
    while True:
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise files.cannot_write(lock, error) from error
        try:
            if not _take(descriptor, lock, target):
                continue
            try:
                yield
            finally:
                # Removed before it is released: a process that has opened it meanwhile finds that it is gone.
                with contextlib.suppress(OSError):
                    lock.unlink(missing_ok=True)
            return
        finally:
            os.close(descriptor)


def _take(descriptor: int, lock: Path, target: Path) -> bool:
    """Make an open lock file ours; False if another process has removed it in the meantime.

    The system releases the lock of a process that dies, so that what it left behind on this host is taken over. Not
    every file system passes locks on to other hosts: a file that names another host counts as held.
    """
    here = socket.gethostname()
    try:
        held = _held_by_another(descriptor)
        host, pid = _owner(descriptor)
        if not held and not _is_still_there(lock, descriptor):
            return False
        if held or host not in (None, here):
            whose = "another process" if host is None else f"process {pid} on {host}"
            ended = f"; if that process has ended, delete {lock}" if host not in (None, here) else ""
            raise MoshijaxError(
                f"{target} is being written by {whose}: wait until it ends, or choose another path{ended}"
            )
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"host": here, "pid": os.getpid()}).encode(), 0)
    except OSError as error:
        raise files.cannot_write(lock, error) from error
    return True


def _held_by_another(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        # On a file system without locks, only processes on other hosts are noticed.
        if error.errno not in _NO_LOCKS:
            raise
    return False


def _owner(descriptor: int) -> tuple[str | None, int | None]:
    """Return host and process number that a lock file names; None where it was not written to the end."""
    try:
        content = json.loads(os.pread(descriptor, 4096, 0))
        return str(content["host"]), int(content["pid"])
    except (ValueError, KeyError, TypeError):
        return None, None


def _is_still_there(lock: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(lock), os.fstat(descriptor))
    except FileNotFoundError:
        return False
