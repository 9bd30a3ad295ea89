"""One page for one model: the results of several evaluations, with all that their own pages show."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from moshijax.errors import DataError
from moshijax.eval.comparison import read_results, results_in
from moshijax.eval.evaluation import REPORT, Results, code

if TYPE_CHECKING:
    from moshijax.report.page import Page


def gather(folder: Path) -> Results:
    """Gather the results of a folder that holds folders which `moshijax eval` wrote.

    Values are `<evaluation>/<figure>`; the page has the figures of all, then the pages of the evaluations with their
    plots and audio.

    Raises:
      DataError: there are no such folders, or a page or results are missing or damaged.
    """
    found = results_in(folder)
    if "" in found:
        raise DataError(f"{folder} holds the results of one evaluation; give the folder that holds such folders")
    if lone := [name for name, path in found.items() if not path.with_name(REPORT).is_file()]:
        raise DataError(f"{folder / lone[0]} has no {REPORT}: run the evaluation again with matplotlib installed")
    results = Results(f"Evaluations of {folder}", ", ".join(found), provenance={"code": code()})
    for name, path in found.items():
        read = read_results(path)
        results.values |= {f"{name}/{figure}": value for figure, value in read["values"].items()}
        results.calls |= {f"{name}/{figure}": calls for figure, calls in read["calls"].items()}
        results.notes += [f"{name}: {note}" for note in read["notes"]]
        results.provenance[name] = {part: read["provenance"].get(part, "") for part in ("model", "code")}
    results.sections.append(partial(_draw, results=results, pages=[path.with_name(REPORT) for path in found.values()]))
    return results


def _draw(page: Page, results: Results, pages: list[Path]) -> None:
    page.section("Figures", "Of all evaluations; their own pages follow.")
    page.table(("figure", "value"), [(name, f"{value:.4g}") for name, value in results.values.items()])
    for path in pages:
        page.include(path)
