from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moshijax.errors import ConfigError, DataError, MoshijaxError, Stopped
from moshijax.train import sharding
from moshijax.train.experiment import ExperimentConfig
from moshijax.train.loop import train
from moshijax.train.optimizer import OptimizerConfig, ParameterGroup
from moshijax.train.run.checkpoint import Checkpointer, check_space
from moshijax.train.run.run_dir import RunDir
from moshijax.train.state import plan_state
from moshijax.weights.run_files import read_metrics
from tests.train.support.small_task import SmallData, SmallModel, SmallTask, loss_by_hand, with_task

EXPERIMENT = ExperimentConfig(
    task=SmallTask(text_data=SmallData(seed=1), text_share=0.3, eval_data=SmallData(seed=2)),
    optimizer=OptimizerConfig(learning_rate=1e-2),
    ema_decay=0.9,
    steps=40,
    log_every=8,
    checkpoint_every=10,
    eval_every=20,
    keep_checkpoints=10,
)


def state_at(run_dir, step, experiment=EXPERIMENT):
    mesh = sharding.make_mesh(experiment.mesh)
    checkpointer = Checkpointer(RunDir(run_dir))
    with sharding.context(mesh):
        state, _ = checkpointer.restore(step, plan_state(experiment.task, experiment, mesh).abstract)
    checkpointer.close()
    return jax.device_get(state)


def assert_bit_equal(one, two):
    def check(keys, a, b):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), jax.tree_util.keystr(keys)

    jax.tree_util.tree_map_with_path(check, one, two)


def numbers(run_dir):
    """Lines of the metrics without what depends on the clock."""
    lines = read_metrics(run_dir / "metrics.jsonl")
    return [{k: v for k, v in line.items() if not k.startswith(("time/", "throughput/"))} for line in lines]


def at_step(step, action):
    def progress(done, steps, values):
        if done == step:
            action()

    return progress


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    train(EXPERIMENT, run_dir)
    return run_dir


def test_the_loss_falls_and_the_run_directory_is_complete(whole_run):
    lines = [line for line in numbers(whole_run) if "train/loss" in line]
    assert [line["step"] for line in lines] == [8, 16, 24, 32, 40]
    assert lines[-1]["train/loss"] < 0.8 * lines[0]["train/loss"]
    assert [line["step"] for line in numbers(whole_run) if "eval/loss" in line] == [20, 40]
    assert (whole_run / "config.json").exists() and (whole_run / "model.json").exists()
    assert list((whole_run / "tensorboard").glob("events*"))


def test_the_held_out_loss_is_that_of_the_average(whole_run):
    """The mean over its batches, by hand; that of the parameters themselves is another one."""
    lines = {line["step"]: line["eval/loss"] for line in numbers(whole_run) if "eval/loss" in line}
    batches = [SmallData(seed=2).batch(n) for n in range(EXPERIMENT.eval_batches)]
    for step in (20, 40):
        state = state_at(whole_run, step)
        average, parameters = (
            np.mean([loss_by_hand(params, batch, jax.random.key(0))[0] for batch in batches])
            for params in (state.ema, state.params)
        )
        assert lines[step] == pytest.approx(average, rel=1e-5) and abs(parameters / average - 1) > 1e-4


class Crash(Exception):
    pass


def crash():
    raise Crash


@pytest.mark.parametrize("step", [3, 14, 20, 33])
def test_resumed_equals_never_stopped(whole_run, run_dir, step):
    with pytest.raises(Crash):
        train(EXPERIMENT, run_dir, progress=at_step(step, crash))
    train(EXPERIMENT, run_dir)
    assert_bit_equal(state_at(whole_run, 40), state_at(run_dir, 40))
    assert numbers(run_dir) == numbers(whole_run)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_at_the_next_boundary_and_resume_is_exact(whole_run, run_dir, number):
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(Stopped, match="after 1[78] steps") as stopped:
        train(EXPERIMENT, run_dir, progress=at_step(16, lambda: os.kill(os.getpid(), number)))
    assert stopped.value.exit_code == 75
    assert handlers == [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    train(EXPERIMENT, run_dir)
    assert_bit_equal(state_at(whole_run, 40), state_at(run_dir, 40))
    assert numbers(run_dir) == numbers(whole_run)


def test_a_signal_before_the_first_step_saves_nothing(run_dir):
    class Killer(SmallTask):
        def save_assets(self, run_dir):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match="before the first step"):
        train(dataclasses.replace(EXPERIMENT, task=Killer()), run_dir)
    assert list((run_dir / "checkpoints").iterdir()) == []


