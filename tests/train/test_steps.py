"""What one step makes of the state, computed again in numpy."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moshijax.train import sharding
from moshijax.train.experiment import ExperimentConfig
from moshijax.train.optimizer import OptimizerConfig, ParameterGroup
from moshijax.train.state import plan_state
from moshijax.train.steps import make_step, step_key
from tests.train.support.small_task import SmallData, SmallTask, loss_by_hand

EXPERIMENT = ExperimentConfig(
    task=SmallTask(), optimizer=OptimizerConfig(learning_rate=0.1, weight_decay=0.0), ema_decay=0.75, steps=10
)


def steps_of(experiment, count=1):
    """The states before and after each of the first steps, and the metrics."""
    mesh, kind = sharding.make_mesh(experiment.mesh), experiment.task.step_kinds()[0]
    with sharding.context(mesh):
        plan = plan_state(experiment.task, experiment, mesh)
        step = jax.jit(make_step(experiment.task, experiment, plan, kind))
        states, sums = [plan.create(experiment.seed)], []
        for n in range(count):
            state, packed = step(states[-1], jax.tree.map(jnp.asarray, experiment.task.data.batch(n)))
            states.append(state)
            sums.append(packed.unpack())
    return jax.device_get(states), sums


def test_the_average_begins_as_the_parameters_and_follows_them():
    (start, *later), _ = steps_of(EXPERIMENT, 3)
    average = jax.tree.map(np.asarray, start.params)
    jax.tree.map(np.testing.assert_array_equal, start.ema, average)
    for state in later:
        average = jax.tree.map(lambda a, p: 0.75 * a + 0.25 * p, average, state.params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), state.ema, average)


@pytest.mark.parametrize("microbatches", [1, 4])
def test_loss_and_gradient_norms_are_those_of_the_whole_batch(microbatches):
    """In float64, from the noise of every row."""
    groups = (ParameterGroup("slow", "^second/", learning_rate_scale=0.1),)
    optimizer = dataclasses.replace(EXPERIMENT.optimizer, groups=groups, warmup_steps=4, clip_norm=1e-3)
    experiment = dataclasses.replace(EXPERIMENT, optimizer=optimizer, microbatches=microbatches, seed=5)
    (start, *_), (sums,) = steps_of(experiment)
    loss_key, _ = jax.random.split(step_key(5, "audio", jnp.int32(0)))
    loss, grads = loss_by_hand(start.params, SmallData().batch(0), loss_key)
    means = {name: total / count for name, (total, count) in sums.items() if count}
    norms = {name: float(np.linalg.norm(grad)) for name, grad in grads.items()}
    want = {
        "loss": loss,
        "error": loss,
        "grad_norm": float(np.hypot(*norms.values())),
        "grad_norm/rest": norms["first"],
        "grad_norm/slow": norms["second"],
        "learning_rate": 0.1 / 4,
        "learning_rate/rest": 0.1 / 4,
        "learning_rate/slow": 0.01 / 4,
        "nonfinite": 0.0,
    }
    assert means == pytest.approx(want, rel=1e-5)


def test_every_step_draws_anew():
    """The same batch at two steps, and with two seeds: other noise each time, so another loss."""

    class Same(SmallData):
        def batch(self, n, rows=slice(None)):
            return super().batch(0, rows)

    frozen = OptimizerConfig(learning_rate=0.0, weight_decay=0.0)
    experiment = dataclasses.replace(EXPERIMENT, task=SmallTask(data=Same()), optimizer=frozen)
    states, sums = steps_of(experiment, 2)
    jax.tree.map(np.testing.assert_array_equal, states[0].params, states[2].params)
    assert sums[0]["loss"] != sums[1]["loss"]


def test_a_gradient_that_is_not_finite_changes_nothing():
    """Whatever the loss is."""

    class Steep(SmallTask):
        def loss_parts(self, update, params, *arguments):
            parts = super().loss_parts(update, params, *arguments)
            return parts._replace(loss=parts.loss + jnp.sqrt(0.0 * params["first"]["kernel"][0, 0]))

    (start, after), (sums,) = steps_of(dataclasses.replace(EXPERIMENT, task=Steep()))
    assert np.isfinite(sums["loss"][0]) and np.isnan(sums["grad_norm"][0])
    assert after.step == 1 and after.nonfinite == 1
    same = after.replace(step=start.step, nonfinite=start.nonfinite)
    jax.tree.map(np.testing.assert_array_equal, start, same)
