"""The optimiser against AdamW written out in numpy, from the rate to what each group of parameters becomes."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from moshijax.codec import discriminators, training
from moshijax.testing import tiny
from moshijax.train import sharding
from moshijax.train.experiment import ExperimentConfig
from moshijax.train.optimizer import OptimizerConfig, ParameterGroup, learning_rate, make_optimizer
from moshijax.train.state import plan_state
from tests.train.support.models import DISCRIMINATORS
from tests.train.support.small_task import SmallTask

STEPS = 10
DEFAULTS = dict(learning_rate=0.01, decay="constant", b1=0.8, b2=0.97, eps=1e-3, weight_decay=0.2, clip_norm=None)

#: Last names of the paths that are expected not to decay; the others are kernels and tables.
SCALES_AND_BIASES = {"scale", "bias", "norm_scale", "norm_bias"}
#: The length of a kernel with weight norm is named like a scale and decays like a kernel.
KERNELS = {"kernel", "table", "kernel_direction", "kernel_scale", "absent"}


def rate_by_hand(config, step):
    rate = config.learning_rate
    if config.warmup_steps:
        rate *= min(1.0, (step + 1) / config.warmup_steps)
    if config.decay == "constant":
        return rate
    start = max(config.warmup_steps, config.decay_start * STEPS)
    progress = min(1.0, max(0.0, (step - start) / (STEPS - start)))
    if config.decay == "cosine":
        progress = (1 - math.cos(math.pi * progress)) / 2
    return rate * (1 - progress * (1 - config.final_scale))


def adamw_by_hand(config, params, gradients, scales, decays):
    """The parameters after each of the gradients, in float64."""
    params = {path: np.asarray(leaf, np.float64) for path, leaf in params.items()}
    first = {path: np.zeros_like(leaf) for path, leaf in params.items()}
    second = {path: np.zeros_like(leaf) for path, leaf in params.items()}
    for step, grads in enumerate(gradients):
        norm = math.sqrt(sum(float((g**2).sum()) for g in grads.values()))
        factor = 1.0 if config.clip_norm is None or norm < config.clip_norm else config.clip_norm / norm
        for path, g in grads.items():
            g = g * factor
            first[path] = config.b1 * first[path] + (1 - config.b1) * g
            second[path] = config.b2 * second[path] + (1 - config.b2) * g**2
            mean, square = first[path] / (1 - config.b1 ** (step + 1)), second[path] / (1 - config.b2 ** (step + 1))
            update = mean / (np.sqrt(square) + config.eps) + decays[path] * params[path]
            params[path] = params[path] - scales[path] * rate_by_hand(config, step) * update
    return params


def trained(config, count):
    """Start, gradients of sizes that differ from step to step, and what the optimiser of a run makes of them."""
    experiment = ExperimentConfig(task=SmallTask(), optimizer=config, steps=STEPS)
    optimizer = plan_state(experiment.task, experiment, sharding.make_mesh(experiment.mesh)).optimizers["audio"]
    random = np.random.RandomState(0)
    params = {path: jnp.asarray(random.standard_normal((3, 4)), jnp.float32) for path in optimizer.paths}
    gradients = [
        {path: size * random.standard_normal((3, 4)).astype(np.float32) for path in params}
        for size in (3.0, 0.02, 0.5, 8.0, 0.1)[:count]
    ]
    state, now = optimizer.transform.init(params), params
    for step, grads in enumerate(gradients):
        changes, state = optimizer.transform.update(jax.tree.map(jnp.asarray, grads), state, now, step=jnp.int32(step))
        now = optax.apply_updates(now, changes)
    return params, gradients, now


@pytest.mark.parametrize(
    ("fields", "scales", "decays"),
    [
        ({}, (1.0, 1.0), (0.2, 0.2)),
        ({"clip_norm": 1.0}, (1.0, 1.0), (0.2, 0.2)),
        ({"warmup_steps": 3, "decay": "cosine", "final_scale": 0.1}, (1.0, 1.0), (0.2, 0.2)),
        ({"groups": (ParameterGroup("slow", "^second/", learning_rate_scale=0.1),)}, (1.0, 0.1), (0.2, 0.2)),
        ({"groups": (ParameterGroup("loose", "^first/", weight_decay=0.0),)}, (1.0, 1.0), (0.0, 0.2)),
        (
            {"groups": (ParameterGroup("a", "^second/", 3.0, 0.7), ParameterGroup("b", "kernel", 0.5))},
            (0.5, 3.0),
            (0.2, 0.7),
        ),
    ],
    ids=["plain", "clipped", "schedule", "rate of a group", "decay of a group", "two groups"],
)
def test_updates_are_those_of_adamw(fields, scales, decays):
    config = OptimizerConfig(**{**DEFAULTS, **fields})
    start, gradients, got = trained(config, 5)
    paths = ("first/kernel", "second/kernel")
    assert tuple(start) == paths
    by_path = (dict(zip(paths, values, strict=True)) for values in (scales, decays))
    want = adamw_by_hand(config, start, gradients, *by_path)
    for path in paths:
        np.testing.assert_allclose(got[path], want[path], rtol=1e-5, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("decay", ["cosine", "linear", "constant"])
def test_the_rate_of_every_step(decay):
    config = OptimizerConfig(learning_rate=0.5, warmup_steps=2, decay=decay, decay_start=0.4, final_scale=0.2)
    rates = [float(learning_rate(config, jnp.int32(step), STEPS)) for step in range(STEPS + 1)]
    np.testing.assert_allclose(rates, [rate_by_hand(config, step) for step in range(STEPS + 1)], rtol=1e-6)
    assert rates[0] == 0.25 and rates[4] == 0.5
    assert rates[-1] == pytest.approx({"constant": 0.5}.get(decay, 0.1))
    halfway = {"cosine": 0.3, "linear": 0.3, "constant": 0.5}  # of the fall, at step 7
    assert rates[7] == pytest.approx(halfway[decay])


def test_scales_and_biases_do_not_decay():
    """Without a gradient, what changes a parameter is its decay."""
    (_, codec), (_, lm), _ = tiny.tiny_models()
    judges = discriminators.init(DISCRIMINATORS, jax.random.key(0))
    shapes = flatten_dict({"lm": lm, "codec": training.normalise_weights(codec["params"]), "judges": judges}, sep="/")
    params = {path: jnp.ones(np.shape(leaf)) for path, leaf in shapes.items()}
    group = ParameterGroup("judges", "^judges/", weight_decay=0.2)
    config = OptimizerConfig(0.5, decay="constant", weight_decay=0.1, groups=(group,))
    optimizer = make_optimizer(config, tuple(params), steps=10)
    zeros = jax.tree.map(jnp.zeros_like, params)
    changes, _ = optimizer.update(zeros, optimizer.init(params), params, step=0)
    names = {path.rsplit("/", 1)[-1] for path in params}
    assert {"scale", "bias", "kernel", "table", "kernel_scale"} <= names
    for path, change in changes.items():
        name = path.rsplit("/", 1)[-1]
        assert name in SCALES_AND_BIASES | KERNELS or name.startswith("steps") or "kernel" in path, path
        expected = 0 if name in SCALES_AND_BIASES else -0.1 if path.startswith("judges/") else -0.05
        np.testing.assert_allclose(change, np.full(change.shape, expected), rtol=1e-6, err_msg=path)
