"""`moshijax train` as a process that is killed, stopped and run out of disk."""

from __future__ import annotations

import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moshijax import config
from moshijax.train.metrics import read_metrics
from tests.train.models import lm_experiment, write_lm_data
from tests.train.test_loop import assert_bit_equal, numbers, state_at

ROOT = Path(__file__).resolve().parents[2]
STEPS = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("training")
    write_lm_data(path)
    experiment = lm_experiment(path, steps=STEPS, log_every=1)
    (path / "recipe.gin").write_text(config.dump(experiment))
    return path


def start(folder: Path, run_dir: Path, *options: str, **process) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "moshijax.cli.main",
        "train",
        str(folder / "recipe.gin"),
        "--run-dir",
        str(run_dir),
    ]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen([*command, *options], cwd=ROOT, **pipes, **process)


def finish(process: subprocess.Popen) -> tuple[int, str]:
    out, err = process.communicate(timeout=3600)
    return process.returncode, out + err


@pytest.fixture(scope="module")
def whole(folder):
    code, output = finish(start(folder, folder / "whole"))
    assert code == 0, output
    return folder / "whole"


def wait_for_step(process: subprocess.Popen, run_dir: Path, step: int) -> None:
    """Return when the metrics have reached a step (or the process has ended)."""
    while process.poll() is None:
        path = run_dir / "metrics.jsonl"
        if path.exists() and any(line["step"] >= step for line in read_metrics(path)):
            return
        time.sleep(0.002)


def same(one: Path, two: Path, folder: Path) -> None:
    experiment = lm_experiment(folder, steps=STEPS, log_every=1)
    assert_bit_equal(state_at(one, STEPS, experiment), state_at(two, STEPS, experiment))
    assert numbers(one) == numbers(two)


@pytest.mark.slow
def test_killed_at_random_steps_equals_never_stopped(folder, whole):
    run_dir, random_step = folder / "killed", random.Random(0)
    kills = 0
    for low in (1, 15, 30):
        process = start(folder, run_dir)
        wait_for_step(process, run_dir, random_step.randrange(low, low + 15))
        process.send_signal(signal.SIGKILL)
        kills += finish(process)[0] == -signal.SIGKILL
    code, output = finish(start(folder, run_dir))
    assert code == 0, output
    assert kills >= 2
    same(whole, run_dir, folder)


@pytest.mark.slow
def test_terminated_saves_exits_75_and_goes_on(folder, whole):
    run_dir = folder / "terminated"
    process = start(folder, run_dir)
    wait_for_step(process, run_dir, 7)
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == 75, output
    assert "error: stopped by SIGTERM after" in output and "Traceback" not in output
    saved = max(int(path.name) for path in (run_dir / "checkpoints").iterdir() if path.name.isdigit())
    assert f"after {saved} steps" in output
    code, output = finish(start(folder, run_dir))
    assert code == 0, output
    same(whole, run_dir, folder)


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_leaves_complete_checkpoints(folder, whole):
    run_dir = folder / "full"

    def no_large_files():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    code, output = finish(start(folder, run_dir, preexec_fn=no_large_files))
    assert code == 1, output
    # The library that writes the files may complain in its own words, before us or after.
    errors = [line for line in output.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and errors[0].startswith("error: no space left for a checkpoint in"), output
    assert not [path for path in (run_dir / "checkpoints").iterdir() if path.name.isdigit()]
    code, output = finish(start(folder, run_dir))
    assert code == 0, output
    same(whole, run_dir, folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gin.steps=abc"], "steps = 'abc': the field takes int"),
        (["--gin.optimizer.learning_rat=1e-3"], "did you mean 'learning_rate'"),
        (["--gin.task.model.temporal.num_heads=5"], "num_heads=5"),
        (["--rundir", "x"], "unknown argument '--rundir'"),
    ],
)
def test_bad_arguments_exit_2_before_anything_is_written(cli, folder, run_dir, options, message):
    code, out, err = cli("train", folder / "recipe.gin", "--run-dir", run_dir, *options)
    assert code == 2 and message in err and err.count("\n") == 1
    assert not run_dir.exists()


@pytest.mark.slow
def test_another_recipe_in_the_run_directory_exits_2(cli, folder, whole):
    code, out, err = cli("train", folder / "recipe.gin", "--run-dir", whole, "--gin.seed=3")
    assert code == 2
    assert "seed is 0 there, 3 here" in err
