"""Runs of several processes: the same numbers, one end for all, and resuming after a loss."""

from __future__ import annotations

import shutil
import signal
import socket
import time

import numpy as np
import pytest

from moshijax import lock
from moshijax.train.run import hosts
from moshijax.weights.run_files import read_metrics
from tests.train.support.multi_device import SMALL
from tests.train.support.processes import Job
from tests.train.test_loop import assert_bit_equal, numbers, state_at

pytestmark = pytest.mark.slow

SAME = ("train/loss", "train_text/loss", "train/grad_norm", "train/error", "eval/loss")
EVALUATED = dict(eval_every=6, eval_batches=2)


def assert_equal_losses(one, two):
    ours, theirs = (read_metrics(path / "metrics.jsonl") for path in (one, two))
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for a, b in zip(ours, theirs, strict=True):
        for name in SAME:
            assert (name in a) == (name in b)
            if name in a:
                np.testing.assert_allclose(a[name], b[name], rtol=1e-5, err_msg=f"{name} at step {a['step']}")


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A run of one process, with an evaluation and a checkpoint half way."""
    run_dir = tmp_path_factory.mktemp("one") / "run"
    Job(1, run_dir, **EVALUATED).done()
    return run_dir


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """The same by four processes, and what they printed."""
    run_dir = tmp_path_factory.mktemp("four") / "run"
    return run_dir, Job(4, run_dir, **EVALUATED, mesh={"data": 2, "fsdp": 2}).done()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A run of two processes that nothing disturbed."""
    run_dir = tmp_path_factory.mktemp("two") / "run"
    Job(2, run_dir, **EVALUATED).done()
    return run_dir


def test_four_processes_train_like_one_and_the_first_alone_reports(one, four):
    run_dir, ended = four
    assert_equal_losses(run_dir, one)
    assert "step 12/12" in ended[0][1]
    others = [line for _, out, _ in ended[1:] for line in out.splitlines() if line.strip()]
    assert all(line.startswith("[Gloo]") for line in others), others


def test_a_checkpoint_of_four_goes_on_in_one_and_the_reverse(one, four, tmp_path):
    for count, source in ((1, four[0]), (4, one)):
        run_dir = tmp_path / str(count)
        shutil.copytree(source, run_dir)
        shutil.rmtree(run_dir / "checkpoints" / "12")
        ended = Job(count, run_dir, **EVALUATED, mesh={"data": count}).done()
        assert "resumed at step 6" in ended[0][1]
        assert_equal_losses(run_dir, one)


@pytest.mark.parametrize("victim", [1, 0])
def test_a_killed_process_is_named_by_the_other_and_the_job_goes_on_exactly(two, tmp_path, victim):
    run_dir = tmp_path / "run"
    job = Job(2, run_dir, seconds=0.3, **EVALUATED)
    job.wait_for_line(7)
    killed = time.monotonic()
    job.processes[victim].send_signal(signal.SIGKILL)
    job.processes[1 - victim].wait(timeout=60)
    assert time.monotonic() - killed < 30
    ended = job.finish()
    code, _, err = ended[1 - victim]
    assert (run_dir / lock.NAME).exists() == (victim == 0)  # of the dead process, which the next one takes over
    assert ended[victim][0] == -signal.SIGKILL
    assert code == 1, err
    assert f"error: process {victim} (on " in err and "ended without a word and is lost; start the same command" in err
    Job(2, run_dir, **EVALUATED).done()
    assert_bit_equal(state_at(run_dir, 12, SMALL), state_at(two, 12, SMALL))
    assert numbers(run_dir) == numbers(two)


def test_a_signal_to_one_process_stops_all_at_one_step(two, tmp_path):
    run_dir = tmp_path / "run"
    job = Job(2, run_dir, seconds=0.2, **EVALUATED)
    job.wait_for_line(3)
    job.processes[1].send_signal(signal.SIGTERM)
    ended = job.finish()
    assert [code for code, _, _ in ended] == [75, 75], ended
    saved = sorted(int(path.name) for path in (run_dir / "checkpoints").iterdir() if path.name.isdigit())
    assert saved[-1] < 12 and len([step for step in saved if step != 6]) == 1
    assert f"stopped by SIGTERM after {saved[-1]} steps" in ended[1][2]
    assert f"stopped by a signal to another process after {saved[-1]} steps" in ended[0][2]
    Job(2, run_dir, **EVALUATED).done()
    assert_bit_equal(state_at(run_dir, 12, SMALL), state_at(two, 12, SMALL))
    assert numbers(run_dir) == numbers(two)


def test_a_run_of_two_processes_has_its_directory_to_itself(tmp_path):
    run_dir = tmp_path / "run"
    endless = dict(steps=10**6, checkpoint_every=10**6)
    job = Job(2, run_dir, seconds=0.1, **endless)
    job.wait_for_line(1)
    code, _, err = Job(1, run_dir, **endless).finish()[0]
    pid = job.processes[0].pid
    assert code == 1 and f"error: {run_dir} is being written by process {pid} on {socket.gethostname()}: wait" in err
    job.processes[0].send_signal(signal.SIGTERM)
    assert [code for code, _, _ in job.finish()] == [75, 75]
    assert not (run_dir / lock.NAME).exists()


def test_an_error_of_one_process_ends_all_with_its_code(tmp_path):
    (tmp_path / "run").write_text("a file where the run directory should be")
    ended = Job(2, tmp_path / "run").finish()
    assert [code for code, _, _ in ended] == [2, 2], ended
    assert "run is a file; give a directory" in ended[0][2]
    assert "error: process 0 failed: " in ended[1][2] and "run is a file" in ended[1][2]


def test_clusters_are_known_by_their_environment():
    slurm = {"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_PROCID": "0", "SLURM_NTASKS": "2"}
    assert hosts.in_cluster(slurm)
    assert hosts.in_cluster({"TPU_WORKER_HOSTNAMES": "a,b"})
    assert hosts.in_cluster({"OMPI_COMM_WORLD_SIZE": "4"})
    for alone in ({}, {**slurm, "SLURM_NTASKS": "1"}, {"TPU_WORKER_HOSTNAMES": "localhost"}, {"SLURM_NTASKS": "2"}):
        assert not hosts.in_cluster(alone)
