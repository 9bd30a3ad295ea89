"""Write files and directories that appear complete or not at all, in place of nothing that a command reads.

Read the text files of users, whatever wrote them. And say in one way that a disk is full, or a file is not there.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import stat
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from moshijax.annotations import shown
from moshijax.errors import ConfigError, DataError, MoshijaxError

# No space left, quota exceeded, file size limit.
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Too long a name, a folder in place of a file and the reverse, links in a circle.
BAD_PATH = (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.ELOOP)

# What a file begins with that only stands for another one, and the command that puts that one in its place.
_POINTERS = {
    b"version https://git-lfs": ("git-lfs", "git lfs pull"),
    b"/annex/objects/": ("git-annex", "git annex get"),
}

# What is inside the scratch folder of `staged_directory`: the new folder, and for a moment the one that it replaces.
_NEW, _OLD = "moshijax.new", "moshijax.old"


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


def read_json(path: Path, what: str = "file") -> Any:
    """Read a JSON file.

    Raises:
      DataError: it cannot be read, or is no JSON.
    """
    text = read_text(path, what)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{what} {path} is not JSON ({error}): fetch or write it again") from None


def read_text(path: Path, what: str = "text file", errors: str = "strict") -> str:
    """Read a text file of the user's: UTF-8, with or without a byte order mark.

    Args:
      path: of the file.
      what: it is, for messages.
      errors: what becomes of bytes that are not UTF-8; see `bytes.decode`.

    Raises:
      DataError: it cannot be read, stands for a file that was not fetched, or is not UTF-8.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{what} {path} cannot be read: {reason(path, error)}") from error
    check_fetched(path)
    try:
        return content.decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{what} {path} is not UTF-8 (byte {error.start}): convert it to UTF-8, or check the path"
        ) from error


def lines(text: str) -> list[str]:
    r"""Split a text at \n, \r\n and \r.

    `str.splitlines` would also do it at form feeds, U+0085, U+2028 and others, which may be inside a JSON string or a
    sentence.
    """
    return re.split(r"\r\n|\n|\r", text)


def reason(path: Path, error: OSError) -> str:
    """Return why a file cannot be read."""
    return (error.strerror or str(error)) + (meant(path) if isinstance(error, FileNotFoundError) else "")


def meant(path: Path) -> str:
    """Return what may be wrong with the name of a file that is not there, as the end of a message; else ""."""
    name = str(path)
    if not name.isascii() and (twin := _twin(path)) is not None:
        return (
            f"; there is {ascii(str(twin))}, which differs from {ascii(name)} only in the Unicode form of its letters, "
            "so write it as it is there"
        )
    if "\\" in name:
        return "; folders are separated by / here, not by \\"
    if "~" in path.parts:
        return "; ~ does not stand for the home folder here, so write the whole path"
    if re.search(r"(^|/)[A-Za-z][A-Za-z0-9+.-]+:/", name):
        return "; URLs are not fetched, so copy the file here first"
    return ""


def _twin(path: Path) -> Path | None:
    """Return the path that is there and differs from `path` only in the Unicode form of its letters."""
    found = Path(path.anchor)
    for part in path.parts[len(found.parts) :]:
        if not (found / part).exists():
            wanted = unicodedata.normalize("NFC", part)
            near = [name for name in os.listdir(found) if unicodedata.normalize("NFC", name) == wanted]
            if not near:
                return None
            part = near[0]
        found /= part
    return found


def check_fetched(path: Path) -> None:
    """Check that a file is itself, not what git-lfs or git-annex keep in its place until it is fetched.

    Raises:
      DataError: it is not, with the command that fetches it.
    """
    first = b""
    with contextlib.suppress(OSError), open(path, "rb") as file:  # (which its reader will tell)
        first = file.read(max(map(len, _POINTERS)))
    for start, (tool, command) in _POINTERS.items():
        if first.startswith(start):
            raise DataError(f"{path} is a {tool} pointer, not the file itself: run `{command}`, or download the file")


def check_outputs(outputs: Iterable[str | Path | None], inputs: Iterable[str | Path | None] = ()) -> None:
    """Check the files that a command is about to write, before it does anything; None stands for one not asked for.

    Raises:
      ConfigError: one is an input, another output, a folder or a device, or cannot be written where it is named.
      MoshijaxError: its folder is not ours to write.
    """
    taken = [("input", Path(path)) for path in inputs if path is not None]
    for output in (Path(path) for path in outputs if path is not None):
        state = _check_output(output, taken)
        if state is not None and not stat.S_ISREG(state.st_mode):
            what = "a folder" if stat.S_ISDIR(state.st_mode) else "a device, not a file"
            raise ConfigError(f"cannot write {output}: it is {what}; name a file")
        if not _place(output).parent.is_dir():
            raise ConfigError(f"cannot write {output}: its folder does not exist; create it first")
        _check_permission(output, _place(output).parent)
        inside = [other for _, other in taken if other.is_dir() and other.resolve() in _place(output).parents]
        if state is not None and inside:
            raise ConfigError(f"output {output} would replace a file of the input {inside[0]}: choose another path")
        if _scratch(output).is_dir():
            raise ConfigError(f"cannot write {output}: {_scratch(output)} is in the way; move that folder")
        taken.append(("output", output))


