"""Long jobs over the recordings of a manifest, shard by shard: resumable, and nothing half-written looks finished.

A shard is the unit of work, and `make_shard` makes one: a function of a plan and some items that returns by value, in
whatever process it runs. `run_job` is the local runner. Another one, such as Beam, maps `make_shard` over those of
`shards_of` that `begin` does not return, and hands all results to `finish`; shards and index are the same.

A shard is bound to the files that it was made of: when one of them changes, the same job makes that shard again.
"""

from __future__ import annotations

import contextlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import moshijax
from moshijax import files, lock
from moshijax.data import records, sources
from moshijax.data.checks import CheckedItem, Report
from moshijax.data.manifest import Item, Manifest
from moshijax.errors import ConfigError, DataError, MoshijaxError

Record = dict[str, Any]
RECORDINGS = "recordings_sha256"
#: Called with items done, items in all, and the report so far.
Progress = Callable[[int, int, Report], None]


@dataclass(frozen=True)
class ShardPlan(ABC):
    """One kind of preparation with its settings; picklable, so that any process can make any of its shards.

    Attributes:
      shard_items: items of one shard; which items fall into which shard follows from the manifest alone.
      strict: a rejected item is an error.
    """

    index_name: ClassVar[str]  # file name of the index, such as dataset.json
    noted: ClassVar[str]  # what the index lists of every record of a shard, such as "frames"

    shard_items: int
    strict: bool

    @abstractmethod
    def deciding(self) -> dict[str, Any]:
        """Return everything that decides the records, as JSON values; another job in the same folder is refused."""

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """Return what else the index says, as JSON values."""

    @abstractmethod
    def reads(self, item: Item) -> Sequence[Path]:
        """Return the files that an item is made of, whether they are there or not."""

    @abstractmethod
    def make(self, items: Iterable[Item]) -> Iterator[CheckedItem | Record]:
        """Yield the finding of every item, and the records of the usable ones, each in the order of the items."""

    @abstractmethod
    def note(self, record: Record) -> Any:
        """Return what the index lists of a record, a JSON value."""


