"""All evaluations of one model on one page, with the figures, plots and audio of each."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest

from moshijax.errors import DataError
from moshijax.eval import evaluation
from moshijax.eval.evaluation import Evaluation, Results
from moshijax.eval.gathering import gather
from moshijax.report import plots


@dataclass(frozen=True)
class Heard(Evaluation):
    """A made-up figure with a plot and a clip."""

    right: float

    def run(self, out, progress=evaluation.silent):
        results = Results(f"Heard {self.right}", "A lead.", notes=["no judge"])
        results.add("exact", {f"call-{n}": (n < 10 * self.right, 1) for n in range(10)})
        results.provenance = self.provenance("model", {"calls": "x"})

        def draw(page):
            page.section("Plot")
            page.figure(plots.new_figure(4, 2)[0], "A figure.")
            page.clips([("clip", "note", np.zeros(2400, np.float32))], 24_000)

        results.sections.append(draw)
        return results


@pytest.fixture
def folder(tmp_path):
    for name, right in (("text", 0.9), ("voice", 0.4)):
        evaluation.run(Heard(right), tmp_path / "model" / name)
    return tmp_path / "model"


def test_a_command_gathers_figures_plots_and_audio(folder, tmp_path, cli) -> None:
    code, out, err = cli("eval", "--gather", folder, "--out", tmp_path / "page")
    assert code == 0, err
    found = json.loads((tmp_path / "page" / "results.json").read_text())
    assert found["values"] == {"text/exact": 0.9, "voice/exact": 0.4} and "text/exact 0.9" in out
    low, high = found["intervals"]["voice/exact"]
    assert low < 0.4 < high and found["notes"] == ["text: no judge", "voice: no judge"]
    page = (tmp_path / "page" / "report.html").read_text()
    assert page.count("<audio") == page.count("<img") == 2 and page.count("<article>") == page.count("</article>") == 2
    assert page.count("<main>") == page.count("<style>") == 1 and "Heard 0.4" in page
    assert page.count("<section>") == page.count("</section>")


def test_what_cannot_be_gathered_is_named(folder, tmp_path, cli) -> None:
    with pytest.raises(DataError, match="holds the results of one evaluation"):
        gather(folder / "text")
    with pytest.raises(DataError, match="has no results.json"):
        gather(tmp_path / "nowhere")
    (folder / "text" / "report.html").write_text("<html></html>")
    code, _, err = cli("eval", "--gather", folder, "--out", tmp_path / "page")
    assert code == 3 and "is not a page of this package" in err
    (folder / "voice" / "report.html").unlink()
    with pytest.raises(DataError, match="voice has no report.html"):
        gather(folder)
    code, _, err = cli("eval", "eval/codec.gin", "--gather", folder, "--out", tmp_path / "page")
    assert code == 2 and "--gather reads results and runs nothing, so it takes no recipe" in err
