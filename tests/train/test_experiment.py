from __future__ import annotations

import math
from fractions import Fraction

import jax.numpy as jnp
import pytest

from moshijax.config_json import differences, from_json, to_json
from moshijax.errors import ConfigError
from moshijax.train.experiment import (
    ExperimentConfig,
    MeshConfig,
    OptimizerConfig,
    ParameterGroup,
    place_of_step,
)
from moshijax.train.optimizer import check_groups, learning_rate
from tests.train.support.small_task import SmallData, SmallTask


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.125, 0.3, 0.5, 0.9, 1.0])
def test_text_ratio_is_exact_and_every_batch_is_used_once(ratio):
    steps = 1000
    places = [place_of_step(n, ratio) for n in range(steps)]
    text = [index for program, index in places if program == "text"]
    audio = [index for program, index in places if program == "audio"]
    assert text == list(range(math.floor(steps * Fraction(str(ratio)))))
    assert audio == list(range(steps - len(text)))


def test_learning_rate_schedule():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=10, decay="linear", decay_start=0.5, final_scale=0.1)
    rates = [float(learning_rate(config, jnp.int32(n), 100)) for n in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[50] == 1.0
    assert rates[75] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)


def test_mesh_takes_the_rest_and_names_both_numbers():
    assert MeshConfig(data=-1, tensor=2).shape(8) == {"data": 4, "fsdp": 1, "tensor": 2}
    with pytest.raises(ConfigError, match="needs 6 devices, but there are 8"):
        MeshConfig(data=3, tensor=2).shape(8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"text_ratio": 1.5}, "text_ratio is 1.5"),
        ({"text_ratio": 0.5}, "text_data is not set"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
    ],
)
def test_impossible_experiments_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        ExperimentConfig(task=SmallTask(), data=SmallData(), **fields)


def test_a_group_that_matches_nothing_is_refused():
    config = OptimizerConfig(groups=(ParameterGroup("depth", "^depht/"),))
    with pytest.raises(ConfigError, match="'depth': pattern '\\^depht/' matches none of 1"):
        check_groups(config, ["depth/kernel"])


def test_configs_survive_json():
    experiment = ExperimentConfig(
        task=SmallTask(), data=SmallData(), optimizer=OptimizerConfig(groups=(ParameterGroup("a", "first"),))
    )
    plain = to_json(experiment)
    assert from_json(OptimizerConfig, plain["optimizer"]) == experiment.optimizer
    assert differences(plain, plain) == []
    with pytest.raises(ConfigError, match="did you mean 'learning_rate'"):
        from_json(OptimizerConfig, {"learning_rat": 1.0})
    with pytest.raises(ConfigError, match="warmup_steps is 'x'"):
        from_json(OptimizerConfig, {"warmup_steps": "x"})
