from __future__ import annotations

import math
import re
from fractions import Fraction
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moshijax.config_json import differences, from_json, to_json
from moshijax.data import TextData
from moshijax.errors import ConfigError
from moshijax.train.experiment import ExperimentConfig, MeshConfig, place_of_step
from moshijax.train.optimizer import OptimizerConfig, ParameterGroup, check_groups, learning_rate
from moshijax.train.sharding import make_mesh
from moshijax.train.steps import compiler_options
from moshijax.train.tasks.lm import LMTask, TextSteps
from tests.train.support.models import LM
from tests.train.support.small_task import SmallData, SmallTask

TEXT = TextData(("text",), batch_size=8, num_frames=16)


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.125, 0.3, 0.5, 0.9, 1.0])
def test_the_share_of_text_is_exact_and_every_batch_is_used_once(ratio):
    steps, share = 1000, Fraction(str(ratio))
    shares = {kind.name: kind.share for kind in SmallTask(text_data=SmallData(), text_share=ratio).step_kinds()}
    places = [place_of_step(n, shares) for n in range(steps)]
    assert [kind == "text" for kind, _ in places] == [
        math.floor((n + 1) * share) > math.floor(n * share) for n in range(steps)
    ]
    text = [index for kind, index in places if kind == "text"]
    audio = [index for kind, index in places if kind == "audio"]
    assert text == list(range(math.floor(steps * share)))
    assert audio == list(range(steps - len(text)))


def test_three_kinds_of_steps_have_their_shares_too():
    shares = {"audio": Fraction(1, 2), "text": Fraction(1, 3), "other": Fraction(1, 6)}
    places = [place_of_step(n, shares) for n in range(600)]
    for kind, share in shares.items():
        assert [index for name, index in places if name == kind] == list(range(int(600 * share)))
    assert [place_of_step(n, {"a": Fraction(0), "b": Fraction(1), "c": Fraction(0)}) for n in (0, 5)] == [
        ("b", 0),
        ("b", 5),
    ]


def test_learning_rate_schedule():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=10, decay="linear", decay_start=0.5, final_scale=0.1)
    rates = [float(learning_rate(config, jnp.int32(n), 100)) for n in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[50] == 1.0
    assert rates[75] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)


def test_deterministic_programs_are_compiled_with_an_option_that_xla_knows():
    gpus = SimpleNamespace(devices=np.asarray([SimpleNamespace(platform="gpu")]))
    experiment = ExperimentConfig(task=SmallTask(), deterministic=True)
    assert compiler_options(ExperimentConfig(task=SmallTask()), gpus) == {}
    assert compiler_options(experiment, make_mesh(MeshConfig())) == {}
    options = compiler_options(experiment, gpus)
    lowered = jax.jit(jnp.sum).lower(jnp.ones(3))
    assert options and lowered.compile(options)(jnp.ones(3)) == 3
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option"):
        lowered.compile({f"{name}_": True for name in options})


def test_mesh_takes_the_rest_and_names_both_numbers():
    assert MeshConfig(data=-1, tensor=2).shape(8) == {"data": 4, "fsdp": 1, "tensor": 2}
    with pytest.raises(ConfigError, match="needs 6 devices, but there are 8"):
        MeshConfig(data=3, tensor=2).shape(8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
        (
            {"steps": 20, "optimizer": OptimizerConfig(warmup_steps=21)},
            "warmup_steps is 21 for the update 'audio', but steps is 20: .*; shorten the warmup or take more steps",
        ),
    ],
)
def test_impossible_experiments_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        ExperimentConfig(task=SmallTask(), **fields)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (dict(text=dict(share=1.5, data=TEXT)), "share is 1.5; it is a share of the steps"),
        (dict(text=dict(share=0.5)), "share is 0.5 but data is not set"),
        (dict(text=dict(share=0.5, data=TEXT)), "text.share is 0.5, but there are no audio steps to take the rest"),
        (dict(), "text.share is 0, but there are no audio steps"),
    ],
)
def test_impossible_kinds_of_steps_are_refused(steps, message):
    with pytest.raises(ConfigError, match=message):
        LMTask(LM, "none.model", **{name: TextSteps(**fields) for name, fields in steps.items()})


