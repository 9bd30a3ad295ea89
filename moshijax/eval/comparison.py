"""Two models side by side: the results of the same evaluations on the same data, and how certain a difference is.

Before and after a fine-tuning or a quantisation are two models too: what the second does worse is what was lost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moshijax import files
from moshijax.config_json import from_json
from moshijax.errors import ConfigError, DataError
from moshijax.eval import bootstrap
from moshijax.eval.evaluation import RESULTS, Results, code

if TYPE_CHECKING:
    from moshijax.report.page import Page

_CARDS = 6
_FIELDS = {
    "values": dict[str, float],
    "notes": tuple[str, ...],
    "provenance": dict[str, Any],
    "calls": dict[str, dict[str, tuple[float, float]]],
}


@dataclass(frozen=True)
class Difference:
    """One figure of both models.

    Attributes:
      name: of the figure; of the evaluation first, where there are several.
      first, second: its values; NaN where a model has none.
      low, high: ends of the interval of `second - first`; NaN where the calls are not known.
      calls: that both models were measured on.
    """

    name: str
    first: float
    second: float
    low: float = math.nan
    high: float = math.nan
    calls: int = 0

    @property
    def certain(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


def compare(first: Path, second: Path) -> Results:
    """Compare two folders that `moshijax eval` wrote, or two folders that hold such folders under the same names.

    Values are `<figure>/first`, `/second` and `/difference`, and the interval of the difference, of calls drawn again
    together, `/low` and `/high`.

    Raises:
      DataError: a folder has no results, or they are of other evaluations, data or judges.
    """
    found: list[Difference] = []
    notes: list[str] = []
    provenance: dict[str, Any] = {"code": code()}
    for name, (one, other) in _pairs(first, second).items():
        notes += _check(name, one, other)
        found += _differences(name, one, other)
        for side, read in (("first", one), ("second", other)):
            provenance.setdefault(side, {})[name or "model"] = read["provenance"].get("model", "")
        provenance.setdefault("data", {})[name or "all"] = one["provenance"].get("data", {})
        provenance.setdefault("judges", {})[name or "all"] = one["provenance"].get("judges", {})
    results = Results(
        f"{first} and {second}", "The second against the first, on the same calls.", notes=notes, provenance=provenance
    )
    for one in found:
        parts = {"first": one.first, "second": one.second, "difference": one.second - one.first}
        parts |= {"low": one.low, "high": one.high}
        results.values |= {f"{one.name}/{part}": value for part, value in parts.items() if math.isfinite(value)}
    results.sections.append(partial(_draw, found=found))
    return results


def _pairs(first: Path, second: Path) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Evaluation -> its results of both; "" if the folders are of one evaluation."""
    folders = [results_in(folder) for folder in (first, second)]
    for here, there, where, other in ((*folders, first, second), (*folders[::-1], second, first)):
        if lone := sorted(set(here) - set(there)):
            what = ", ".join(name or "results.json itself" for name in lone)
            raise DataError(f"{where} has {what}, {other} has not: evaluate both models alike, in folders of one name")
    return {name: (read_results(folders[0][name]), read_results(folders[1][name])) for name in folders[0]}


def results_in(folder: Path) -> dict[str, Path]:
    """Return evaluation -> its results in a folder of such folders; "" for the results that lie in the folder itself.

    Raises:
      DataError: there are none.
    """
    if (folder / RESULTS).is_file():
        return {"": folder / RESULTS}
    found = {path.parent.name: path for path in sorted(folder.glob(f"*/{RESULTS}"))}
    if not found:
        raise DataError(f"{folder} has no {RESULTS}: give a folder that moshijax eval wrote, or one of such folders")
    return found


def read_results(path: Path) -> dict[str, Any]:
    """Return the values, notes, provenance and calls of a results.json.

    Raises:
      DataError: it cannot be read, or this version did not write it.
    """
    read = files.read_json(path, "results")
    try:
        if not isinstance(read, dict) or (absent := [name for name in _FIELDS if name not in read]):
            raise ConfigError(f"it has no {', '.join(absent) if isinstance(read, dict) else 'fields'}")
        return {name: from_json(hint, read[name], name) for name, hint in _FIELDS.items()}
    except ConfigError as error:
        raise DataError(f"{path} is not what this version writes ({error}): run the evaluation again") from None


