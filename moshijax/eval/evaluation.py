"""The contract of an evaluation: settings that run and return results, and the one writer of what they give.

An evaluation is a frozen dataclass with a method `run`, in a file of its own in this folder; a recipe names it:

    evaluation.EvaluationConfig.evaluation = @codec.CodecEvaluation()
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import moshijax
from moshijax import files, optional
from moshijax.errors import MoshijaxError
from moshijax.eval import bootstrap
from moshijax.report.page import Page

RESULTS, REPORT = "results.json", "report.html"

#: Told how far a piece of work is: (done, total, note); total None where it is unknown.
ProgressFn = Callable[[float, float | None, str], None]
#: Draws one part of a report; called when the page is written.
Section = Callable[[Page], None]


def silent(done: float, total: float | None = None, note: str = "") -> None:
    """Ignore the progress."""


@dataclass
class Results:
    """What an evaluation found.

    Attributes:
      title: of the report.
      lead: the sentence below the title.
      values: figures by name, `group/figure`.
      notes: what was not measured and why, and other remarks that belong to the figures.
      sections: parts of the report, in order.
      provenance: what the figures depend on: hashes of model and data, the version of the code, settings, sampling,
        and versions of judges; made of JSON values.
      calls: of figures that are quotients of sums over calls, what every call adds to both sums: name -> call ->
        (numerator, denominator). They get a confidence interval, and can be compared with another model's.
    """

    title: str
    lead: str = ""
    values: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    calls: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)

    def add(self, name: str, calls: Mapping[str, tuple[float, float]]) -> None:
        """Add a figure by its calls; none where the denominator of all together is 0: there is nothing to measure."""
        calls = {call: (float(above), float(below)) for call, (above, below) in calls.items()}
        if sum(below for _, below in calls.values()):
            self.calls[name] = calls
            self.values[name] = bootstrap.quotient(list(calls.values()))

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """The ends of the confidence interval of every figure whose calls are known (`moshijax.eval.bootstrap`)."""
        return {name: bootstrap.interval(np.array(list(calls.values()))) for name, calls in self.calls.items()}


class Evaluation(abc.ABC):
    """Settings of an evaluation; subclasses are frozen dataclasses."""

    @abc.abstractmethod
    def run(self, out: Path, progress: ProgressFn = silent) -> Results:
        """Measure.

        Args:
          out: an existing folder for files beside the report, such as recordings.
          progress: told how far the evaluation is.

        Raises:
          ConfigError: the settings do not fit the model.
          DataError: model or data cannot be used.
        """

    def provenance(self, model: str, data: dict[str, str], judges: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
        """Return what identifies a result.

        Args:
          model: sha256 of the model.
          data: name of each set of data -> its sha256.
          judges: packages whose verdict the figures are; those that are not installed gave none.
          **more: whatever else the figures depend on, such as sampling.
        """
        return {
            "code": code(),
            "model": model,
            "data": data,
            "judges": {name: version for name in judges if (version := _version(name))},
            **more,
            "settings": {"evaluation": type(self).__name__, **dataclasses.asdict(self)},
        }


@dataclass(frozen=True)
class EvaluationConfig:
    """Root of a recipe for `moshijax eval`.

    Attributes:
      evaluation: what is measured, and on what.
    """

    evaluation: Evaluation


def run(evaluation: Evaluation, out: Path, progress: ProgressFn = silent) -> Results:
    """Run an evaluation and write `results.json` and `report.html` into a folder, which is created.

    Raises:
      MoshijaxError: the folder or a file cannot be written.
      MissingPackage: matplotlib is not installed; `results.json` is there all the same.
      ConfigError, DataError: as the evaluation raises them.
    """
    _create(out)
    results = evaluation.run(out, progress)
    save(results, out)
    return results


def save(results: Results, out: Path) -> None:
    """Write `results.json` and `report.html` into a folder, which is created; errors as in `run`."""
    _create(out)
    content = {"values": results.values, "intervals": results.intervals, "notes": results.notes}
    content |= {"provenance": results.provenance, "calls": results.calls}
    files.write_json(out / RESULTS, content)
    write_page(results, out / REPORT)


def _create(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MoshijaxError(f"cannot create {out}: {error.strerror}; choose another folder") from None


def write_page(results: Results, path: Path) -> None:
    """Write the page of results: their sections, then intervals, notes and provenance.

    Raises:
      MissingPackage: matplotlib is not installed.
      MoshijaxError: the file cannot be written.
    """
    optional.load("matplotlib")
    page = Page(results.title, results.lead)
    for draw in results.sections:
        draw(page)
    if results.calls:
        page.section("How certain", f"{bootstrap.LEVEL:.0%} intervals, from calls drawn again with replacement.")
        page.table(
            ("figure", "value", "from", "to", "calls"),
            [
                (name, *(f"{x:.4g}" for x in (results.values[name], low, high)), len(results.calls[name]))
                for name, (low, high) in results.intervals.items()
            ],
        )
    if results.notes:
        page.section("Notes")
    for note in results.notes:
        page.text(note)
    if results.provenance:
        page.section("Provenance", "What these figures depend on; results.json holds the same.")
        page.table(("", "", ""), _rows(results.provenance))
    page.write(path)


def _rows(provenance: dict[str, Any]) -> list[tuple[str, str, str]]:
    rows = []
    for name, value in provenance.items():
        parts = value.items() if isinstance(value, dict) else [("", value)]
        rows += [("" if n else name, part, str(entry)) for n, (part, entry) in enumerate(parts)]
    return rows


@functools.cache
def code() -> str:
    """Return the version of this package, and the sha256 of its source files: names and contents."""
    folder, state = Path(moshijax.__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        content = path.read_bytes()
        state.update(f"{path.relative_to(folder).as_posix()} {len(content)}\n".encode() + content)
    return f"moshijax {moshijax.__version__}, sha256 {state.hexdigest()}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
