"""Raw text to files of one document a line, which `moshijax data prepare` packs.

Two steps. The first reads, filters and signs documents, shard by shard: a job as any other, so that it resumes, and
another runner can take it. The second goes over the signatures of all shards, leaves out what is nearly the same as an
earlier document, and writes the files; it takes little time, and is done again when a shard has changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moshijax import files
from moshijax.data import records
from moshijax.data.documents import Corpus, find_files, folder_of, name_in
from moshijax.data.findings import Report
from moshijax.data.job import Progress, owned, run_job
from moshijax.data.raw_text import formats, near_duplicates
from moshijax.data.raw_text.lines import SeenLines
from moshijax.data.raw_text.rules import Judge, TextRules
from moshijax.data.shards import Record, ShardPlan
from moshijax.errors import ConfigError, DataError

FILTERED = "filtered"  # folder of the first step, inside that of the result
REPORT = "report.json"
_LISTED = 10  # rejected documents of a file
_RECORD = 4_000_000  # characters of the documents of a record, and then the last of them


@dataclass(frozen=True)
class RawFile:
    """A file of documents, an item of the job.

    Attributes:
      id: its name, relative to the folder of all.
      path: of it.
      span: None, since all of it is read.
    """

    id: str
    path: Path
    span: None = None

    def at(self, place: Callable[[Path], Path]) -> RawFile:
        """Return the file elsewhere: `place` says where."""
        return replace(self, path=place(self.path))

    @property
    def identity(self) -> list[str]:
        """See `moshijax.data.shards.Work`."""
        return [self.id]


def read_files(paths: Sequence[str | Path], field: str = "text") -> Corpus[RawFile]:
    """Find files of documents by their names or patterns.

    Raises:
      ConfigError: no path, or a file of another format.
      DataError: a file is not there or is given twice, or a pattern fits none.
    """
    found = find_files(paths)
    for path in found:
        formats.reader(path, field)
        if not path.is_file():
            raise DataError(f"text file {path} cannot be read: " + ("not a file" if path.exists() else "not there"))
    folder = folder_of(found)
    items = tuple(RawFile(name_in(folder, path), path) for path in found)
    return Corpus(found[0] if len(found) == 1 else folder, items)


@dataclass(frozen=True)
class FilterPlan(ShardPlan):
    """Documents of raw files to those that are fit to train on.

    Attributes:
      rules: what is fit.
      field: of JSON lines, which holds the text.
    """

    index_name = records.FILTERED
    noted = "texts"
    unit = "texts"

    rules: TextRules
    field: str = "text"

    def deciding(self) -> dict[str, Any]:
        """See `ShardPlan`."""
        return {**self.rules.deciding(), "field": self.field}

    def about(self) -> dict[str, Any]:
        """See `ShardPlan`."""
        return {"kind": "filtered_text"}

    def note(self, record: Record) -> list[int]:
        """Return how many documents there are, and how many lines were left out of them."""
        return [len(record["texts"]), record["lines_removed"]]

    def reads(self, item: RawFile) -> Sequence[Path]:
        """See `ShardPlan`."""
        return (item.path,)

    def make(self, items: Iterable[RawFile]) -> Iterator[Report | Record]:
        """See `ShardPlan`; a line is new or not among all files of the shard."""
        seen, judge = SeenLines(), Judge(self.rules)
        waiting = _Waiting()
        for item in items:
            report = Report()
            for found in formats.reader(item.path, self.field)():
                fault = self._take(item, found, seen, judge, report, waiting)
                if fault is not None:
                    where = f"{item.path}, {found.name}"
                    report.reject(where, fault[0], f"{where}: {fault[1]}", _LISTED)
                if waiting.size > _RECORD:
                    yield waiting.record()
                    waiting = _Waiting()
            if not report.items:
                report.reject(item.id, "empty", f"text file {item.path} has no documents")
            yield report
        if waiting.texts:
            yield waiting.record()

    def _take(
        self,
        item: RawFile,
        found: formats.Document | formats.Refused,
        seen: SeenLines,
        judge: Judge,
        report: Report,
        waiting: _Waiting,
    ) -> tuple[str, str] | None:
        """Add a document to those that wait, or return kind and reason of what speaks against it."""
        if isinstance(found, formats.Refused):
            return found.kind, found.reason
        lines = [line for line in map(str.strip, files.lines(found.text)) if line]
        if not lines:
            return "empty", "it has no text"
        new = [line for line in lines if seen.add(line)]
        if not new:
            return "duplicate", "all of its lines were there before"
        kept = judge.without_duplicates(new)
        if not kept:
            return "duplicate_run", "the model calls all of its lines duplicates"
        text = "\n".join(kept)
        fault = judge.fault(text)
        if fault is not None:
            return fault
        name = f"{item.id}, {found.name}"
        waiting.add(name, text, len(lines) - len(kept))
        report.items += 1
        report.usable += 1
        report.words += len(text.split())
        if len(kept) < len(lines):
            report.flags["duplicate_lines"] += 1
            report.flagged.setdefault("duplicate_lines", name)
        return None


class _Waiting:
    """Documents that are not yet in a record."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.texts: list[str] = []
        self.size = self.lines_removed = 0

    def add(self, name: str, text: str, lines_removed: int) -> None:
        self.names.append(name)
        self.texts.append(text)
        self.size += len(text)
        self.lines_removed += lines_removed

    def record(self) -> Record:
        signatures = np.stack([near_duplicates.signature(text) for text in self.texts])
        return {
            "names": self.names,
            "texts": self.texts,
            "signatures": signatures,
            "lines_removed": self.lines_removed,
        }