def _check(name: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Refuse what cannot be compared; return notes about what differs beside the model."""
    what = f"{name}: " if name else ""
    first, second = one["provenance"], other["provenance"]
    settings = [dict(read.get("settings", {})) for read in (first, second)]
    kinds = [read.pop("evaluation", None) for read in settings]
    if kinds[0] != kinds[1]:
        raise DataError(f"{what}results of {kinds[0]} and of {kinds[1]} cannot be compared; give two of one evaluation")
    for part, remedy in (
        ("data", "evaluate both on the same data"),
        ("judges", "evaluate both with the same packages"),
    ):
        here, there = (read.get(part, {}) for read in (first, second))
        if differs := [key for key in {**here, **there} if here.get(key) != there.get(key)]:
            key = differs[0]
            raise DataError(
                f"{what}{part} differ in {key} ({_short(here.get(key))} and {_short(there.get(key))}): {remedy}"
            )
    notes = [f"{what}{note} (first)" for note in one["notes"]] + [f"{what}{note} (second)" for note in other["notes"]]
    for part, here, there in (
        ("settings", *settings),
        ("sampling", first.get("sampling") or {}, second.get("sampling") or {}),
        ("versions", {"code": first.get("code")}, {"code": second.get("code")}),
    ):
        differs = [f"{k} {here.get(k)} and {there.get(k)}" for k in {**here, **there} if here.get(k) != there.get(k)]
        if differs:
            notes.append(f"{what}{part} differ: {'; '.join(differs)}")
    return notes


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) > 16 else text


def _differences(name: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> list[Difference]:
    found = []
    for figure in {**one["values"], **other["values"]}:
        label = f"{name}/{figure}" if name else figure
        first, second = (read["values"].get(figure, math.nan) for read in (one, other))
        parts = [read["calls"].get(figure, {}) for read in (one, other)]
        shared = [call for call in parts[0] if call in parts[1]]
        low = high = math.nan
        if shared and len(shared) == len(parts[0]) == len(parts[1]):
            low, high = bootstrap.difference(*(np.array([part[call] for call in shared]) for part in parts))
        found.append(Difference(label, first, second, low, high, len(shared)))
    return found


def _draw(page: Page, found: list[Difference]) -> None:
    from moshijax.report import plots

    certain = sorted((one for one in found if one.certain), key=lambda one: -_surely(one))
    page.cards(
        (f"{one.first:.4g} → {one.second:.4g}", one.name, f"{one.low:+.3g} to {one.high:+.3g}", None)
        for one in certain[:_CARDS]
    )
    page.section(
        "Figures",
        f"The second minus the first, with the {bootstrap.LEVEL:.0%} interval over the calls, drawn again for both "
        "together. An interval that leaves 0 out is marked. Whether more is better depends on the figure.",
    )
    page.table(
        ("figure", "first", "second", "difference", "from", "to", "calls", ""),
        [
            (one.name, *map(_shown, (one.first, one.second, one.second - one.first, one.low, one.high)),
             one.calls or "-", "differs" if one.certain else "")
            for one in found
        ],
    )  # fmt: skip
    known = [one for one in found if math.isfinite(one.low)]
    if known:
        page.section("How certain", "Differences in units of half their interval: beyond the lines they are certain.")
        figure, axes = plots.new_figure(11, 0.8 + 0.28 * len(known))
        ax = axes[0, 0]
        for row, one in enumerate(known):
            at = math.copysign(_surely(one), one.second - one.first)
            ax.plot([at], [-row], "o", color=plots.COLOURS[0] if one.certain else plots.SOFT)
        ax.set_yticks(-np.arange(len(known)), [one.name for one in known])
        for at in (-1, 0, 1):
            ax.axvline(at, color=plots.INK if at == 0 else plots.LINE, linewidth=1)
        ax.set_xlim(-5.2, 5.2)
        page.figure(figure, "To the left the second has less of a figure, to the right more.")


def _surely(one: Difference) -> float:
    """The difference in half intervals, at most 5."""
    half = (one.high - one.low) / 2
    return min(5.0, abs(one.second - one.first) / half) if half else 5.0 * (one.second != one.first)


def _shown(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "-"
