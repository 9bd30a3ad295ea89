"""A long job over the recordings of a manifest, shard by shard: resumable, and nothing half-written looks finished.

A shard is the unit of work. Which items fall into which shard follows from the manifest alone, so that a second run
goes on after the last complete shard.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import moshijax
from moshijax.data import records
from moshijax.data.checks import CheckedItem, Report
from moshijax.data.manifest import Item, Manifest
from moshijax.errors import DataError

#: Called with items done, items in all, and the report so far.
Progress = Callable[[int, int, Report], None]
#: Records of some items, in order; the second argument is to be called once with what was found of each item.
Make = Callable[[Sequence[Item], Callable[[CheckedItem], None]], Iterator[dict[str, Any]]]


def run_job(
    manifest: Manifest,
    out_dir: Path,
    index_name: str,
    plan: Mapping[str, Any],
    about: Mapping[str, Any],
    make: Make,
    noted: tuple[str, Callable[[dict[str, Any]], Any]],
    progress: Progress | None = None,
) -> tuple[dict[str, Any], Report]:
    """Writes shards of records, and at last the index that binds them.

    Args:
        index_name: of the index in `out_dir`.
        plan: what decides the records, in JSON; "shard_items" are the items of a shard, and "strict" makes a rejected
            item an error. The manifest's hash is added.
        about: further content of the index.
        make: makes the records of a shard.
        noted: name and value of what the index lists for every record.
        progress: called after every item.

    Returns:
        the index {format_version, moshijax, plan, shards, report, sha256, ...}, and the report of accepted and rejected
        items.

    Raises:
        DataError: nothing is usable, a strict plan met a rejected item, or `out_dir` holds (the start of) another job.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    plan = {**plan, "manifest_sha256": manifest.sha256, "format_version": records.FORMAT_VERSION}
    size, strict, total = plan["shard_items"], plan["strict"], len(manifest.items)
    finished = _begin(out_dir, index_name, plan)
    if finished is not None:
        return finished, Report.from_json(finished["report"])
    key, note = noted
    progress = progress or (lambda done, total, report: None)
    report, shards = Report(), []
    count = math.ceil(total / size)
    for number in range(count):
        path = out_dir / records.shard_name(number, count)
        state = path.with_suffix(".report.json")
        if path.exists() and state.exists():
            saved = json.loads(state.read_text(encoding="utf-8"))
            notes = saved[key]
            report.merge(Report.from_json(saved["report"]))
            progress(report.items, total, report)
        else:
            part, notes = Report(), []

            def found(checked: CheckedItem, part: Report = part) -> None:
                part.add(checked)
                report.add(checked)
                progress(report.items, total, report)

            content = make(manifest.items[number * size : (number + 1) * size], found)
            path.unlink(missing_ok=True)
            records.write_shard(path, _noting(content, note, notes))
            # A shard without its report is written again.
            records.write_json(state, {"report": part.to_json(), key: notes})
        if strict:
            report.require_usable(manifest.path, strict=True)
        shards.append({"file": path.name, "records": len(notes), key: notes})
    report.require_usable(manifest.path, strict=strict)
    index = {
        "format_version": records.FORMAT_VERSION,
        "moshijax": moshijax.__version__,
        "plan": plan,
        "shards": shards,
        "report": report.to_json(),
        "sha256": records.digest(plan, shards),
        **about,
    }
    records.write_json(out_dir / index_name, index)
    for path in [*out_dir.glob("shard-*.report.json"), out_dir / records.BEGUN]:
        path.unlink(missing_ok=True)
    return index, report


def _noting(
    content: Iterator[dict[str, Any]], note: Callable[[dict[str, Any]], Any], notes: list[Any]
) -> Iterator[dict[str, Any]]:
    for record in content:
        notes.append(note(record))
        yield record


def _begin(out_dir: Path, index_name: str, plan: Mapping[str, Any]) -> dict[str, Any] | None:
    """Refuses a folder that holds (the start of) another job; the index of this job if it is done already."""
    done, begun = out_dir / index_name, out_dir / records.BEGUN
    index = None
    if done.exists():
        index = records.read_index(out_dir, index_name)
        old, where = index["plan"], done
    elif begun.exists():
        old, where = json.loads(begun.read_text(encoding="utf-8")), begun
    else:
        records.write_json(begun, plan)
        return None
    new = json.loads(json.dumps(plan))
    for key in new:
        if old.get(key) != new[key]:
            raise DataError(
                f"{where} was made with {key} = {str(old.get(key))[:100]!r}, now it is {str(new[key])[:100]!r}: "
                "choose another folder, or delete this one"
            )
    return index