@dataclass(frozen=True)
class ShardResult:
    """What one shard holds.

    Attributes:
      file: its name.
      sha256: of its records.
      notes: `ShardPlan.note` of every record, in order.
      report: of the items that went in.
      sources: of every item's id, what the files were that it was made of, by name.
    """

    file: str
    sha256: str
    notes: tuple[Any, ...]
    report: Report
    sources: dict[str, dict[str, sources.Seen]]

    def to_json(self) -> dict[str, Any]:
        """Return a form that JSON can hold."""
        return {**vars(self), "notes": list(self.notes), "report": self.report.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ShardResult:
        """Return the inverse of `to_json`."""
        return cls(**{**data, "notes": tuple(data["notes"]), "report": Report.from_json(data["report"])})


class Job(NamedTuple):
    """What a job returns.

    Attributes:
      index: content of the index file.
      report: of all items.
      written: how many shards were written this time.
    """

    index: dict[str, Any]
    report: Report
    written: int


def shards_of(manifest: Manifest, plan: ShardPlan) -> list[tuple[str, tuple[Item, ...]]]:
    """Return file name and items of every shard."""
    count = math.ceil(len(manifest.items) / plan.shard_items)
    size = plan.shard_items
    return [(records.shard_name(n, count), tuple(manifest.items[n * size : (n + 1) * size])) for n in range(count)]


def make_shard(
    plan: ShardPlan, items: Sequence[Item], path: Path, watch: Callable[[CheckedItem], None] | None = None
) -> ShardResult:
    """Write one shard, which appears only when complete.

    Args:
      plan: how.
      items: of which.
      path: of the shard.
      watch: told of every item, to show progress; everything that counts is in the result.

    Raises:
      MoshijaxError: the shard cannot be written.
    """
    report, notes, seen = Report(), [], {}

    def looked_at() -> Iterator[Item]:
        # Before it is read: what changes meanwhile differs later.
        for item in items:
            seen[item.id] = {file.name: sources.look(file) for file in plan.reads(item)}
            yield item

    def content() -> Iterator[Record]:
        for made in plan.make(looked_at()):
            if isinstance(made, CheckedItem):
                report.add(made)
                if watch is not None:
                    watch(made)
            else:
                notes.append(plan.note(made))
                yield made

    path.unlink(missing_ok=True)
    sha256 = records.write_shard(path, content())
    return ShardResult(path.name, sha256, tuple(notes), report, seen)


def unmade(item: Item, error: Exception, kind: str = "unreadable") -> tuple[str, str]:
    """Return kind and text of the rejection of an item that `error` kept from being made.

    Raises:
      Exception: `error`, where it is no fault of the item: a full disk, a missing package, no memory.
    """
    if isinstance(error, DataError):
        return kind, str(error)
    # A runtime error is how accelerators say that their memory is full.
    if isinstance(error, MoshijaxError | MemoryError | RuntimeError) or files.is_out_of_space(error):
        raise error
    return "unreadable", f"{item.audio} cannot be used ({type(error).__name__}: {error})"


def run_job(manifest: Manifest, out_dir: Path, plan: ShardPlan, progress: Progress | None = None) -> Job:
    """Make the shards that are not there yet or whose recordings have changed, and at last the index that binds all.

    Args:
      manifest: of the recordings.
      out_dir: folder of shards and index.
      plan: how they are made.
      progress: called after every item.

    Returns:
      The index `{format_version, moshijax, plan, shards, report, sha256, ...}`, the report of accepted and rejected
      items, and the number of shards that were written.

    Raises:
      ConfigError: `out_dir` holds something else.
      DataError: nothing is usable, a strict plan met a rejected item, or `out_dir` holds (the start of) another job.
      MoshijaxError: a file cannot be written, or another process works in `out_dir`.
    """
    with owned(out_dir):
        standing, shards = begin(manifest, out_dir, plan), shards_of(manifest, plan)
        if len(standing) == len(shards) and (out_dir / plan.index_name).exists():
            index = records.read_index(out_dir, plan.index_name)
            return Job(index, Report.from_json(index["report"]), 0)
        shown, results = Report(), []

        def tell() -> None:
            if progress is not None:
                progress(shown.items, len(manifest.items), shown)

        def watch(checked: CheckedItem) -> None:
            shown.add(checked)
            tell()

        for name, items in shards:
            if name in standing:
                results.append(standing[name])
                shown.merge(standing[name].report)
                tell()
            else:
                results.append(make_shard(plan, items, out_dir / name, watch))
                files.write_json(_result_path(out_dir, name), results[-1].to_json())
            if plan.strict:
                shown.require_usable(manifest.path, strict=True)
        return Job(*finish(manifest, out_dir, plan, results), len(shards) - len(standing))


@contextlib.contextmanager
def owned(out_dir: Path) -> Iterator[None]:
    """Make a folder if it is not there, and be the only process in it; an empty one is removed again at the end.

    Raises:
      MoshijaxError: it cannot be made, or another process works in it.
    """
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.cannot_write(out_dir, error) from error
    try:
        with lock.inside(out_dir):
            yield
    finally:
        with contextlib.suppress(OSError):
            out_dir.rmdir()


def begin(manifest: Manifest, out_dir: Path, plan: ShardPlan) -> dict[str, ShardResult]:
    """Claim a folder for a job.

    Returns:
      By file name, the results of the shards that are complete and whose recordings are what they were.

    Raises:
      ConfigError: the folder holds something else.
      DataError: it holds (the start of) another job, or recordings that it was made of are no longer there.
    """
    done, begun = out_dir / plan.index_name, out_dir / records.BEGUN
    identity = _identity(manifest, plan)
    claim = {"plan": identity, "recordings": [item.id for item in manifest.items]}
    if done.exists():
        old = records.read_index(out_dir, plan.index_name)["plan"]
        known = {result.file: result for result in map(ShardResult.from_json, _read(out_dir / records.SOURCES))}
        ids = [name for result in known.values() for name in result.sources]
    elif begun.exists():
        content = _read(begun)
        old, ids = content["plan"], content["recordings"]
        known = {}
        for name, _ in shards_of(manifest, plan):
            if _result_path(out_dir, name).exists():
                known[name] = ShardResult.from_json(_read(_result_path(out_dir, name)))
    else:
        others = sorted(path.name for path in out_dir.iterdir() if not path.name.startswith("."))
        if others:
            raise ConfigError(f"{out_dir} holds other files, such as {others[0]}: choose a new or empty folder")
        files.write_json(begun, claim)
        return {}
    _require_same(out_dir, old, identity, ids, claim["recordings"])
    standing = _standing(manifest, out_dir, plan, known)
    if done.exists() and len(standing) < len(shards_of(manifest, plan)):
        for result in known.values():
            files.write_json(_result_path(out_dir, result.file), result.to_json())
        files.write_json(begun, claim)
        done.unlink()
    return standing


def _require_same(
    out_dir: Path, old: dict[str, Any], new: dict[str, Any], old_ids: Sequence[str], new_ids: Sequence[str]
) -> None:
    """Raise DataError where two jobs differ."""
    remedy = "choose another folder, or delete this one"
    for key in new:
        if old.get(key) == new[key]:
            continue
        if key != RECORDINGS:
            raise DataError(
                f"{out_dir} was made with {key} = {str(old.get(key))[:100]!r}, now it is {str(new[key])[:100]!r}: "
                f"{remedy}"
            )
        added, removed = sorted(set(new_ids) - set(old_ids)), sorted(set(old_ids) - set(new_ids))
        parts = [f"{sources.listed(names)} {what}" for names, what in ((added, "added"), (removed, "removed")) if names]
        raise DataError(
            f"{out_dir} was made of other recordings: "
            f"{' and '.join(parts) or 'the same in another order, or with other suffixes or durations'}; {remedy}"
        )


def _standing(
    manifest: Manifest, out_dir: Path, plan: ShardPlan, known: dict[str, ShardResult]
) -> dict[str, ShardResult]:
    """Return the known results whose shards are there and whose recordings are what they were."""
    standing, gone = {}, []
    for name, items in shards_of(manifest, plan):
        if name not in known or not (out_dir / name).exists():
            continue
        seen = known[name].sources
        changed = [
            file for item in items for file in plan.reads(item) if not sources.is_same(file, seen[item.id][file.name])
        ]
        gone += [file for file in changed if not file.exists()]
        if not changed:
            standing[name] = known[name]
    if gone:
        raise DataError(
            f"files that {out_dir} was made of are no longer there: {sources.listed(map(str, gone))}; put them back, "
            "or make the rest in another folder"
        )
    return standing


def finish(
    manifest: Manifest, out_dir: Path, plan: ShardPlan, results: Sequence[ShardResult]
) -> tuple[dict[str, Any], Report]:
    """Write the index over the results of all shards, in order.

    Raises:
      DataError: nothing is usable, or a strict plan met a rejected item.
    """
    report = Report()
    for result in results:
        report.merge(result.report)
    report.require_usable(manifest.path, strict=plan.strict)
    identity = _identity(manifest, plan)
    shards = [{"file": r.file, "records": len(r.notes), "sha256": r.sha256, plan.noted: list(r.notes)} for r in results]
    index = {
        "format_version": records.FORMAT_VERSION,
        "moshijax": moshijax.__version__,
        "plan": identity,
        "shards": shards,
        "report": report.to_json(),
        "sha256": records.digest(identity, shards),
        **plan.about(),
    }
    files.write_json(out_dir / records.SOURCES, [result.to_json() for result in results])
    files.write_json(out_dir / plan.index_name, index)
    for path in [*(_result_path(out_dir, result.file) for result in results), out_dir / records.BEGUN]:
        path.unlink(missing_ok=True)
    return index, report


def recordings_sha256(manifest: Manifest) -> str:
    """Return what two manifests have in common that name the same recordings in the same order."""
    return records.digest([[item.id, item.audio.suffix, item.duration] for item in manifest.items])


def _identity(manifest: Manifest, plan: ShardPlan) -> dict[str, Any]:
    """Return what must be equal for two jobs to be the same, as JSON gives it back."""
    found = {
        **plan.deciding(),
        "shard_items": plan.shard_items,
        "strict": plan.strict,
        RECORDINGS: recordings_sha256(manifest),
        "format_version": records.FORMAT_VERSION,
    }
    return json.loads(json.dumps(found))


def _result_path(out_dir: Path, shard: str) -> Path:
    return (out_dir / shard).with_suffix(".report.json")


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): copy the folder again, or choose another one") from error
