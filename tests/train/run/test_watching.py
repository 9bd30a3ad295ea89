"""What a run shows while it trains: compilations, groups, profiles, pages, Weights & Biases."""

from __future__ import annotations

import dataclasses
import shutil
import sys
import types

import pytest

from moshijax.errors import ConfigError
from moshijax.optional import MissingPackage
from moshijax.report.run import PageWriter, write_run_page
from moshijax.train.experiment import ExperimentConfig, WandbConfig
from moshijax.train.loop import train
from moshijax.train.optimizer import OptimizerConfig, ParameterGroup
from moshijax.train.run.compilations import Compilations
from moshijax.weights.run_files import read_metrics
from tests.train.support.small_task import SmallData, SmallTask

EXPERIMENT = ExperimentConfig(
    task=SmallTask(
        text_data=SmallData(seed=1), text_share=0.5, text_optimizer=OptimizerConfig(), eval_data=SmallData(seed=2)
    ),
    optimizer=OptimizerConfig(
        learning_rate=1e-2, decay="constant", groups=(ParameterGroup("second", "^second/", learning_rate_scale=0.5),)
    ),
    steps=12,
    log_every=2,
    checkpoint_every=6,
    eval_every=6,
    report_every=4,
    profile_steps=(3, 4),
)


BESIDE = ("jit(_threefry_seed)", "jit(stage)", "jit(matrix_product)", "jit(_checksum)")


class Recorder(types.ModuleType):
    """The part of the `wandb` package that a run uses: `init` and, of what it returns, `log` and `finish`."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.runs = []

    def init(self, **settings):
        run = types.SimpleNamespace(settings=settings, lines=[], finished=False)
        run.log = lambda values, step: run.lines.append((step, values))
        run.finish = lambda: setattr(run, "finished", True)
        self.runs.append(run)
        return run


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A run with everything on: its directory, its steps when a page was asked for, and the recorded wandb."""
    run_dir, pages = tmp_path_factory.mktemp("watched") / "run", []

    def report(path):
        write_run_page(path)
        pages.append(path)

    with pytest.MonkeyPatch.context() as patch:
        recorder = Recorder()
        patch.setitem(sys.modules, "wandb", recorder)
        experiment = dataclasses.replace(EXPERIMENT, wandb=WandbConfig("speech", tags=("small",), mode="offline"))
        train(experiment, run_dir, reporter=PageWriter(run_dir, report))
        # A run that resumes in the same directory keeps the same id.
        again = dataclasses.replace(experiment, eval_every=5)
        shutil.rmtree(run_dir / "checkpoints" / "12")
        train(again, run_dir)
    return run_dir, pages, recorder


def lines_of(watched):
    return [line for line in read_metrics(watched[0] / "metrics.jsonl") if "train/loss" in line]


def test_exactly_the_planned_programs_are_compiled(run_dir):
    counts = []

    def progress(done, steps, values):
        counts.extend([values["time/compilations"]] if values else [])

    with Compilations() as compilations:
        train(EXPERIMENT, run_dir, progress=progress)
    planned = ["jit(audio_step)", "jit(text_step)", "jit(init_state)", "jit(eval_loss)"]
    # Beside them a seed becomes a key, the peak of a CPU is measured, and what a checkpoint holds gets its checksums.
    assert [name for name in compilations.names if name not in BESIDE] == planned
    assert counts[0] >= 4 and counts[1:] == [0.0] * 5


def test_gradient_norms_and_rates_of_groups(watched):
    line = lines_of(watched)[0]
    whole, parts = line["train/grad_norm"], [line[f"train/grad_norm/{name}"] for name in ("second", "rest")]
    assert max(parts) < whole < sum(parts)
    assert line["train/learning_rate"] == pytest.approx(0.01)
    assert line["train/learning_rate/rest"] == pytest.approx(0.01)
    assert line["train/learning_rate/second"] == pytest.approx(0.005)
    assert "train_text/grad_norm" in line and not any(name.startswith("train_text/grad_norm/") for name in line)


def test_times_and_utilisation_add_up(watched):
    lines = lines_of(watched)
    assert len(lines) == 6
    assert all(0 <= line["time/data_wait_share"] <= 1 for line in lines)
    assert any("time/evaluate" in line for line in lines)
    assert any("time/save" in values for _, values in watched[2].runs[0].lines)
    assert lines[0]["time/compile"] > 0
    for line in lines:
        parts = [value for name, value in line.items() if name.startswith("throughput/mfu/")]
        assert sum(parts) == pytest.approx(line["throughput/mfu"], rel=1e-5)


def test_the_profile_holds_the_chosen_steps(watched):
    assert len(list((watched[0] / "profile").rglob("*.xplane.pb"))) == 1


def test_the_page_is_written_at_intervals_and_at_the_end(watched):
    run_dir, pages, _ = watched
    assert len(pages) >= 2
    page = (run_dir / "report.html").read_text()
    assert "12 of 12 steps are done" in page and "train/grad_norm/second" in page and "data:image/png" in page


def test_a_page_that_fails_does_not_stop_the_run(run_dir, caplog):
    def broken(path):
        raise OSError("no room")

    plain = dataclasses.replace(EXPERIMENT, profile_steps=(), steps=6)
    train(plain, run_dir, reporter=PageWriter(run_dir, broken))
    assert [r.getMessage() for r in caplog.records if "no report" in r.getMessage()] == ["no report: no room"]


def test_numbers_go_to_weights_and_biases(watched):
    run_dir, _, recorder = watched
    first, second = recorder.runs
    assert first.settings["project"] == "speech" and first.settings["name"] == "run"
    assert first.settings["mode"] == "offline" and first.settings["tags"] == ["small"]
    assert first.settings["config"]["steps"] == 12 and first.settings["dir"] == str(run_dir)
    assert first.settings["id"] == second.settings["id"] and second.settings["resume"] == "allow"
    assert first.finished and second.finished
    logged = {step: values for step, values in first.lines if "train/loss" in values}
    assert sorted(logged) == [2, 4, 6, 8, 10, 12]
    assert any("eval/loss" in values for _, values in first.lines)
    assert [step for step, values in second.lines if "train/loss" in values] == [8, 10, 12]


def test_a_missing_package_names_its_extra(run_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingPackage, match="moshijax\\[wandb\\]"):
        train(dataclasses.replace(EXPERIMENT, wandb=WandbConfig("speech")), run_dir)
    with pytest.raises(ConfigError, match="wandb mode is 'on'"):
        WandbConfig("speech", mode="on")
