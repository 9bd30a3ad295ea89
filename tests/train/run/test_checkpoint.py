"""Checkpoints that cannot be read: refused before the first step, found when written, named when read."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil

import numpy as np
import orbax.checkpoint as ocp
import pytest

from moshijax.errors import ConfigError, DataError, MoshijaxError
from moshijax.train.loop import train
from moshijax.train.run import checkpoint
from moshijax.weights.run import DamagedCheckpoint, model_shapes, read_model
from tests.train.test_loop import EXPERIMENT, Crash, assert_bit_equal, at_step, crash, numbers, state_at

SHORT = dataclasses.replace(EXPERIMENT, steps=33, eval_every=15, log_every=5)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with checkpoints at 10, 20 and 30 that was not ended."""
    run_dir = tmp_path_factory.mktemp("saved") / "run"
    with pytest.raises(Crash):
        train(SHORT, run_dir, progress=at_step(31, crash))
    return run_dir


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("complete") / "run"
    train(SHORT, run_dir)
    return run_dir


@pytest.mark.parametrize("name", ["lr[3e-4]", "a[b]/run", "a\\b", "a\\b/run"])
def test_a_path_whose_checkpoints_nobody_could_read_is_refused_before_the_first_step(tmp_path, name):
    with pytest.raises(ConfigError, match=r"could not be read back.*no \[, \] and no backslash"):
        train(SHORT, tmp_path / name, progress=lambda *_: pytest.fail("a step was made"))
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []


@pytest.mark.parametrize("name", ["50% #1", "{a,b}", "~x", "q?*", "[", "ünï\nx"])
def test_other_odd_paths_hold_readable_checkpoints(tmp_path, name):
    run_dir = tmp_path / name
    train(dataclasses.replace(SHORT, steps=3), run_dir)
    assert int(state_at(run_dir, 3).step) == 3
    assert not (run_dir / checkpoint.PROBE).exists()


def missing_model(path):
    shutil.rmtree(path / "model")


def missing_optimizer(path):
    shutil.rmtree(path / "optimizer")


def missing_manifest(path):
    (path / "model" / "manifest.ocdbt").unlink()


def missing_meta(path):
    shutil.rmtree(path / "meta")


def garbled_meta(path):
    (path / "meta" / "metadata").write_text('{"step": ')


def meta_of_another_form(path):
    (path / "meta" / "metadata").write_text('{"step": 30}')


def largest_of(path):
    return max((x for x in path.rglob("*") if x.is_file() and "d" in x.parts[-2:-1]), key=lambda x: x.stat().st_size)


def cut(path):
    file = largest_of(path / "model")
    file.write_bytes(file.read_bytes()[:100])


def emptied(path):
    largest_of(path / "model").write_bytes(b"")


def flipped(item):
    """Damage that only checksums show: bits of the arrays of an item, which Orbax reads without a word."""

    def damage(path):
        file = largest_of(path / item)
        sound = file.read_bytes()
        for seed in range(20):  # where arrays lie in the file differs between runs: until Orbax reads it
            data, rng = bytearray(sound), np.random.default_rng(seed)
            for place in rng.integers(len(data) // 4, len(data) // 2, 6):
                data[place] ^= 1 << rng.integers(8)
            file.write_bytes(data)
            with contextlib.suppress(Exception):  # (what Orbax raises of it has no other class)
                return ocp.PyTreeCheckpointer().restore(path / item)
        raise AssertionError("every flip was noticed by Orbax")

    damage.__name__ = f"flipped_{item}"
    return damage


def empty_folder(path):
    shutil.rmtree(path)
    path.mkdir()


DAMAGES = (
    missing_model, missing_optimizer, missing_manifest, missing_meta, garbled_meta, meta_of_another_form, cut, emptied,
    empty_folder, flipped("model"), flipped("optimizer"),
)  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(saved, complete, run_dir, caplog, damage):
    shutil.copytree(saved, run_dir)
    damage(run_dir / "checkpoints" / "30")
    with caplog.at_level("WARNING"):
        train(SHORT, run_dir)
    (line,) = [r.getMessage() for r in caplog.records if "is damaged" in r.getMessage()]
    assert line.startswith(f"checkpoint 30 of {run_dir} is damaged (")
    assert line.endswith("moved to 30.damaged, resuming from checkpoint 20")
    assert "NoneType" not in line and "\n" not in line
    assert damage.__name__.startswith("flipped") == ("not what was written" in line)
    assert_bit_equal(state_at(complete, 33), state_at(run_dir, 33))
    assert numbers(run_dir) == numbers(complete)


def test_a_complete_run_whose_last_checkpoint_is_damaged_is_completed_again(complete, run_dir):
    shutil.copytree(complete, run_dir)
    missing_model(run_dir / "checkpoints" / "33")
    train(SHORT, run_dir)
    assert_bit_equal(state_at(complete, 33), state_at(run_dir, 33))
    assert numbers(run_dir) == numbers(complete)


def test_a_run_whose_checkpoints_are_all_damaged_ends_with_one_line(saved, run_dir):
    shutil.copytree(saved, run_dir)
    for step in (10, 20, 30):
        missing_model(run_dir / "checkpoints" / str(step))
    with pytest.raises(DamagedCheckpoint, match="checkpoint 30 .* is damaged .*model is missing") as error:
        train(SHORT, run_dir)
    assert error.value.exit_code == 3
    assert (run_dir / "checkpoints" / "30").is_dir()


@pytest.mark.parametrize("damage", (missing_model, missing_manifest, cut, empty_folder, flipped("model")))
def test_who_reads_the_model_of_a_damaged_checkpoint_is_told_of_the_one_before(saved, run_dir, damage):
    shutil.copytree(saved, run_dir)
    (run_dir / "model.json").write_text('{"kind": "codec", "config": {}}')
    damage(run_dir / "checkpoints" / "30")
    with pytest.raises(DataError, match=r"checkpoint 30 of .* is damaged .*checkpoint 20 is used"):
        read_model(run_dir)
    shutil.rmtree(run_dir / "checkpoints" / "30")
    assert model_shapes(run_dir).step == 20


def test_a_checkpoint_that_cannot_be_read_back_stops_the_run(run_dir, monkeypatch):
    save = checkpoint.Checkpointer.save

    def save_and_damage(self, state, step, meta):
        save(self, state, step, meta)
        if step == 20:
            self._manager.wait_until_finished()
            missing_manifest(self.path / "20")

    monkeypatch.setattr(checkpoint.Checkpointer, "save", save_and_damage)
    with pytest.raises(MoshijaxError, match="checkpoint 20 of .* is damaged .* right after it was written") as error:
        train(SHORT, run_dir)
    assert error.value.exit_code == 1
    monkeypatch.undo()
    train(SHORT, run_dir)
    assert int(state_at(run_dir, 33).step) == 33


def test_fewer_steps_than_are_done_are_refused(saved):
    with pytest.raises(ConfigError, match="steps is 12, but .* has done 30; give at least 30 steps"):
        train(dataclasses.replace(SHORT, steps=12), saved, allow_change=("steps",))
    assert sorted(path.name for path in (saved / "checkpoints").iterdir() if path.is_dir()) == ["10", "20", "30"]
