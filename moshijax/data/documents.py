"""Texts to shards of tokens: files of one document a line, read in pieces, so that memory does not grow with them."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np

from moshijax.data import buckets, records
from moshijax.data.findings import Report
from moshijax.data.job import Job, Progress, Runner, run_job
from moshijax.data.shards import Record, ShardPlan, Work
from moshijax.errors import ConfigError, DataError
from moshijax.tokens import BOS, EOS

if TYPE_CHECKING:
    from moshijax.data.text import Tokenizer

T = TypeVar("T", bound=Work)
_PIECE = 1_000_000  # bytes in which the lines of a piece begin
_LONGEST = 8_000_000  # bytes of a document: twice a Bible
_RECORD = 32_768  # tokens
_LISTED = 10  # rejected documents of a piece
_BLOCK = 1 << 16
_MARK = b"\xef\xbb\xbf"  # byte order mark of UTF-8


@dataclass(frozen=True)
class Piece:
    """Whole lines of a file of text.

    Attributes:
      id: name of the file, with the number of the piece if there are several.
      name: of the file, relative to the folder of the corpus.
      path: of the file.
      span: first byte, and the one behind the last.
    """

    id: str
    name: str
    path: Path
    span: tuple[int, int]

    def at(self, place: Callable[[Path], Path]) -> Piece:
        """Return the piece of the file elsewhere: `place` says where."""
        return dataclasses.replace(self, path=place(self.path))

    @property
    def identity(self) -> list[str]:
        """See `moshijax.data.shards.Work`."""
        return [self.name]


@dataclass(frozen=True)
class Corpus(Generic[T]):
    """Files of text, whole or in pieces, in order.

    Attributes:
      path: the file, or the folder that all of them are in.
      items: the files or pieces.
    """

    path: Path
    items: tuple[T, ...]


def read_corpus(paths: Sequence[str | Path]) -> Corpus[Piece]:
    """Find files of text, and where the lines begin at which they are cut.

    Args:
      paths: files, or patterns such as "books/**/*.txt", whose files are taken in the order of their names.

    Raises:
      DataError: a file cannot be read or is given twice, by another name too, or a pattern fits none.
      ConfigError: no path.
    """
    found = find_files(paths)
    folder = folder_of(found)
    items = [
        Piece(f"{name}#{number}" if len(spans) > 1 else name, name, path, span)
        for path in found
        for name, spans in [(name_in(folder, path), _spans(path))]
        for number, span in enumerate(spans)
    ]
    return Corpus(found[0] if len(found) == 1 else folder, tuple(items))


def find_files(paths: Sequence[str | Path]) -> list[Path]:
    """Return the files that names and patterns stand for, in order; see `read_corpus` for arguments and errors."""
    if not paths:
        raise ConfigError("no text is given: name at least one file")
    found = [path for pattern in paths for path in _files(str(pattern))]
    first: dict[Any, Path] = {}
    for path in found:
        with contextlib.suppress(OSError):  # (one that is not there is told of where it is read)
            about = path.stat() if buckets.is_here(path) else None
            other = first.setdefault(path if about is None else (about.st_dev, about.st_ino), path)
            if other is not path:
                alias = "" if other == path else f", also as {other}"
                raise DataError(f"text file {path} is given twice{alias}: name it once")
    return found


def folder_of(files: Sequence[Path]) -> Path:
    """Return the folder that all of some files are in."""
    folders = [_full_name(path).rpartition("/")[0] + "/" for path in files]
    return buckets.place(os.path.commonprefix(folders).rpartition("/")[0] or "/")


def name_in(folder: Path, path: Path) -> str:
    """Return the name of a file relative to a folder that it is in."""
    return _full_name(path)[len(os.fspath(folder).rstrip("/")) + 1 :]


def _full_name(path: Path) -> str:
    return os.fspath(path.absolute() if buckets.is_here(path) else path)


def _files(pattern: str) -> list[Path]:
    """The file of that name, or those that a pattern fits."""
    path = buckets.place(pattern)
    if not glob.has_magic(pattern) or (buckets.is_here(path) and os.path.lexists(pattern)):
        return [path]
    if not buckets.is_here(path):
        found = buckets.matching(pattern)
    else:
        found = sorted(Path(path) for path in glob.glob(pattern, recursive=True) if not os.path.isdir(path))
    if not found:
        raise DataError(f"no file of text fits {pattern}: check the pattern")
    return found


def _spans(path: Path) -> list[tuple[int, int]]:
    """Where the pieces of a file begin and end; a line belongs to the piece in which it begins."""
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is not a file: name files of text, or a pattern such as 'books/*.txt'")
    try:
        with buckets.opened(path) as file:
            size = buckets.stamp(path)[0]
            starts = [0]
            while starts[-1] + _PIECE < size:
                start = _line_after(file, starts[-1] + _PIECE - 1, size)
                if start >= size:
                    break
                starts.append(start)
    except OSError as error:
        raise DataError(f"text file {path} cannot be read: {error.strerror}") from error
    return list(zip(starts, [*starts[1:], size], strict=True))


def _line_after(file: Any, start: int, size: int) -> int:
    """The first byte after the first line end at or behind `start`, or the size of the file."""
    file.seek(start)
    while block := file.read(_BLOCK):
        ends = [at for at in (block.find(b"\n"), block.find(b"\r")) if at >= 0]
        if ends:
            # (\r\n is cut between the two where it must be: an empty line is no document)
            return start + min(ends) + 1
        start += len(block)
    return size


def prepare_text(
    paths: Sequence[str | Path],
    out_dir: str | Path,
    tokenizer: Tokenizer,
    shard_items: int = 256,
    strict: bool = False,
    progress: Progress | None = None,
    runner: Runner = run_job,
) -> Job:
    """Write `dataset.json` and shards of records {tokens uint16 or int32 [n]}: documents end to end.

    A document is a line that is not empty, with single spaces between its words; it becomes BOS, tokens, EOS. Lines end
    with \\n, \\r\\n or \\r. Memory does not depend on the length of the texts.

    Args:
      paths: files of UTF-8 text or patterns; see `read_corpus`.
      out_dir: folder of the shards.
      tokenizer: that the shards are bound to.
      shard_items: pieces of 1 MB of text, or shorter files, in a shard.
      strict: a document that cannot be used is an error.
      progress: called after every piece with (pieces done, pieces in all, report so far).
      runner: of the job.

    Returns:
      The content of `dataset.json`, the report of accepted and rejected documents, and the number of shards written.

    Raises:
      DataError: a file cannot be read, no document is usable, `strict` is set and one is not, or `out_dir` holds
        (the start of) another job.
      ConfigError: no path, or `out_dir` holds something else.
    """
    if shard_items < 1:
        raise ConfigError(f"shard_items is {shard_items}: use at least 1")
    return runner(read_corpus(paths), buckets.place(out_dir), TextPlan(shard_items, strict, tokenizer), progress)


@dataclass(frozen=True)
class TextPlan(ShardPlan):
    """Pieces of text to tokens.

    Attributes:
      tokenizer: of the documents.
    """

    index_name = records.INDEX
    noted = "tokens"
    unit = "texts"

    tokenizer: Tokenizer

    def deciding(self) -> dict[str, Any]:
        """See `ShardPlan`."""
        return {"tokenizer_sha256": self.tokenizer.sha256}

    def about(self) -> dict[str, Any]:
        """See `ShardPlan`."""
        return {"kind": "text", "tokenizer_sha256": self.tokenizer.sha256}

    def note(self, record: Record) -> int:
        """Return the number of tokens."""
        return len(record["tokens"])

    def reads(self, item: Piece) -> Sequence[Path]:
        """See `ShardPlan`."""
        return (item.path,)

    def make(self, items: Iterable[Piece]) -> Iterator[Report | Record]:
        """See `ShardPlan`; a record is full before the next one begins, so records come later than findings."""
        dtype = np.uint16 if self.tokenizer.vocab_size <= 1 << 16 else np.int32
        waiting = np.zeros(0, dtype)
        for item in items:
            report, tokens = self._read(item)
            waiting = np.concatenate([waiting, *(part.astype(dtype) for part in tokens)])
            full = len(waiting) // _RECORD * _RECORD
            for start in range(0, full, _RECORD):
                yield {"tokens": waiting[start : start + _RECORD]}
            waiting = waiting[full:].copy()
            yield report
        if len(waiting):
            yield {"tokens": waiting}

    def _read(self, piece: Piece) -> tuple[Report, list[np.ndarray]]:
        """What was found in a piece, and the tokens of its documents."""
        report, texts, places = Report(), [], []

        def reject(place: int, kind: str, reason: str) -> None:
            where = f"{piece.path}, byte {place}"
            report.reject(where, kind, f"{where}: {reason}", _LISTED)

        for place, found in documents(piece):
            if isinstance(found, str):
                texts.append(found)
                places.append(place)
            elif found.place is None:
                report.reject(piece.id, found.kind, f"text file {piece.path} {found.reason}")
                return report, []
            else:
                reject(found.place, found.kind, f"the document {found.reason}")
        tokens = []
        for place, text, ids in zip(places, texts, self.tokenizer.encode_documents(texts), strict=True):
            if ids is None:
                reason = "the document has characters that the tokenizer lacks: train it with byte_fallback"
                reject(place, "characters", reason)
                continue
            tokens.append(np.concatenate([[BOS], ids, [EOS]]))
            report.items += 1
            report.usable += 1
            report.words += text.count(" ") + 1
        if not report.items and piece.span == (0, piece.path.stat().st_size):
            report.reject(piece.id, "empty", f"text file {piece.path} is empty: it needs one document a line")
        return report, tokens


class Unusable(NamedTuple):
    """Why a document, or a piece as a whole, cannot be used.

    Attributes:
      place: byte of the file; None: the piece cannot be read at all.
      kind: of the fault.
      reason: what is wrong and what to do.
    """

    place: int | None
    kind: str
    reason: str


def documents(piece: Piece) -> Iterator[tuple[int, str | Unusable]]:
    """Yield place and text of every document of a piece, single spaces between its words, or why there is none."""
    try:
        lines = list(_lines(piece))
    except OSError as error:
        yield 0, Unusable(None, "unreadable", f"cannot be read: {error.strerror}")
        return
    for place, line in lines:
        if line is None:
            yield place, Unusable(place, "too_long", f"is longer than {_LONGEST} bytes: divide it into lines")
            continue
        try:
            text = " ".join(line.decode("utf-8").split())
        except UnicodeDecodeError as error:
            yield place, Unusable(place + error.start, "encoding", "is not UTF-8: convert it to UTF-8")
            continue
        if "\0" in text:
            place += line.index(b"\0")
            yield place, Unusable(place, "encoding", "has a NUL, as UTF-16 has: convert it to UTF-8")
        elif text:
            yield place, text


def _lines(piece: Piece) -> Iterator[tuple[int, bytes | None]]:
    """Place and bytes of every line of a piece, without its end; None for one that is too long to be read."""
    start, stop = piece.span
    with open(piece.path, "rb") as file:
        if not start and file.read(len(_MARK)) == _MARK:
            start = len(_MARK)
        file.seek(start)
        data = file.read(min(stop - start, _PIECE + _LONGEST))  # what this cuts off belongs to a line too long
    for line in data.splitlines(keepends=True):  # of bytes: at \n, \r and \r\n alone
        yield start, None if len(line) > _LONGEST else line
        start += len(line)
