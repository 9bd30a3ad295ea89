"""Functions in processes of their own: answers and errors come back, a crash or a hang is tried a second time."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from moshijax.data import audio
from moshijax.data.isolation import Isolated, Lost
from moshijax.errors import DataError


def alive(process: int) -> bool:
    """Whether it runs; one that has ended may wait to be reaped by whoever its parent is by then."""
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_answers_and_errors_are_those_of_the_function(tmp_path, capfd):
    with Isolated() as isolated:
        np.testing.assert_array_equal(isolated(np.arange, 1_000_000), np.arange(1_000_000))
        with pytest.raises(DataError, match=r"a\.wav cannot be read: No such file"):
            isolated(audio.probe, tmp_path / "a.wav")
        isolated(os.system, "echo printed")  # by a library, where the answers go
        assert isolated(len, "and on") == 6
    assert capfd.readouterr() == ("", "printed\n")


def test_one_process_serves_all_calls_and_none_is_left():
    with Isolated() as isolated:
        child = isolated(os.getpid)
        assert child != os.getpid() and isolated(os.getpid) == child and alive(child)
    assert not alive(child)
    forgotten = Isolated()
    child = forgotten(os.getpid)
    del forgotten
    gc.collect()
    assert not alive(child)


def process_after(barrier: Path, others: int) -> int:
    """Its process, once as many others wait here as well."""
    (barrier / str(os.getpid())).touch()
    while len(list(barrier.iterdir())) < others:
        time.sleep(0.01)
    return os.getpid()


def test_calls_of_threads_run_at_once_in_as_many_processes(tmp_path):
    with Isolated(3) as isolated, ThreadPoolExecutor(6) as threads:
        made = list(threads.map(lambda _: isolated(process_after, tmp_path, 3), range(12)))
    assert len(set(made)) == 3 == len(list(tmp_path.iterdir()))


def crash_once(mark: Path) -> str:
    """As a decoder that ran out of something."""
    if not mark.exists():
        mark.touch()
        os._exit(1)
    return "done"


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def test_crash_and_hang_are_tried_again_and_then_told(tmp_path):
    with Isolated() as isolated:
        assert isolated(crash_once, tmp_path / "mark") == "done"
        with pytest.raises(Lost, match=r"^ended its process \(exit code -11\), tried 2 times$"):
            isolated(crash)
        with pytest.raises(Lost, match=r"^gave no answer within 1 s, tried 2 times$"):
            isolated(time.sleep, 3600, seconds=1.0)
        assert isolated(len, "and on") == 6


def test_a_script_needs_no_guard_and_leaves_no_process(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os\n"
        "from moshijax.data.isolation import Isolated\n"
        "isolated = Isolated()\n"
        "print(isolated(os.getpid), flush=True)\n"
        "os.kill(os.getpid(), 9)\n"  # not even time to say goodbye
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode == -9 and done.stderr == ""
    (child,) = done.stdout.split() or ["0"]
    for _ in range(600):
        if not alive(int(child)):
            return
        time.sleep(0.05)
    raise AssertionError(f"process {child} is left")


def test_when_it_is_closed_what_runs_ends_and_nothing_starts_anew():
    """A job that fails or is stopped must not wait for the hours of work that its other processes still have."""
    with ThreadPoolExecutor(2) as threads, Isolated(1) as isolated:
        child = isolated(os.getpid)
        waiting = [threads.submit(isolated, time.sleep, 3600) for _ in range(2)]
        isolated.close()
    for each in waiting:
        with pytest.raises(Lost, match="nobody waits for it"):
            each.result()
    assert not alive(child)