def test_a_complete_run_is_left_alone(whole_run):
    before = (whole_run / "metrics.jsonl").read_bytes()
    train(EXPERIMENT, whole_run)
    assert (whole_run / "metrics.jsonl").read_bytes() == before


def test_the_amount_of_data_and_the_epochs_are_said_at_the_start(run_dir, caplog):
    with caplog.at_level("INFO", "moshijax"):
        train(dataclasses.replace(EXPERIMENT, steps=10), run_dir)
    lines = [record.getMessage() for record in caplog.records if "epochs" in record.getMessage()]
    assert lines == [
        "audio steps: random numbers; 7 steps of 8 rows are 0.875 epochs",
        "text steps: random numbers; 3 steps of 8 rows are 0.375 epochs",
    ]


def test_text_steps_leave_other_parameters_bit_equal(run_dir):
    text = with_task(EXPERIMENT, text_share=1.0, text_optimizer=OptimizerConfig(weight_decay=0.5))
    experiment = dataclasses.replace(text, steps=7, checkpoint_every=5)
    train(experiment, run_dir)
    start = jax.device_get(plan_state(experiment.task, experiment, sharding.make_mesh(experiment.mesh)).create(0))
    end = state_at(run_dir, 7, experiment)
    assert end.params["second"]["kernel"].tobytes() == start.params["second"]["kernel"].tobytes()
    assert not np.array_equal(end.params["first"]["kernel"], start.params["first"]["kernel"])
    assert list(end.opt_states) == ["text"]


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    """Twelve steps, and what they were of."""
    run_dir = tmp_path_factory.mktemp("short") / "run"
    experiment = dataclasses.replace(EXPERIMENT, steps=12, checkpoint_every=3, log_every=1)
    train(experiment, run_dir)
    return run_dir, experiment


def test_moments_in_host_memory_change_nothing(short_run, run_dir):
    whole, experiment = short_run
    optimizer = dataclasses.replace(experiment.optimizer, moments_memory="host")
    experiment = dataclasses.replace(experiment, optimizer=optimizer)
    plan = plan_state(experiment.task, experiment, sharding.make_mesh(experiment.mesh))
    kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(plan.abstract.opt_states) if leaf.ndim}
    assert kinds == {"pinned_host"} and plan.abstract.params["first"]["kernel"].sharding.memory_kind == "device"
    with pytest.raises(Crash):
        train(experiment, run_dir, progress=at_step(7, crash))
    train(experiment, run_dir)
    assert_bit_equal(state_at(run_dir, 12, experiment), state_at(whole, 12, experiment))


def test_moments_in_bfloat16_are_half_as_large_and_train_alike(short_run, run_dir):
    whole, experiment = short_run
    optimizer = dataclasses.replace(experiment.optimizer, moments_dtype="bfloat16")
    experiment = dataclasses.replace(experiment, optimizer=optimizer)
    train(experiment, run_dir)
    moments = [leaf for leaf in jax.tree.leaves(state_at(run_dir, 12, experiment).opt_states) if leaf.ndim]
    assert {leaf.dtype for leaf in moments} == {jnp.dtype("bfloat16")}
    ours, theirs = numbers(run_dir)[-2]["train/loss"], numbers(whole)[-2]["train/loss"]
    assert ours != theirs and ours == pytest.approx(theirs, rel=5e-3)
    with pytest.raises(ConfigError, match="moments_dtype = 'bfloat16' with b2 = 0.999"):
        OptimizerConfig(b2=0.999, moments_dtype="bfloat16")


