"""Resuming, and the page of a run, when one of its files is damaged."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest

from moshijax.errors import DataError
from moshijax.report.run import write_run_page
from moshijax.train.loop import train
from tests.train.test_loop import EXPERIMENT, Crash, assert_bit_equal, at_step, crash, numbers, state_at

SHORT = dataclasses.replace(EXPERIMENT, steps=12, checkpoint_every=5, log_every=2, eval_every=6)
DAMAGES = {"emptied": b"", "cut": b'{"steps": 12, "ta', "not UTF-8": b'{"a": "\xff"}\n', "a list": b"[1]\n"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with a checkpoint at 10 that was not ended."""
    run_dir = tmp_path_factory.mktemp("saved") / "run"
    with pytest.raises(Crash):
        train(SHORT, run_dir, progress=at_step(11, crash))
    return run_dir


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("complete") / "run"
    train(SHORT, run_dir)
    return run_dir


@pytest.mark.parametrize("content", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("name", ["config.json", "data.json", "files.json"])
def test_a_damaged_record_ends_the_command_and_an_allowed_change_writes_it_again(
    saved, complete, run_dir, caplog, name, content
):
    shutil.copytree(saved, run_dir)
    (run_dir / name).write_bytes(content)
    with pytest.raises(
        DataError, match=f"{name} is damaged .*restore it from a copy, or .* --allow-change {name}, "
    ) as error:
        train(SHORT, run_dir)
    assert error.value.exit_code == 3 and (run_dir / name).read_bytes() == content
    train(SHORT, run_dir, allow_change=(name,))
    assert "it is written again, and what it said before is not compared" in caplog.text
    assert (run_dir / name).read_bytes() == (complete / name).read_bytes()
    assert_bit_equal(state_at(complete, 12, SHORT), state_at(run_dir, 12, SHORT))


@pytest.mark.parametrize("stamp", ["5", "[5]", '"5"', "[5, null]", "{}"])
def test_sizes_and_times_of_another_form_are_damage(saved, run_dir, stamp):
    shutil.copytree(saved, run_dir)
    (run_dir / "files.json").write_text(f'{{"audio": {{"one": {stamp}}}}}')
    with pytest.raises(DataError, match=r"files.json is damaged \(it does not hold sizes and times of files\)"):
        train(SHORT, run_dir)


def test_values_of_another_type_are_listed_as_changes(saved, run_dir):
    shutil.copytree(saved, run_dir)
    (run_dir / "data.json").write_text('{"audio": 5, "text": [], "eval": null}')
    with pytest.raises(ValueError, match="is a run of other data: data audio is 5 there, .* here; data text is"):
        train(SHORT, run_dir)


@pytest.mark.parametrize("line", [b'{"step": 2, "trai', b"\xff", b"[2]", b'{"train/loss": 1.0}'])
def test_a_damaged_line_of_the_metrics_is_named_when_the_run_resumes_and_for_its_page(saved, run_dir, line):
    shutil.copytree(saved, run_dir)
    path = run_dir / "metrics.jsonl"
    good = path.read_bytes()
    path.write_bytes(line + b"\n" + good)
    for use in (lambda: train(SHORT, run_dir), lambda: write_run_page(run_dir)):
        with pytest.raises(DataError, match=r"line 1 of .*metrics.jsonl is damaged .*; delete that line"):
            use()
    assert path.read_bytes() == line + b"\n" + good


def test_a_line_that_was_cut_off_is_dropped_with_a_count(saved, complete, run_dir, caplog):
    shutil.copytree(saved, run_dir)
    with (run_dir / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 12, "train/lo')
    train(SHORT, run_dir)
    assert "metrics.jsonl: its last line was cut off while it was written; 1 line is dropped" in caplog.text
    assert numbers(run_dir) == numbers(complete)


@pytest.mark.parametrize("content", [*DAMAGES.values(), json.dumps({"steps": "12"}).encode()])
def test_the_page_of_a_run_with_a_damaged_config_is_refused(complete, run_dir, content):
    shutil.copytree(complete, run_dir)
    (run_dir / "config.json").write_bytes(content)
    with pytest.raises(DataError, match="config.json is damaged"):
        write_run_page(run_dir)
