"""Shards, the units of long jobs: what one is made of, how it is made in any process, and what it holds.

`make_shard` is a function of a plan and some items that returns by value. Which items fall into which shard follows
from the list of all alone. What is in a bucket (`moshijax.data.buckets`) is fetched item by item.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from moshijax.data import buckets, records, sources
from moshijax.data.findings import CheckedItem, Report

Record = dict[str, Any]


class Work(Protocol):
    """One item of a job: a recording, or a piece of text.

    Attributes:
      id: differs from those of the others.
      identity: what two jobs have in common that are of the same item, JSON values; the pieces of one file share it.
      span: part of its files that it is made of; None: all.
    """

    id: str
    identity: list[Any]
    span: sources.Span

    def at(self, place: Callable[[Path], Path]) -> Self:
        """Return the item with its files elsewhere: `place` says where each is."""
        ...


class WorkList(Protocol):
    """What a job goes through, such as a manifest.

    Attributes:
      path: named in messages.
      items: in order.
    """

    path: Path
    items: Sequence[Work]


@dataclass(frozen=True)
class ShardPlan(ABC):
    """One kind of preparation with its settings; picklable, so that any process can make any of its shards.

    Attributes:
      shard_items: items of one shard; which items fall into which shard follows from the manifest alone.
      strict: a rejected item is an error.
    """

    index_name: ClassVar[str]  # file name of the index, such as dataset.json
    unit: ClassVar[str] = "recordings"  # what the items are, in messages
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
    def reads(self, item: Work) -> Sequence[Path]:
        """Return the files that an item is made of, whether they are there or not."""

    @abstractmethod
    def make(self, items: Iterable[Work]) -> Iterator[CheckedItem | Report | Record]:
        """Yield a finding for every item, and the records of the usable ones, each in the order of the items.

        The finding is a report where an item holds much to judge, such as documents.
        """

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


def shards_of(manifest: WorkList, plan: ShardPlan) -> list[tuple[str, tuple[Work, ...]]]:
    """Return file name and items of every shard."""
    count = math.ceil(len(manifest.items) / plan.shard_items)
    size = plan.shard_items
    return [(records.shard_name(n, count), tuple(manifest.items[n * size : (n + 1) * size])) for n in range(count)]


def make_shard(
    plan: ShardPlan, items: Sequence[Work], path: Path, watch: Callable[[Report], None] | None = None
) -> ShardResult:
    """Write one shard, which appears only when complete.

    Args:
      plan: how.
      items: of which.
      path: of the shard.
      watch: told of the finding of every item, to show progress; everything that counts is in the result.

    Raises:
      MoshijaxError: the shard cannot be written.
    """
    report, notes, seen = Report(), [], {}

    def looked_at(fetched: buckets.Fetched) -> Iterator[Work]:
        # Before it is read: what changes meanwhile differs later.
        for item in items:
            here = fetched(plan.reads(item))
            seen[item.id] = {file.name: sources.look(here(file), item.span) for file in plan.reads(item)}
            yield item.at(here)

    def content(fetched: buckets.Fetched) -> Iterator[Record]:
        for made in plan.make(looked_at(fetched)):
            if isinstance(made, dict):
                notes.append(plan.note(made))
                yield made
                continue
            found = made if isinstance(made, Report) else Report.of(made)
            found.rejected = [(name, fetched.named(reason)) for name, reason in found.rejected]
            report.merge(found)
            if watch is not None:
                watch(found)

    path.unlink(missing_ok=True)
    with buckets.Fetched() as fetched:
        sha256 = records.write_shard(path, content(fetched))
    return ShardResult(path.name, sha256, tuple(notes), report, seen)
