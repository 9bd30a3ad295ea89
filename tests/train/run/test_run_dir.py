"""One run at a time in a directory, on the data that it began with."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket

import pytest

from moshijax import lock
from moshijax.errors import ConfigError, MoshijaxError
from moshijax.train.loop import train
from tests.test_lock import hold
from tests.train.support.small_task import SmallData
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


@pytest.fixture
def recordings(tmp_path, monkeypatch):
    """Three files, which the batches of the small task say they are read from."""
    paths = {name: tmp_path / f"{name}.wav" for name in ("one", "two", "three")}
    for path in paths.values():
        path.write_bytes(b"1234")
    monkeypatch.setattr(SmallData, "files", paths)
    return paths


@pytest.mark.parametrize("change", [lambda path: path.write_bytes(b"12345"), lambda path: path.unlink()])
def test_files_that_changed_since_the_run_began_are_named(recordings, run_dir, change):
    train(SHORT, run_dir)
    change(recordings["two"])
    change(recordings["three"])
    before = (run_dir / "files.json").read_bytes()
    longer = dataclasses.replace(SHORT, steps=3)
    with pytest.raises(ConfigError) as error:
        train(dataclasses.replace(SHORT, log_every=2), run_dir)
    assert "is a run of other data: files of data audio have another size, or are gone: 2 (two, three); " in str(
        error.value
    )
    assert (run_dir / "files.json").read_bytes() == before
    train(longer, run_dir, allow_change=("steps", "data"))
    assert (run_dir / "files.json").read_bytes() != before
    changes = json.loads((run_dir / "changes.jsonl").read_text())["changes"]
    assert "files of data text have another size, or are gone: 2 (two, three)" in changes
    train(longer, run_dir)  # from here on these are the files of the run


def test_files_of_another_time_are_named_once_and_the_run_continues(recordings, run_dir, caplog):
    train(SHORT, run_dir)
    os.utime(recordings["two"], ns=(1, 1))
    for _ in range(2):
        shutil.rmtree(run_dir / "checkpoints" / "2")
        train(SHORT, run_dir)
    line = "files of data audio were written since the run began: 1 (two); it continues as if they held the same"
    assert [record.getMessage() for record in caplog.records].count(line) == 1
