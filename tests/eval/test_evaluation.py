"""The contract of evaluations: what a recipe may name, and what is written."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import pytest

from moshijax.errors import MoshijaxError
from moshijax.eval import evaluation
from moshijax.eval.evaluation import Evaluation, Results


@dataclass(frozen=True)
class Counting(Evaluation):
    """Counts to `top`."""

    top: int = 3

    def run(self, out, progress=evaluation.silent):
        for number in range(self.top):
            progress(number + 1, self.top, "numbers")
        results = Results("Counting", values={"top": float(self.top)}, notes=["slowly"])
        results.sections.append(lambda page: page.section("Numbers", "1, 2, 3"))
        results.provenance = self.provenance("abc", {"numbers": "def"}, judges=("numpy", "no-such-package"))
        return results


def test_results_and_page_are_written(tmp_path):
    told = []
    evaluation.run(Counting(2), tmp_path / "new" / "out", lambda done, total, note: told.append((done, total, note)))
    assert told == [(1, 2, "numbers"), (2, 2, "numbers")]
    found = json.loads((tmp_path / "new" / "out" / "results.json").read_text())
    assert found["values"] == {"top": 2.0} and found["notes"] == ["slowly"]
    assert found["provenance"]["settings"] == {"evaluation": "Counting", "top": 2}
    assert list(found["provenance"]["judges"]) == ["numpy"]
    assert re.fullmatch(r"moshijax \S+, sha256 [0-9a-f]{64}", found["provenance"]["code"])
    page = (tmp_path / "new" / "out" / "report.html").read_text()
    assert "<h2>Numbers</h2>" in page and "slowly" in page and "def" in page


def test_a_folder_that_cannot_be_made_is_one_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(MoshijaxError, match="cannot create"):
        evaluation.run(Counting(), tmp_path / "file" / "out")


RECIPES = {
    "another class": "evaluation.EvaluationConfig.evaluation = @codec.MimiConfig()",
    "unknown field": "codec.CodecEvaluation.clip = 3",
    "unknown class": "evaluation.EvaluationConfig.evaluation = @codec.CodecEvaluatoin()",
    "no evaluation": "codec.CodecEvaluation.clips = 3",
}
TOLD = {
    "another class": "takes Evaluation",
    "unknown field": "did you mean 'clips'",
    "unknown class": "did you mean 'CodecEvaluation'",
    "no evaluation": "evaluation has no value",
}


@pytest.mark.parametrize("fault", RECIPES)
def test_a_faulty_recipe_is_one_line_and_exit_code_2(fault, tmp_path, cli):
    recipe = tmp_path / "recipe.gin"
    recipe.write_text(
        "from __gin__ import dynamic_registration\nfrom moshijax.eval import codec\n"
        "from moshijax.eval import evaluation\n" + RECIPES[fault] + "\n"
    )
    code, _, err = cli("eval", recipe, "--out", tmp_path / "out")
    assert code == 2 and err.count("\n") == 1 and TOLD[fault] in err, err
    assert not (tmp_path / "out").exists()


def test_a_training_recipe_is_no_evaluation(tmp_path, cli):
    code, _, err = cli("eval", "quickstart/moshi.gin", "--out", tmp_path / "out")
    assert code == 2 and err.count("\n") == 1 and "evaluation has no value" in err