RECIPE = """from __gin__ import dynamic_registration
from moshijax.codec import configs as codec_configs
from moshijax.data import grids
from moshijax.data import packed_text
from moshijax.lm import configs
from moshijax.train import experiment
from moshijax.train import optimizer
from moshijax.train.tasks import codec as codec_task
from moshijax.train.tasks import lm as lm_task

experiment.ExperimentConfig.task = @lm_task.LMTask()
lm_task.LMTask:
  model = %configs.TINY
  tokenizer = 'none.model'
  audio = @lm_task.AudioSteps()
lm_task.AudioSteps.data = @grids.GridData()
grids.GridData.paths = ('none',)
packed_text.TextData.paths = ('none',)
"""
CODEC_TASK = """experiment.ExperimentConfig.task = @codec_task.CodecTask()
codec_task.CodecTask:
  model = %codec_configs.MIMI
  audio = @codec_task.AudioSteps()
"""


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            "experiment.ExperimentConfig.task = @grids.GridData()",
            "task = GridData(.* takes Task; give Task, not GridData",
        ),
        ("experiment.ExperimentConfig.task = 'lm'", "task = 'lm': the field takes Task; give Task, not str"),
        (
            "lm_task.AudioSteps.data = @packed_text.TextData()",
            "task.audio.data = TextData(.* give GridData, not TextData",
        ),
        ("lm_task.AudioSteps.data = None", "task.audio.data = None: the field takes GridData; give GridData"),
        ("lm_task.LMTask.text = @lm_task.AudioSteps()", "task.text = AudioSteps(.* give TextSteps, not AudioSteps"),
        ("lm_task.LMTask.model = %codec_configs.MIMI", "task.model = MimiConfig(.* give LMConfig, not MimiConfig"),
        (CODEC_TASK + "codec_task.AudioSteps.data = @grids.GridData()", "task.audio.data = GridData(.* give AudioData"),
        (
            "experiment.ExperimentConfig.optimizer = @grids.GridData()",
            "optimizer = GridData(.* takes OptimizerConfig; give OptimizerConfig, not GridData",
        ),
    ],
)
def test_a_wrong_class_in_a_recipe_is_an_error_of_the_recipe(tmp_path, cli, lines, message):
    (tmp_path / "wrong.gin").write_text(RECIPE + lines + "\n")
    code, _, err = cli("train", tmp_path / "wrong.gin", "--run-dir", tmp_path / "run")
    assert code == 2 and "Traceback" not in err
    assert re.search(f"wrong.gin:\\d+: {message.replace('(', '[(]')}", " ".join(err.split())), err
    assert not (tmp_path / "run").exists()


def test_a_group_that_matches_nothing_is_refused():
    config = OptimizerConfig(groups=(ParameterGroup("depth", "^depht/"),))
    with pytest.raises(ConfigError, match="'depth': pattern '\\^depht/' matches none of 1"):
        check_groups(config, ["depth/kernel"])


def test_configs_survive_json():
    experiment = ExperimentConfig(task=SmallTask(), optimizer=OptimizerConfig(groups=(ParameterGroup("a", "first"),)))
    plain = to_json(experiment)
    assert from_json(OptimizerConfig, plain["optimizer"]) == experiment.optimizer
    assert differences(plain, plain) == []
    with pytest.raises(ConfigError, match="did you mean 'learning_rate'"):
        from_json(OptimizerConfig, {"learning_rat": 1.0})
    with pytest.raises(ConfigError, match="warmup_steps is 'x'"):
        from_json(OptimizerConfig, {"warmup_steps": "x"})
