"""Paths in buckets, such as gs://bucket/calls: named like files, and fetched for as long as a job works on them.

`place` makes a path of a name, a `pathlib.Path` here or an `etils.epath.Path` there; both have the methods that jobs
use. Decoders need files: `Fetched` copies those of one item at a time, so that the disk holds no more than these.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any, Self

from moshijax.errors import MoshijaxError

#: What an address begins with, and the package that reads what is there (`fsspec` with one of its drivers).
DRIVERS = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs"}

_REMEDY = "check the name, the network and the credentials"


def place(name: str | os.PathLike[str]) -> Path:
    """Return the path of a file or folder, here or in a bucket.

    Raises:
      MoshijaxError: the package that reads such a bucket is not installed.
    """
    scheme, colon, _ = os.fspath(name).partition("://")
    if not colon or scheme not in DRIVERS:
        return name if isinstance(name, Path) else Path(name)
    from etils import epath
    from fsspec import get_filesystem_class

    try:
        get_filesystem_class({"gs": "gcs"}.get(scheme, scheme))
    except ImportError:
        package = DRIVERS[scheme]
        raise MoshijaxError(f"{name} is in a bucket, which {package} reads: pip install {package}") from None
    return epath.Path(name)


def is_here(path: Path) -> bool:
    """Return whether a path is one of this machine's file system."""
    return isinstance(path, Path)


def beside(folder: Path, name: str) -> Path:
    """Return the path that a file in `folder` means by a name: relative to it, absolute, or in a bucket."""
    found = folder / name if "://" not in name else place(name)
    return found if "://" in os.fspath(found) else Path(found)


def opened(path: Path) -> IO[bytes]:
    """Open a file to be read, here or in a bucket.

    Raises:
      OSError: it is not there, or cannot be read.
    """
    return path.open("rb")


def stamp(path: Path) -> list[int]:
    """Return size in bytes and time of the last change in ns of a file, here or in a bucket.

    Raises:
      OSError: it is not there, or cannot be asked for.
      ValueError: the system can have no such file.
    """
    status: Any = path.stat()
    if is_here(path):
        return [status.st_size, status.st_mtime_ns]
    return [status.length, status.mtime * 1_000_000_000]


def matching(pattern: str) -> list[Path]:
    """Return the files in a bucket that a pattern fits, such as gs://bucket/books/**/*.txt, by name."""
    from fsspec.core import url_to_fs

    driver, inside = url_to_fs(pattern)
    scheme = pattern.partition("://")[0]
    names = [name for name, about in driver.glob(inside, detail=True).items() if about["type"] == "file"]
    return sorted(place(f"{scheme}://{name}") for name in names)


def listed(folder: Path) -> list[str]:
    """Return the names in a folder, here or in a bucket, where a folder without files is not there at all."""
    try:
        return sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        return []


class Fetched:
    """Copies of files in buckets, those of one item at a time; a context, at whose end nothing is left of them.

    `fetched(files)` returns where each file is by then: those here stay where they are. Messages that pass through
    `named`, and errors that leave the context, name files in buckets as the user does.
    """

    def __init__(self) -> None:
        self._root: str | None = None
        self._copies: dict[Path, Path] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._root is not None:
            shutil.rmtree(self._root, ignore_errors=True)
            if isinstance(error, MoshijaxError):
                error.args = tuple(map(self.named, error.args))
                vars(error).update({name: self.named(value) for name, value in vars(error).items()})

    def __call__(self, files: Iterable[Path]) -> Callable[[Path], Path]:
        """Fetch the files of the next item, as far as they are there, and drop those that it has not.

        Raises:
          MoshijaxError: one cannot be fetched.
        """
        away = [path for path in files if not is_here(path)]
        for path in self._copies.keys() - set(away):
            self._copies.pop(path).unlink(missing_ok=True)
        for path in away:
            if path not in self._copies:
                self._copies[path] = self._fetch(path)
        return lambda path: self._copies.get(path, path)

    def named(self, text: Any) -> Any:
        """Return a text with the names of buckets in place of those of copies; other values as they are."""
        if self._root is None or not isinstance(text, str):
            return text
        for scheme in DRIVERS:
            text = text.replace(f"{self._root}/{scheme}/", f"{scheme}://")
        return text

    def _fetch(self, path: Path) -> Path:
        if self._root is None:
            self._root = tempfile.mkdtemp(prefix="moshijax-")
        scheme, _, name = os.fspath(path).partition("://")
        here = Path(self._root, scheme, name)
        try:
            with contextlib.suppress(FileNotFoundError):  # the plan tells of it, as of a file here
                changed = stamp(path)[1]
                here.parent.mkdir(parents=True, exist_ok=True)
                with opened(path) as source, open(here, "wb") as copy:
                    shutil.copyfileobj(source, copy, 1 << 20)
                os.utime(here, ns=(changed, changed))
        except Exception as error:  # drivers raise what their libraries do
            raise MoshijaxError(f"cannot fetch {path} ({type(error).__name__}: {error}): {_REMEDY}") from error
        return here
