"""The launchers of tools/launch: what they would run, and a run of two processes over a local stand-in for SSH."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time

import pytest

from moshijax.weights.run_files import read_metrics
from tests.system.killing import ROOT, complete_steps, wait_for_step, write_recipe
from tests.train.support.processes import environment, free_port

LAUNCH = ROOT / "tools" / "launch"
RUN = ["RECIPE.gin", "--run-dir", "/shared/runs/a b"]


def dry(*command: str, **variables: str) -> list[str]:
    done = subprocess.run(
        command, env={**os.environ, "DRY_RUN": "1", **variables}, capture_output=True, text=True, check=True
    )
    return [line for line in done.stdout.splitlines() if line]


def test_slurm_runs_the_same_command_in_every_task():
    (line,) = dry(str(LAUNCH / "slurm.sh"), *RUN)
    words = shlex.split(line)
    assert words[0] == "srun" and "--kill-on-bad-exit=1" in words
    assert words[words.index("moshijax") :] == ["moshijax", "train", *RUN]


def test_xpk_makes_a_workload_of_the_training_command():
    (line,) = dry(str(LAUNCH / "xpk.sh"), "mine", *RUN, CLUSTER="c", IMAGE="i", TPU_TYPE="v5p-128", ZONE="z")
    words = shlex.split(line)
    given = dict(zip(words[3::2], words[4::2], strict=True))
    assert words[:3] == ["xpk", "workload", "create"] and given["--tpu-type"] == "v5p-128" and given["--zone"] == "z"
    assert shlex.split(given["--command"]) == ["moshijax", "train", "--distributed", *RUN]


def test_launchers_without_arguments_explain_themselves():
    for name in ("slurm.sh", "xpk.sh"):
        done = subprocess.run([LAUNCH / name], capture_output=True, text=True)
        assert done.returncode == 2 and f"tools/launch/{name}" in done.stdout


def test_the_ssh_launcher_numbers_the_processes(tmp_path):
    (tmp_path / "hosts.txt").write_text("# two\nann@one\ntwo\n")
    options = [str(tmp_path / "hosts.txt"), "--dry-run", "--directory", "/d e", "--", *RUN]
    lines = dry(sys.executable, str(LAUNCH / "ssh_list.py"), *options)
    for number, (line, name) in enumerate(zip(lines, ("ann@one", "two"), strict=True)):
        *ssh, host, remote = shlex.split(line)
        assert ssh[0] == "ssh" and host == name
        directory, command = remote.split(" && ")
        assert shlex.split(directory) == ["cd", "/d e"]
        own = ["--coordinator", "one:9876", "--processes", "2", "--process", str(number)]
        assert shlex.split(command) == ["moshijax", "train", *own, *RUN]


@pytest.mark.slow
def test_two_processes_over_ssh_survive_a_loss_and_stop_on_a_signal(tmp_path):
    write_recipe(tmp_path, steps=400)
    # Runs the command here, and notes its process number.
    (tmp_path / "ssh").write_text(f'#!/bin/sh\nshift\necho $$ >> {tmp_path}/pids\nexec sh -c "$*"\n')
    (tmp_path / "ssh").chmod(0o755)
    (tmp_path / "hosts.txt").write_text("localhost\nlocalhost\n")
    run_dir = tmp_path / "run"
    command = [sys.executable, str(LAUNCH / "ssh_list.py"), str(tmp_path / "hosts.txt"), "--ssh", str(tmp_path / "ssh")]
    command += ["--moshijax", f"{sys.executable} -m moshijax.cli.main", "--port", str(free_port()), "--restarts", "1"]
    command += ["--set", "GREETING=hello there", "--", str(tmp_path / "recipe.gin"), "--run-dir", str(run_dir)]
    output = (tmp_path / "output").open("w+")
    launcher = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=output, stderr=output, text=True)
    wait_for_step(launcher, run_dir, 12)
    os.kill(int((tmp_path / "pids").read_text().split()[1]), signal.SIGKILL)
    while launcher.poll() is None and "starting it again" not in (tmp_path / "output").read_text():
        time.sleep(0.1)
    wait_for_step(launcher, run_dir, read_metrics(run_dir / "metrics.jsonl")[-1]["step"] + 10)
    launcher.send_signal(signal.SIGTERM)
    code = launcher.wait(timeout=120)
    text = (tmp_path / "output").read_text()
    assert code == 75, text
    assert "[localhost] error: process " in text and "ended without a word and is lost" in text
    assert "starting it again (1 times left)" in text
    assert f"after {complete_steps(run_dir)[-1]} steps, which are saved" in text
