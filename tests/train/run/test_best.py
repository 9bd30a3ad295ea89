"""Which checkpoints stay: the newest and the best, whatever interrupts the run."""

from __future__ import annotations

import dataclasses
import json
import os
import signal

import pytest

from moshijax.errors import ConfigError, Stopped
from moshijax.train.loop import train
from moshijax.train.run.best import Best
from tests.train.test_loop import EXPERIMENT, Crash, assert_bit_equal, at_step, crash, numbers, state_at

KEEPING = dataclasses.replace(EXPERIMENT, eval_every=8, checkpoint_every=10, keep_checkpoints=1, keep_best="eval/score")
SCORES = {8: 0.2, 16: 0.7, 24: 0.5, 32: 0.7, 40: float("nan")}


def score(snapshot) -> dict[str, float]:
    return {"eval/score": SCORES[snapshot.step]}


def kept(run_dir) -> list[int]:
    return sorted(int(path.name) for path in (run_dir / "checkpoints").iterdir() if path.name.isdecimal())


def best(run_dir) -> dict:
    newest = run_dir / "checkpoints" / str(kept(run_dir)[-1])
    return json.loads((newest / "meta" / "metadata").read_text())["best"]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("best") / "run"
    train(KEEPING, run_dir, evaluators=[score])
    return run_dir


def test_the_best_stays_beside_the_newest(whole_run) -> None:
    """Of equal ones the first; a value that is no number is never the best."""
    assert kept(whole_run) == [16, 40] and best(whole_run) == {"metric": "eval/score", "step": 16, "value": 0.7}


def test_the_least_may_be_the_best(run_dir) -> None:
    train(dataclasses.replace(KEEPING, best_is="min"), run_dir, evaluators=[score])
    assert kept(run_dir) == [8, 40] and best(run_dir)["value"] == 0.2
    assert Best("x", 1, -1.0).beats(None, "max") and not Best("x", 1, -1.0).beats(Best("x", 0, -1.0), "min")


@pytest.mark.parametrize("step", [9, 17, 27])
def test_an_interruption_changes_no_choice(whole_run, run_dir, step) -> None:
    with pytest.raises(Crash):
        train(KEEPING, run_dir, evaluators=[score], progress=at_step(step, crash))
    train(KEEPING, run_dir, evaluators=[score])
    assert kept(run_dir) == kept(whole_run) and best(run_dir) == best(whole_run)
    assert_bit_equal(state_at(whole_run, 16), state_at(run_dir, 16))
    assert numbers(run_dir) == numbers(whole_run)


def test_a_stop_within_the_last_evaluation_changes_no_choice(run_dir) -> None:
    stops = [40]

    def last_is_best(snapshot) -> dict[str, float]:
        if snapshot.step in stops:
            stops.clear()
            os.kill(os.getpid(), signal.SIGTERM)
        return {"eval/score": float(snapshot.step)}

    def other(snapshot) -> dict[str, float]:
        return {}

    with pytest.raises(Stopped, match="after 40 steps"):
        train(KEEPING, run_dir, evaluators=[last_is_best, other])
    assert kept(run_dir) == [32, 40] and best(run_dir)["step"] == 32
    train(KEEPING, run_dir, evaluators=[last_is_best, other])
    assert kept(run_dir)[-1] == 40 and best(run_dir)["step"] == 40


def test_a_metric_that_nothing_measures_is_named_and_nothing_is_lost(run_dir) -> None:
    with pytest.raises(ConfigError, match="keep_best is 'eval/score', but the evaluations have eval/error, eval/loss"):
        train(KEEPING, run_dir)
    assert kept(run_dir) == [8]