def check_folder(output: str | Path, inputs: Iterable[str | Path | None] = (), new: bool = True) -> None:
    """Check the folder that a command is about to write, before it does anything.

    Args:
      output: the folder.
      inputs: what the command reads; None stands for what was not given.
      new: whether the folder must not be there yet.

    Raises:
      ConfigError: it is an input, or there, or something other than a folder, or cannot be made where it is named.
      MoshijaxError: the folder above is not ours to write.
    """
    if not isinstance(output, str | Path):
        return  # in a bucket, where there is nothing to make
    output = Path(output)
    state = _check_output(output, [("input", Path(path)) for path in inputs if path is not None])
    if state is not None and new:
        raise ConfigError(f"{output} exists; choose another path or remove it first")
    if state is not None and not stat.S_ISDIR(state.st_mode):
        raise ConfigError(f"cannot write {output}: it is not a folder; choose another path")
    above = next(folder for folder in output.absolute().parents if folder.exists())
    if not above.is_dir():
        raise ConfigError(f"cannot write {output}: {above} is not a folder; choose another path")
    if state is None:
        _check_permission(output, above)
    if new:
        _check_scratch(output)


def _check_output(output: Path, taken: Iterable[tuple[str, Path]]) -> os.stat_result | None:
    """Return the state of a path that is to be written, None if nothing is there.

    Raises:
      ConfigError: it cannot be a path, or is one of those that are taken.
    """
    # (a file has a longer name until it is complete)
    if "\0" in str(output) or len(os.fsencode(_scratch(output).name)) > 255:
        raise ConfigError(
            f"cannot write {shown(str(output))}: must be a name of at most 246 bytes without NUL; choose another"
        )
    state = _state(output)
    for kind, other in taken:
        there = _state(other)
        same = state is not None and there is not None and os.path.samestat(state, there)
        if same or _place(other) in (_place(output), _place(_scratch(output))):
            raise ConfigError(f"output {output} would replace the {kind} {other}: choose another path")
    return state


def _state(path: Path) -> os.stat_result | None:
    """Return what the system says of a path, None if nothing is there.

    Raises:
      ConfigError: there can be no such path.
    """
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise ConfigError(f"cannot use {shown(str(path))}: {error}; choose another path") from None
    except OSError as error:
        if error.errno not in BAD_PATH:
            raise
        raise ConfigError(f"cannot use {shown(str(path))}: {error.strerror}; choose another path") from None


def _check_permission(output: Path, folder: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise cannot_write(output, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def _place(path: Path) -> Path:
    """Return a path without links but the last, under which it appears."""
    return path.absolute().parent.resolve() / path.name


def _scratch(path: Path) -> Path:
    """Return where a path is written until it is complete."""
    path = path if path.name else path.resolve()
    return path.with_name(f".{path.name}.partial") if path.name else path / ".partial"


def _is_ours(scratch: Path) -> bool:
    """Say whether a path is free, or holds what a killed process left of `staged_directory`."""
    return not os.path.lexists(scratch) or (scratch.is_dir() and set(os.listdir(scratch)) <= {_NEW, _OLD})


def _check_scratch(path: Path) -> None:
    if not _is_ours(_scratch(path)):
        raise ConfigError(f"cannot write {path}: {_scratch(path)} is in the way; move it, or choose another path")


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

    For a file in a bucket (`moshijax.data.buckets`) the path is of a temporary file, which is sent there.

    Raises:
      MoshijaxError: it cannot be written.
    """
    if not isinstance(path, Path):
        with tempfile.TemporaryDirectory(prefix="moshijax-") as folder:
            yield Path(folder, path.name)
            _send(Path(folder, path.name), path)
        return
    partial = _scratch(path)
    try:
        with _explained(path, partial):
            yield partial
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _send(file: Path, path: Any) -> None:
    """Copy a file to a bucket, where it appears when it is complete."""
    try:
        with open(file, "rb") as source, path.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    except Exception as error:  # drivers raise what their libraries do
        raise MoshijaxError(
            f"cannot write {path} ({type(error).__name__}: {error}): check the name, the network and the credentials"
        ) from error


@contextlib.contextmanager
def staged_directory(path: Path, replace: bool = False) -> Iterator[Path]:
    """Yield an empty directory in a hidden one beside `path`, which takes the name `path` when the block ends well.

    Its files are not synced: what a power failure damages is for their reader to find. What a killed process left in
    the hidden directory is removed; whoever writes there at the same time is kept out by `moshijax.lock.beside`.

    Args:
      path: of the directory; those above it are created.
      replace: whether it may take the place of another.

    Raises:
      ConfigError: something else is at `path` by then, or the hidden directory holds files of the user.
      MoshijaxError: it cannot be written.
    """
    scratch = _scratch(path)
    check_folder(path, new=not replace)
    _check_scratch(path)
    try:
        with _explained(path, scratch):
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            (scratch / _NEW).mkdir()
            yield scratch / _NEW
            check_folder(path, new=not replace)
            if not path.exists():
                os.rename(scratch / _NEW, path)
                return
            os.rename(path, scratch / _OLD)
            try:
                os.rename(scratch / _NEW, path)
            except OSError:
                os.rename(scratch / _OLD, path)
                raise
    finally:
        if _is_ours(scratch):
            shutil.rmtree(scratch, ignore_errors=True)


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
