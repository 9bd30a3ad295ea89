"""`moshijax train` as a process that is killed, stopped and run out of disk."""

from __future__ import annotations

import random
import resource
import signal

import pytest

from tests.system.killing import assert_same_end, complete_steps, finish, kill_once, start, wait_for_step, write_recipe

STEPS = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def experiment(folder):
    return write_recipe(folder, STEPS)


@pytest.fixture(scope="module")
def whole(folder, experiment):
    code, output = finish(start(folder, folder / "whole"))
    assert code == 0, output
    return folder / "whole"


@pytest.mark.slow
def test_killed_at_random_points_and_in_a_save_equals_never_stopped(folder, whole, experiment):
    run_dir, chance = folder / "killed", random.Random(0)
    killed = [kill_once(folder, run_dir, while_saving, chance) for while_saving in (False, True, False)]
    assert None not in killed
    assert any("in a save" in where for where in killed), killed
    code, output = finish(start(folder, run_dir))
    assert code == 0, output
    assert_same_end(whole, run_dir, experiment)


@pytest.mark.slow
def test_terminated_saves_exits_75_and_goes_on(folder, whole, experiment):
    run_dir = folder / "terminated"
    process = start(folder, run_dir)
    wait_for_step(process, run_dir, 7)
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == 75, output
    assert "error: stopped by SIGTERM after" in output and "Traceback" not in output
    assert f"after {complete_steps(run_dir)[-1]} steps" in output
    code, output = finish(start(folder, run_dir))
    assert code == 0, output
    assert_same_end(whole, run_dir, experiment)


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_leaves_complete_checkpoints(folder, whole, experiment):
    run_dir = folder / "full"

    def no_large_files():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    code, output = finish(start(folder, run_dir, preexec_fn=no_large_files))
    assert code == 1, output
    # The library that writes the files may complain in its own words, before us or after.
    errors = [line for line in output.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and errors[0].startswith("error: no space left for a checkpoint in"), output
    assert not complete_steps(run_dir)
    code, output = finish(start(folder, run_dir))
    assert code == 0, output
    assert_same_end(whole, run_dir, experiment)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gin.steps=abc"], "steps = 'abc': the field takes int"),
        (["--gin.optimizer.learning_rat=1e-3"], "did you mean 'learning_rate'"),
        (["--gin.task.model.temporal.num_heads=5"], "num_heads=5"),
        (["--rundir", "x"], "unknown argument '--rundir'"),
    ],
)
def test_bad_arguments_exit_2_before_anything_is_written(cli, folder, experiment, run_dir, options, message):
    code, out, err = cli("train", folder / "recipe.gin", "--run-dir", run_dir, *options)
    assert code == 2 and message in err and err.count("\n") == 1
    assert not run_dir.exists()


@pytest.mark.slow
def test_another_recipe_in_the_run_directory_exits_2(cli, folder, whole):
    code, out, err = cli("train", folder / "recipe.gin", "--run-dir", whole, "--gin.seed=3")
    assert code == 2
    assert "seed is 0 there, 3 here" in err
