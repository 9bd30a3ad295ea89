"""Several real processes that train the small task together, as hosts would."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.train.support.devices import ROOT

RUN = """
import json, sys
from tests.train.support.processes import take_part
take_part(*json.loads(sys.argv[1]))
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def environment(**more: str) -> dict[str, str]:
    plain = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **plain, "PYTHONFAULTHANDLER": "1", **more}  # one that is aborted says where its threads are


def take_part(port: int, count: int, number: int, run_dir: str, fields: dict, seconds: float) -> None:
    """One process: train the experiment of `multi_device.SMALL` with other fields, at most a step every so often."""
    from moshijax.cli.common import show_log
    from moshijax.errors import MoshijaxError
    from moshijax.train.experiment import MeshConfig
    from moshijax.train.loop import train
    from moshijax.train.run import hosts
    from tests.train.support.multi_device import SMALL
    from tests.train.support.small_task import SmallData, with_task

    if count > 1:
        hosts.join(f"localhost:{port}", count, number, lost_after=20)
    show_log()
    if "mesh" in fields:
        fields["mesh"] = MeshConfig(**fields["mesh"])
    held_out = SmallData(seed=2) if "eval_batches" in fields else None
    try:
        experiment = with_task(dataclasses.replace(SMALL, **fields), eval_data=held_out)
        train(experiment, run_dir, progress=lambda *_: time.sleep(seconds), lost_after=20)
        # By name: a thread of native code that ever asked Python for its name counts as a daemon for good ("Dummy-1").
        assert "heartbeat" not in {thread.name for thread in threading.enumerate()}
    except MoshijaxError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(error.exit_code) from None


class Job:
    """The processes of one run."""

    def __init__(self, count: int, run_dir: Path, seconds: float = 0.0, **fields) -> None:
        self.run_dir, port = run_dir, free_port()
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", RUN, json.dumps([port, count, number, str(run_dir), fields, seconds])],
                cwd=ROOT,
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number in range(count)
        ]

    def wait_for_line(self, step: int) -> None:
        """Until the metrics hold a step, or a process has ended."""
        from moshijax.weights.run_files import read_metrics

        path = self.run_dir / "metrics.jsonl"
        while all(process.poll() is None for process in self.processes):
            if path.exists() and any(line["step"] >= step for line in read_metrics(path)):
                return
            time.sleep(0.01)

    def finish(self) -> list[tuple[int, str, str]]:
        """Exit code, output and errors of every process."""
        found = []
        for process in self.processes:
            out, err = process.communicate(timeout=600)
            found.append((process.returncode, out, err))
        return found

    def done(self) -> list[tuple[int, str, str]]:
        """`finish`, of a run that must go well."""
        found = self.finish()
        assert all(code == 0 for code, _, _ in found), found
        return found