def test_frozen_groups_stay_and_have_no_moments(run_dir):
    frozen = OptimizerConfig(groups=(ParameterGroup("second", "^second/", frozen=True),))
    experiment = dataclasses.replace(with_task(EXPERIMENT, text_share=0.0), optimizer=frozen, steps=5)
    train(experiment, run_dir)
    plan = plan_state(experiment.task, experiment, sharding.make_mesh(experiment.mesh))
    start, end = jax.device_get(plan.create(0)), state_at(run_dir, 5, experiment)
    assert end.params["second"]["kernel"].tobytes() == start.params["second"]["kernel"].tobytes()
    assert not any("second" in jax.tree_util.keystr(k) for k, _ in jax.tree_util.tree_leaves_with_path(end.opt_states))


def test_non_finite_steps_change_nothing_but_the_step(run_dir, caplog):
    bad = with_task(EXPERIMENT, data=SmallData(bad_from=3, bad_to=5), text_share=0.0)
    experiment = dataclasses.replace(bad, steps=8, checkpoint_every=1)
    train(experiment, run_dir)
    before, after = state_at(run_dir, 3, experiment), state_at(run_dir, 5, experiment)
    assert after.step == 5 and after.nonfinite == 2
    assert_bit_equal(before, after.replace(step=before.step, nonfinite=before.nonfinite))
    assert state_at(run_dir, 8, experiment).nonfinite == 0
    assert [r.getMessage() for r in caplog.records if "not finite" in r.getMessage()] == [
        "step 3 was not finite: update skipped (audio batch 3)",
        "step 4 was not finite: update skipped (audio batch 4)",
    ]
    assert numbers(run_dir)[0]["skipped/steps"] == 1.0


def test_three_non_finite_steps_in_a_row_stop_the_run(run_dir):
    experiment = with_task(EXPERIMENT, data=SmallData(bad_from=5, bad_to=9), text_share=0.0)
    with pytest.raises(MoshijaxError, match=r"steps 5 \(audio batch 5\), 6 \(audio batch 6\), 7 \(audio batch 7\)"):
        train(experiment, run_dir)
    assert [bad["batch"] for bad in json.loads((run_dir / "nonfinite.json").read_text())] == [5, 6, 7]
    saved = Checkpointer(RunDir(run_dir))
    last = saved.latest()
    saved.close()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state_at(run_dir, last, experiment).params))


def test_another_recipe_is_refused_with_the_differences(whole_run):
    other = dataclasses.replace(EXPERIMENT, seed=1, optimizer=OptimizerConfig(learning_rate=2e-2), log_every=1)
    with pytest.raises(ConfigError) as error:
        train(other, whole_run)
    assert "optimizer.learning_rate is 0.01 there, 0.02 here; seed is 0 there, 1 here;" in str(error.value)
    assert "is a run of another recipe: " in str(error.value)
    assert "log_every" not in str(error.value)


def test_other_data_under_the_same_name_is_refused(whole_run, monkeypatch):
    assert json.loads((whole_run / "data.json").read_text())["audio"] == {"small": "0"}
    monkeypatch.setattr(SmallData, "identity", {"small": "prepared again"})
    with pytest.raises(ConfigError) as error:
        train(EXPERIMENT, whole_run)
    assert "is a run of other data: data audio.small is '0' there, 'prepared again' here;" in str(error.value)
    assert str(error.value).endswith("or --allow-change data")


def test_an_allowed_change_is_logged_kept_and_in_force(whole_run, run_dir, caplog):
    shutil.copytree(whole_run, run_dir)
    shutil.rmtree(run_dir / "checkpoints" / "40")
    changed = dataclasses.replace(EXPERIMENT, optimizer=OptimizerConfig(learning_rate=2e-2))
    with pytest.raises(ConfigError, match="0.02 here; use .* or --allow-change seed,optimizer.learning_rate$"):
        train(changed, run_dir, allow_change=("seed",))
    with pytest.raises(ConfigError, match="--allow-change optimiser is no field of a recipe; use data, config.json"):
        train(changed, run_dir, allow_change=("optimiser",))
    train(changed, run_dir, allow_change=(" optimizer",))
    line = "optimizer.learning_rate is 0.01 there, 0.02 here"
    assert f"changed at step 30: {line}" in [record.getMessage() for record in caplog.records]
    assert json.loads((run_dir / "changes.jsonl").read_text()) == {"step": 30, "changes": [line]}
    assert json.loads((run_dir / "config.json").read_text())["optimizer"]["learning_rate"] == 2e-2
    assert numbers(run_dir)[-2]["train/learning_rate"] == 2 * numbers(whole_run)[-2]["train/learning_rate"]
    train(changed, run_dir)  # from here on this is the recipe of the run


