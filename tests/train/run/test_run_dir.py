"""One run at a time in a directory."""

from __future__ import annotations

import dataclasses
import socket

import pytest

from moshijax import lock
from moshijax.errors import MoshijaxError
from moshijax.train.loop import train
from tests.test_lock import hold
from tests.train.test_loop import EXPERIMENT, numbers

SHORT = dataclasses.replace(EXPERIMENT, steps=2, log_every=1)


def test_a_second_run_is_refused_and_the_lock_of_a_dead_one_is_taken_over(run_dir):
    run_dir.mkdir()
    first = hold("inside", run_dir)
    try:
        named = f"{run_dir} is being written by process {first.pid} on {socket.gethostname()}: wait until it ends"
        with pytest.raises(MoshijaxError, match=named) as error:
            train(SHORT, run_dir)
        assert error.value.exit_code == 1
        assert [path.name for path in run_dir.iterdir()] == [lock.NAME]
    finally:
        first.kill()
        first.wait()
    assert (run_dir / lock.NAME).exists()
    train(SHORT, run_dir)
    assert len(numbers(run_dir)) == 3 and not (run_dir / lock.NAME).exists()
