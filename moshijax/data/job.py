"""Long jobs over the recordings of a manifest, shard by shard: resumable, and nothing half-written looks finished.

A shard is the unit of work, and `make_shard` makes one: a function of a plan and some items that returns by value, in
whatever process it runs. `run_job` is the local runner. Another one, such as Beam, maps `make_shard` over `shards_of`
and hands the results to `finish`; shards and index are the same.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import moshijax
from moshijax import files
from moshijax.data import records
from moshijax.data.checks import CheckedItem, Report
from moshijax.data.manifest import Item, Manifest
from moshijax.errors import DataError

Record = dict[str, Any]
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
    def make(self, items: Sequence[Item]) -> Iterator[CheckedItem | Record]:
        """Yield the finding of every item, and the records of the usable ones, each in the order of the items."""

    @abstractmethod
    def note(self, record: Record) -> Any:
        """Return what the index lists of a record, a JSON value."""


@dataclass(frozen=True)
class ShardResult:
    """What one shard holds.

    Attributes:
      file: its name.
      notes: `ShardPlan.note` of every record, in order.
      report: of the items that went in.
    """

    file: str
    notes: tuple[Any, ...]
    report: Report

    def to_json(self) -> dict[str, Any]:
        """Return a form that JSON can hold."""
        return {"file": self.file, "notes": list(self.notes), "report": self.report.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ShardResult:
        """Return the inverse of `to_json`."""
        return cls(data["file"], tuple(data["notes"]), Report.from_json(data["report"]))


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
      watch: told of every item, for whoever shows progress; everything that counts is in the result.

    Raises:
      MoshijaxError: the shard cannot be written.
    """
    report, notes = Report(), []

    def content() -> Iterator[Record]:
        for made in plan.make(items):
            if isinstance(made, CheckedItem):
                report.add(made)
                if watch is not None:
                    watch(made)
            else:
                notes.append(plan.note(made))
                yield made

    path.unlink(missing_ok=True)
    records.write_shard(path, content())
    return ShardResult(path.name, tuple(notes), report)


def run_job(
    manifest: Manifest, out_dir: Path, plan: ShardPlan, progress: Progress | None = None
) -> tuple[dict[str, Any], Report]:
    """Make all shards in this process, and at last the index that binds them; complete shards are kept.

    Args:
      manifest: of the recordings.
      out_dir: folder of shards and index.
      plan: how they are made.
      progress: called after every item.

    Returns:
      The index `{format_version, moshijax, plan, shards, report, sha256, ...}`, and the report of accepted and rejected
      items.

    Raises:
      DataError: nothing is usable, a strict plan met a rejected item, or `out_dir` holds (the start of) another job.
      MoshijaxError: a file cannot be written.
    """
    finished = begin(manifest, out_dir, plan)
    if finished is not None:
        return finished, Report.from_json(finished["report"])
    shown, results = Report(), []

    def watch(checked: CheckedItem) -> None:
        shown.add(checked)
        if progress is not None:
            progress(shown.items, len(manifest.items), shown)

    for name, items in shards_of(manifest, plan):
        path = out_dir / name
        state = path.with_suffix(".report.json")
        # A shard without its result is written again.
        if path.exists() and state.exists():
            results.append(ShardResult.from_json(json.loads(state.read_text(encoding="utf-8"))))
            shown.merge(results[-1].report)
            if progress is not None:
                progress(shown.items, len(manifest.items), shown)
        else:
            results.append(make_shard(plan, items, path, watch))
            files.write_json(state, results[-1].to_json())
        if plan.strict:
            shown.require_usable(manifest.path, strict=True)
    return finish(manifest, out_dir, plan, results)


def begin(manifest: Manifest, out_dir: Path, plan: ShardPlan) -> dict[str, Any] | None:
    """Claim a folder for a job.

    Returns:
      The index if this job is finished already.

    Raises:
      DataError: the folder holds (the start of) another job.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    done, begun = out_dir / plan.index_name, out_dir / records.BEGUN
    new, index = _identity(manifest, plan), None
    if done.exists():
        index = records.read_index(out_dir, plan.index_name)
        old, where = index["plan"], done
    elif begun.exists():
        old, where = json.loads(begun.read_text(encoding="utf-8")), begun
    else:
        files.write_json(begun, new)
        return None
    for key in new:
        if old.get(key) != new[key]:
            raise DataError(
                f"{where} was made with {key} = {str(old.get(key))[:100]!r}, now it is {str(new[key])[:100]!r}: "
                "choose another folder, or delete this one"
            )
    return index


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
    shards = [{"file": result.file, "records": len(result.notes), plan.noted: list(result.notes)} for result in results]
    index = {
        "format_version": records.FORMAT_VERSION,
        "moshijax": moshijax.__version__,
        "plan": identity,
        "shards": shards,
        "report": report.to_json(),
        "sha256": records.digest(identity, shards),
        **plan.about(),
    }
    files.write_json(out_dir / plan.index_name, index)
    for path in [*out_dir.glob("shard-*.report.json"), out_dir / records.BEGUN]:
        path.unlink(missing_ok=True)
    return index, report


def _identity(manifest: Manifest, plan: ShardPlan) -> dict[str, Any]:
    """Return what must be equal for two jobs to be the same, as JSON gives it back."""
    found = {
        **plan.deciding(),
        "shard_items": plan.shard_items,
        "strict": plan.strict,
        "manifest_sha256": manifest.sha256,
        "format_version": records.FORMAT_VERSION,
    }
    return json.loads(json.dumps(found))
