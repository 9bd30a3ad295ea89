"""Write files and directories that appear complete or not at all, and say in one way that a disk is full."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moshijax.annotations import shown
from moshijax.errors import ConfigError, DataError, MoshijaxError

# No space left, quota exceeded, file size limit.
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write(path: Path, content: str | bytes) -> None:
    """Write a file that is either the old one or complete, also after a power failure.

    Raises:
      MoshijaxError: it cannot be written.
    """
    with staged(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, indented, as `write` does; what UTF-8 cannot hold (half a character) becomes an escape."""
    write(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
      DataError: it cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}); fetch or write it again") from None


def check_file_name(name: str | None, where: str) -> None:
    """Refuse the name of a file in a config that no file can have; `where` names the place.

    Raises:
      ConfigError: it is empty, longer than 255 bytes, or has a NUL in it.
    """
    if name is not None and (not 0 < len(Path(name).name.encode(errors="replace")) <= 255 or "\0" in name):
        raise ConfigError(f"{where} is {shown(name)}: must be the name of a file, of 255 bytes at most")


@contextlib.contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Yield a hidden path beside `path` to write a file to; when the block ends well, it is synced and renamed.

    Raises:
      MoshijaxError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with _explained(path, partial):
            yield partial
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def staged_directory(path: Path) -> Iterator[Path]:
    """Yield an empty hidden directory beside `path`, which takes its place when the block ends well.

    Its files are not synced: what a power failure damages is for their reader to find.

    Raises:
      MoshijaxError: it cannot be written.
    """
    partial, retired = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.old")
    try:
        with _explained(path, partial):
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            yield partial
            if not path.exists():
                os.rename(partial, path)
                return
            shutil.rmtree(retired, ignore_errors=True)
            os.rename(path, retired)
            try:
                os.rename(partial, path)
            except OSError:
                os.rename(retired, path)
                raise
            shutil.rmtree(retired, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _explained(path: Path, partial: Path) -> Iterator[None]:
    """Raise the system's error about `path` with its remedy; an error about another file passes."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE and isinstance(error.filename, str):
            named = Path(error.filename)
            if named != path and named not in partial.parents and partial not in (named, *named.parents):
                raise
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> MoshijaxError:
    """Return the error that says why `path` cannot be written, and what to do."""
    return MoshijaxError(f"cannot write {path}: {error.strerror}; free some space or choose another path")


def is_out_of_space(error: BaseException) -> bool:
    """Say whether a disk is full, also where a library has put the system's message into an error of its own."""
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return True
    return any(os.strerror(number).lower() in str(error).lower() for number in NO_SPACE)