def test_a_change_that_does_not_fit_is_not_recorded(whole_run, run_dir):
    shutil.copytree(whole_run, run_dir)
    shutil.rmtree(run_dir / "checkpoints" / "40")
    before = (run_dir / "config.json").read_bytes()
    with pytest.raises(DataError, match="params/first/kernel has shape"):
        train(with_task(EXPERIMENT, model=SmallModel(hidden=48)), run_dir, allow_change=("task.model",))
    assert (run_dir / "config.json").read_bytes() == before


@pytest.mark.parametrize("batch", [0, 5])
def test_a_signal_in_an_evaluation_interrupts_it_and_resume_repeats_it(whole_run, run_dir, monkeypatch, batch):
    def killing(self, n, rows=slice(None), make=SmallData.batch):
        if self.seed == 2 and n == batch and len(numbers(run_dir)) == 2:  # not when the evaluation is compiled
            os.kill(os.getpid(), signal.SIGTERM)
        return make(self, n, rows)

    with monkeypatch.context() as patch:
        run_dir.mkdir()
        (run_dir / "metrics.jsonl").touch()
        patch.setattr(SmallData, "batch", killing)
        with pytest.raises(Stopped, match="after 20 steps"):
            train(EXPERIMENT, run_dir)
    assert not any("eval/loss" in line for line in numbers(run_dir))
    train(EXPERIMENT, run_dir)
    assert_bit_equal(state_at(whole_run, 40), state_at(run_dir, 40))
    assert numbers(run_dir) == numbers(whole_run)


def test_mismatched_leaves_are_listed(whole_run):
    other = with_task(EXPERIMENT, model=SmallModel(hidden=48))
    with pytest.raises(DataError) as error:
        state_at(whole_run, 40, other)
    assert "params/first/kernel has shape (32, 16) there, (48, 16) here" in str(error.value)
    assert "params/second/kernel has shape (16, 32) there, (16, 48) here" in str(error.value)


def test_microbatches_change_only_rounding(run_dir, tmp_path):
    experiment = dataclasses.replace(EXPERIMENT, steps=10, checkpoint_every=10)
    train(experiment, run_dir)
    train(dataclasses.replace(experiment, microbatches=4), tmp_path / "split")
    one, four = state_at(run_dir, 10, experiment), state_at(tmp_path / "split", 10, experiment)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), one.params, four.params)
    np.testing.assert_allclose(one.model_state["seen"], four.model_state["seen"], rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match="8 rows does not divide by microbatches = 3"):
        train(dataclasses.replace(experiment, microbatches=3), tmp_path / "three")


def test_what_cannot_fit_on_the_disk_is_not_begun(tmp_path):
    check_space(tmp_path, 1)
    with pytest.raises(MoshijaxError, match="no space left for a checkpoint in .* MB are free; free some"):
        check_space(tmp_path, shutil.disk_usage(tmp_path).free + 10**9)


def test_init_from_another_kind_of_run_is_refused(whole_run, run_dir):
    with pytest.raises(DataError, match="kind 'small'"):  # only real models can be read by name
        train(dataclasses.replace(EXPERIMENT, init_from=str(whole_run)), run_dir)


def test_each_step_compiles_once(run_dir):
    compiled = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    counts = []
    jax.monitoring.register_event_duration_secs_listener(listen)
    train(EXPERIMENT, run_dir, progress=lambda done, steps, values: counts.append(len(compiled)))
    assert len(compiled) > 0 and counts[2] == counts[-1]


def test_golden_first_steps(whole_run):
    """If a change of the trainer is meant to change these numbers, replace them by the ones that pytest prints."""
    line = numbers(whole_run)[0]
    golden = {"train/loss": 3.4311, "train/grad_norm": 2.0358, "train_text/loss": 3.6009}
    assert {name: line[name] for name in golden} == pytest.approx(golden, rel=1e-3)
