"""Two models side by side: differences with intervals, folders of evaluations, and results that do not go together."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest

from moshijax.errors import DataError
from moshijax.eval import evaluation
from moshijax.eval.comparison import compare
from moshijax.eval.evaluation import Evaluation, Results


@dataclass(frozen=True)
class Answers(Evaluation):
    """Right answers by a made-up model."""

    model: str
    right: float
    calls: int = 60
    data: str = "questions"
    judges: tuple[str, ...] = ("numpy",)

    def run(self, out, progress=evaluation.silent):
        random = np.random.default_rng(0)
        results = Results("Answers", values={"seconds": 10 * self.right, "alone/" + self.model: 1.0})
        results.add("exact", {f"call-{n}": (random.random() < self.right, 1) for n in range(self.calls)})
        results.notes.append("quietly")
        results.provenance = self.provenance(self.model, {"calls": self.data}, self.judges)
        return results


def write(folder, **fields):
    evaluation.run(Answers(**fields), folder)
    return folder


@pytest.fixture
def first(tmp_path):
    return write(tmp_path / "first", model="one", right=0.9)


def test_a_command_puts_two_models_side_by_side(first, tmp_path, cli):
    second = write(tmp_path / "second", model="two", right=0.3)
    code, out, err = cli("eval", "--compare", first, second, "--out", tmp_path / "both")
    assert code == 0, err
    found = json.loads((tmp_path / "both" / "results.json").read_text())
    values = found["values"]
    assert values["exact/difference"] == pytest.approx(values["exact/second"] - values["exact/first"]) and (
        values["exact/low"] < values["exact/difference"] < values["exact/high"] < 0
    )
    assert values["seconds/difference"] == pytest.approx(-6) and "seconds/low" not in values
    assert values["alone/one/first"] == 1 and "alone/one/second" not in values  # empty, not 0
    assert "alone/one/difference" not in values
    assert found["provenance"]["first"] == {"model": "one"} and found["provenance"]["second"] == {"model": "two"}
    assert "settings differ: model one and two; right 0.9 and 0.3" in out and "quietly (second)" in out
    page = (tmp_path / "both" / "report.html").read_text()
    assert "differs" in page and page.count("<img") == 1 and "How certain" in page


def test_a_model_does_not_differ_from_itself(first, tmp_path):
    values = compare(first, write(tmp_path / "again", model="one", right=0.9)).values
    assert values["exact/low"] == values["exact/high"] == values["exact/difference"] == 0


def test_folders_of_evaluations_become_one_page(tmp_path, cli):
    for side, text in (("before", 0.9), ("after", 0.5)):
        write(tmp_path / side / "text", model=side, right=text)
        write(tmp_path / side / "voice", model=side, right=0.8)
    values = compare(tmp_path / "before", tmp_path / "after").values
    assert values["text/exact/high"] < 0 == values["voice/exact/difference"]
    write(tmp_path / "after" / "more", model="after", right=0.8)
    code, _, err = cli("eval", "--compare", tmp_path / "before", tmp_path / "after", "--out", tmp_path / "both")
    assert code == 3 and err.count("\n") == 1 and "has more" in err and "before has not" in err


FAULTS = {
    "data": (dict(data="others"), "data differ in calls .questions and others.: evaluate both on the same data"),
    "judges": (dict(judges=("numpy", "jax")), "judges differ in jax"),
    "fewer calls": (dict(calls=30), None),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_results_of_other_data_or_judges_are_refused(fault, first, tmp_path):
    fields, message = FAULTS[fault]
    second = write(tmp_path / "second", model="two", right=0.3, **fields)
    if message is None:  # no interval, since the calls are not the same
        assert "exact/low" not in compare(first, second).values
        return
    with pytest.raises(DataError, match=message):
        compare(first, second)


def test_results_that_cannot_be_read_are_named(first, tmp_path, cli):
    with pytest.raises(DataError, match="nowhere has no results.json"):
        compare(first, tmp_path / "nowhere")
    old = tmp_path / "old"
    old.mkdir()
    (old / "results.json").write_text('{"values": {}}')
    with pytest.raises(DataError, match="is not what this version writes .it has no notes, provenance, calls"):
        compare(first, old)
    (old / "results.json").write_text('{"values": {"a": "b"}, "notes": [], "provenance": {}, "calls": {}}')
    with pytest.raises(DataError, match="run the evaluation again"):
        compare(first, old)
    code, _, err = cli("eval", "eval/codec.gin", "--compare", first, first, "--out", tmp_path / "x")
    assert code == 2 and "takes no recipe" in err
    code, _, err = cli("eval", "--out", tmp_path / "x")
    assert code == 2 and "no recipe: name one" in err
