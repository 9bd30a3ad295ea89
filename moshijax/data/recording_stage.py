"""A stage over the recordings of a manifest, one after the other: its report, and when it stops.

A recording is the unit of work. What is made of it lies beside it and says what it was made by and of, which is all
that a stage needs to continue; the report is the same whether it was interrupted or not.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from moshijax import files, lock
from moshijax.data.findings import CheckedItem, Report
from moshijax.data.isolation import Isolated
from moshijax.data.manifest import Item, Manifest
from moshijax.errors import DataError

#: Called after every item with items done, items in all, and the report so far.
Progress = Callable[[int, int, Report], None]


def over_recordings(
    manifest: Manifest,
    one: Callable[[Item, Isolated], CheckedItem],
    settings: dict[str, Any],
    report_name: str,
    max_rejected: float,
    progress: Progress | None = None,
) -> Report:
    """Call `one` for every recording, and write a report beside the manifest.

    Args:
      manifest: of the recordings.
      one: makes what is to be made of a recording, decodes it where it is told to, and says what was found.
      settings: that decide the result, JSON values, for the report.
      report_name: of its file.
      max_rejected: share of the recordings; a job with more of them rejected stops.
      progress: see `Progress`.

    Raises:
      DataError: more recordings are rejected than `max_rejected` allows, as soon as this is certain; or all are.
      MoshijaxError: a file cannot be written, or another process works here.
    """
    report, total = Report(), len(manifest.items)
    with lock.inside(manifest.path.parent), Isolated() as isolated:
        try:
            for number, item in enumerate(manifest.items, 1):
                report.add(one(item, isolated))
                if progress is not None:
                    progress(number, total, report)
                _require_few_rejected(report, total, manifest.source, max_rejected)
        finally:
            files.write_json(manifest.path.parent / report_name, {"settings": settings, "report": report.to_json()})
    report.require_usable(manifest.source)
    return report


def _require_few_rejected(report: Report, total: int, where: Path, most: float) -> None:
    rejected = report.items - report.usable
    if rejected > most * total:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(report.kinds.items()))
        raise DataError(
            f"{rejected} of the first {report.items} recordings of {where} ({total} in all) are rejected ({kinds}), "
            f"more than --max-rejected {most:g} allows; the first: {report.rejected[0][1]}"
        )
