"""`moshijax train` as a process that is killed at chosen points and started again."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from moshijax import config
from moshijax.train.experiment import ExperimentConfig
from moshijax.weights.run_files import read_metrics
from tests.train.support.models import lm_experiment, write_lm_data
from tests.train.test_loop import assert_bit_equal, numbers, state_at

ROOT = Path(__file__).resolve().parents[2]
PARTIAL = "*.orbax-checkpoint-tmp*"


def write_recipe(folder: Path, steps: int) -> ExperimentConfig:
    """A small language model on made-up data; text steps, and a checkpoint every five steps."""
    write_lm_data(folder)
    experiment = lm_experiment(folder, steps=steps, log_every=1)
    (folder / "recipe.gin").write_text(config.dump(experiment))
    return experiment


def start(folder: Path, run_dir: Path, *options: str, **process) -> subprocess.Popen:
    recipe = str(folder / "recipe.gin")
    command = [sys.executable, "-m", "moshijax.cli.main", "train", recipe, "--run-dir", str(run_dir)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen([*command, *options], cwd=ROOT, **pipes, **process)


def finish(process: subprocess.Popen) -> tuple[int, str]:
    out, err = process.communicate(timeout=3600)
    return process.returncode, out + err


def wait_for_step(process: subprocess.Popen, run_dir: Path, step: int) -> None:
    """Return when the metrics have reached a step (or the process has ended)."""
    while process.poll() is None:
        path = run_dir / "metrics.jsonl"
        if path.exists() and any(line["step"] >= step for line in read_metrics(path)):
            return
        time.sleep(0.002)


def partial_saves(run_dir: Path) -> set[str]:
    return {path.name for path in (run_dir / "checkpoints").glob(PARTIAL)}


def wait_for_save(process: subprocess.Popen, run_dir: Path) -> None:
    """Return when a new checkpoint is being written (or the process has ended)."""
    before = partial_saves(run_dir)
    while process.poll() is None and not partial_saves(run_dir) - before:
        time.sleep(0.0005)


def complete_steps(run_dir: Path) -> list[int]:
    return sorted(int(path.name) for path in (run_dir / "checkpoints").glob("*") if path.name.isdigit())


def kill_once(folder: Path, run_dir: Path, while_saving: bool, chance: random.Random) -> str | None:
    """Start or continue the run, and kill it at a random point of its next steps, or while it saves.

    Returns:
      what was interrupted, or None if the process ended before the kill.
    """
    done = (complete_steps(run_dir) or [0])[-1]
    process = start(folder, run_dir)
    if while_saving:
        wait_for_save(process, run_dir)
        time.sleep(chance.uniform(0, 0.02))
    else:
        wait_for_step(process, run_dir, done + chance.randint(1, 9))
        time.sleep(chance.uniform(0, 0.02))
    process.send_signal(signal.SIGKILL)
    if finish(process)[0] != -signal.SIGKILL:
        return None
    lines = read_metrics(run_dir / "metrics.jsonl") if (run_dir / "metrics.jsonl").exists() else []
    where = f"after step {max((line['step'] for line in lines), default=0)}"
    return where + (", in a save" if partial_saves(run_dir) else "")


def assert_same_end(one: Path, two: Path, experiment: ExperimentConfig) -> None:
    """The last states are equal bit for bit, and so are the metrics but for times."""
    assert_bit_equal(state_at(one, experiment.steps, experiment), state_at(two, experiment.steps, experiment))
    assert numbers(one) == numbers(two)
