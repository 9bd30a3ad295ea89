"""Two processes never write one target, and a lock outlives no process that held it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack

import pytest

from moshijax import lock
from moshijax.errors import MoshijaxError

HOLD = """
import pathlib, sys
from moshijax import lock
with lock.{kind}(pathlib.Path(sys.argv[1])):
    print(1, flush=True)
    input()
"""


def hold(kind, path):
    """A process that holds a lock until it is killed or reads a line."""
    code = HOLD.format(kind=kind)
    process = subprocess.Popen([sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"1\n"
    return process


@pytest.mark.parametrize("kind", ["inside", "beside"])
def test_the_second_process_is_refused_by_host_and_number_until_the_first_dies(tmp_path, kind):
    first = hold(kind, tmp_path)
    take = getattr(lock, kind)
    try:
        named = f"{tmp_path} is being written by process {first.pid} on {socket.gethostname()}: wait until it ends"
        with pytest.raises(MoshijaxError, match=f"^{named}, or choose another path$"), take(tmp_path):
            pass
    finally:
        first.kill()
        first.wait()
    with take(tmp_path), pytest.raises(MoshijaxError, match=f"by process {os.getpid()} on"), take(tmp_path):
        pass
    assert not list(tmp_path.iterdir()) and not list(tmp_path.parent.glob(f".{tmp_path.name}*"))


def test_a_lock_is_given_back_when_its_block_fails(tmp_path):
    with pytest.raises(KeyError), lock.inside(tmp_path):
        raise KeyError
    with lock.inside(tmp_path):
        pass


def test_the_locks_of_other_targets_are_others(tmp_path):
    with ExitStack() as held:
        for take, path in ((lock.inside, tmp_path), (lock.beside, tmp_path), (lock.beside, tmp_path / "a")):
            held.enter_context(take(path))


def test_a_file_that_names_another_host_is_held_until_it_is_deleted(tmp_path):
    (tmp_path / lock.NAME).write_text(json.dumps({"host": "elsewhere", "pid": 12}))
    remedy = f"by process 12 on elsewhere: .*; if that process has ended, delete {tmp_path / lock.NAME}$"
    with pytest.raises(MoshijaxError, match=remedy), lock.inside(tmp_path):
        pass
    assert (tmp_path / lock.NAME).exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": "x"}'])
def test_a_file_that_was_not_written_to_the_end_is_taken_over(tmp_path, content):
    (tmp_path / lock.NAME).write_text(content)
    with lock.inside(tmp_path):
        assert json.loads((tmp_path / lock.NAME).read_text()) == {"host": socket.gethostname(), "pid": os.getpid()}


def test_a_lock_that_was_removed_while_it_was_waited_for_is_not_taken(tmp_path, monkeypatch):
    flock, path = fcntl.flock, tmp_path / lock.NAME

    def removed_first(*arguments):
        monkeypatch.setattr(fcntl, "flock", flock)
        path.unlink()
        flock(*arguments)

    monkeypatch.setattr(fcntl, "flock", removed_first)
    with lock.inside(tmp_path), pytest.raises(MoshijaxError), lock.inside(tmp_path):
        pass


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with (
        pytest.raises(MoshijaxError, match=r"cannot write .*none/\.lock: No such file"),
        lock.inside(tmp_path / "none"),
    ):
        pass