class Collected(NamedTuple):
    """What came of raw text.

    Attributes:
      report: of all documents.
      files: that were written, in order.
      lines_removed: of the documents that are kept.
      written: how many shards were filtered this time.
    """

    report: Report
    files: tuple[Path, ...]
    lines_removed: int
    written: int


def collect(
    paths: Sequence[str | Path],
    out_dir: Path,
    rules: TextRules,
    field: str = "text",
    shard_files: int = 1,
    progress: Progress | None = None,
    workers: int = 1,
) -> Collected:
    """Filter raw text and write `text-*.txt`, one document a line, and `report.json`.

    Args:
      paths: files or patterns; `formats.reader` says which.
      out_dir: folder of the result, and of the shards of the first step in `filtered`.
      rules: for documents.
      field: of JSON lines, which holds the text.
      shard_files: files that are one shard, and in which a line is kept once; in the Moshi paper, of a hundredth of
        a crawl.
      progress: called after every file; after every shard where there are several workers.
      workers: processes that filter, a shard each; the bytes of the result are the same for any number.

    Raises:
      ConfigError: no path, a file of another format, or `out_dir` holds something else.
      DataError: no document is usable, or `out_dir` holds (the start of) another job.
    """
    if shard_files < 1:
        raise ConfigError(f"shard_files is {shard_files}: use at least 1")
    if workers < 1:
        raise ConfigError(f"workers is {workers}: use at least 1")
    found = read_files(paths, field)
    rules.check()
    others = sorted(path.name for path in out_dir.iterdir()) if out_dir.is_dir() else []
    if others and FILTERED not in others:
        raise ConfigError(f"{out_dir} holds other files, such as {others[0]}: choose a new or empty folder")
    plan = FilterPlan(shard_files, False, rules, field)
    index, report, written = run_job(found, out_dir / FILTERED, plan, progress, workers)
    with owned(out_dir):
        return _write(out_dir, index, report, written)


def _write(out_dir: Path, index: dict[str, Any], report: Report, written: int) -> Collected:
    """Write the files of all documents but those that are nearly the same as an earlier one."""
    done = out_dir / REPORT
    old = files.read_json(done, "report") if done.exists() else {}
    if old.get("filtered_sha256") == index["sha256"] and all((out_dir / name).exists() for name in old["files"]):
        paths = tuple(out_dir / name for name in old["files"])
        return Collected(Report.from_json(old["report"]), paths, old["lines_removed"], written)
    source = records.RecordSource(out_dir / FILTERED, records.FILTERED)
    signatures = [source[number]["signatures"] for number in range(len(source))]
    first = near_duplicates.first_of_each(np.concatenate(signatures))
    names = [shard["file"].replace("shard-", "text-").replace(".arrayrecord", ".txt") for shard in index["shards"]]
    for path in [done, *out_dir.glob("text-*.txt")]:
        if path.name not in names:
            path.unlink(missing_ok=True)
    removed = _Removed(first)
    number = record = 0
    for name, shard in zip(names, index["shards"], strict=True):
        with files.staged(out_dir / name) as partial, open(partial, "w", encoding="utf-8", newline="\n") as file:
            for _ in range(shard["records"]):
                content = source[record]
                for document, text in zip(content["names"], content["texts"], strict=True):
                    if removed.keep(number, document, text):
                        file.write(" ".join(text.split()) + "\n")
                    number += 1
                record += 1
    removed.count(report)
    lines_removed = sum(count for shard in index["shards"] for _, count in shard["texts"])
    content = {
        "settings": index["plan"],
        "filtered_sha256": index["sha256"],
        "files": {name: hashlib.sha256((out_dir / name).read_bytes()).hexdigest() for name in names},
        "lines_removed": lines_removed,
        "report": report.to_json(),
    }
    files.write_json(done, content)
    return Collected(report, tuple(out_dir / name for name in names), lines_removed, written)


class _Removed:
    """Documents that are left out, since an earlier one is nearly the same."""

    def __init__(self, first: np.ndarray):
        self._first = first
        self._originals = set(first[first != np.arange(len(first))].tolist())
        self._names: dict[int, str] = {}
        self.found: list[tuple[str, str]] = []
        self.documents = self.words = 0

    def keep(self, number: int, name: str, text: str) -> bool:
        """Say whether a document is kept; they are asked for in order."""
        if number in self._originals and len(self._names) < _LISTED:
            self._names[number] = name
        first = int(self._first[number])
        if first == number:
            return True
        self.documents += 1
        self.words += len(text.split())
        if len(self.found) < _LISTED:
            like = self._names.get(first, "an earlier document")
            self.found.append((name, f"{name}: it is nearly the same as {like}"))
        return False

    def count(self, report: Report) -> None:
        """Move them in a report from the usable documents to the rejected ones."""
        report.usable -= self.documents
        report.words -= self.words
        if self.documents:
            report.kinds["near_duplicate"] += self.documents
        report.rejected += self.found
