"""Memory and arithmetic of a run before it runs."""

from __future__ import annotations

import dataclasses
import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moshijax.errors import MoshijaxError
from moshijax.train import sharding
from moshijax.train.experiment import ExperimentConfig
from moshijax.train.loop import train
from moshijax.train.plan.footprint import cheaper, footprints
from tests.train.support.devices import run_on_devices
from tests.train.support.models import codec_experiment, lm_experiment, write_codec_data, write_lm_data
from tests.train.support.small_task import SmallTask


def shapes_of(batch):
    return {name: (np.shape(x), np.dtype(x.dtype)) for name, x in batch.items()}


def test_shapes_of_batches_are_known_without_data(tmp_path):
    write_lm_data(tmp_path / "lm")
    write_codec_data(tmp_path / "codec")
    plain = lm_experiment(tmp_path / "lm").task
    held_out = lm_experiment(
        tmp_path / "lm",
        audio={"eval_data": dataclasses.replace(plain.audio.data, batch_size=2)},
        text={"eval_data": dataclasses.replace(plain.text.data, num_frames=9)},
    )
    count = 0
    for task in (held_out.task, codec_experiment(tmp_path / "codec").task):
        for kind in task.step_kinds():
            for config in filter(None, (kind.data, kind.eval_data)):
                assert shapes_of(task.batches(kind, config, 0).batch(0)) == shapes_of(task.batch_shapes(kind, config))
                count += 1
    assert count == 5


def test_a_run_uses_what_was_planned():
    """On a CPU, by the memory of the process, to 5 %."""
    print(run_on_devices(1, "tests.train.support.footprint_devices:uses_what_is_planned"))


def test_state_is_counted_per_device_and_cheaper_changes_are_named(tmp_path):
    experiment = dataclasses.replace(lm_experiment(tmp_path), ema_decay=0.9)
    mesh = sharding.make_mesh(experiment.mesh, jax.devices()[:1])
    found = footprints(experiment, mesh)
    assert [f.kind.name for f in found] == ["audio", "text"]
    for f in found:
        assert f.average == f.parameters and f.optimizer > 2 * f.parameters  # of both kinds of steps
        assert f.peak > f.parameters + f.optimizer + f.average + f.batch
        assert f.amounts["frames" if f.kind.name == "audio" else "text_tokens"] == 128
    changes = cheaper(experiment, mesh, found[0].kind)
    assert [change.setting for change in changes] == [
        "microbatches=2",
        "task.model.temporal.remat_policy='full'",
        "task.model.depth.transformer.remat_policy='full'",
    ]
    assert all(change.saving > 0 for change in changes)
    done = dataclasses.replace(experiment, microbatches=8, task=changed_task(experiment.task))
    # Half of the batch would not divide by the microbatches.
    (change,) = cheaper(done, mesh, found[0].kind)
    assert change.setting == "ema_decay=None" and change.saving == pytest.approx(found[0].parameters)


def changed_task(task):
    while task.memory_savings():
        task = task.memory_savings()[0][2]
    return task


@dataclasses.dataclass(frozen=True)
class Hungry(SmallTask):
    """Sorts more numbers than any address space holds: 2 PB."""

    share: float = 1.0

    def memory_savings(self):
        changed = [dataclasses.replace(self, share=self.share / n) for n in (2, 4)]
        return [(f"share={task.share}", "sorts less", task) for task in changed]

    def loss_parts(self, update, params, model_state, batch, denominators, key):
        parts = super().loss_parts(update, params, model_state, batch, denominators, key)
        x = jnp.tile(batch["x"] * params["first"]["kernel"].sum(), (1, 1 << 25))
        offsets = jnp.arange(int(self.share * (1 << 14)), dtype=jnp.float32)
        much = jnp.sort(jnp.exp(x[:, None] + offsets[:, None]), axis=1)
        return parts._replace(loss=parts.loss + much[:, 7].sum())


def test_out_of_memory_names_the_cheapest_changes(tmp_path):
    """A step that runs, and asks the machine for what it cannot have."""
    with pytest.raises(MoshijaxError) as error:
        train(ExperimentConfig(task=Hungry(), steps=2), tmp_path / "run")
    assert isinstance(error.value.__cause__, jax.errors.JaxRuntimeError)
    message = str(error.value)
    assert re.match(
        r"a device has no memory left \(RESOURCE_EXHAUSTED: Out of memory allocating \d{15,} bytes", message
    )
    assert "cheapest changes: 1. microbatches=2 (saves about" in message
    assert "; 2. task.share=0.5 (saves" in message and "; 3. task.share=0.25 (saves" in message


RECIPE = """
from __gin__ import dynamic_registration
from moshijax.data import grids
from moshijax.lm import configs
from moshijax.train import experiment
from moshijax.train.tasks import lm as lm_task

experiment.ExperimentConfig:
  task = @lm_task.LMTask()
  mesh = @experiment.MeshConfig()
lm_task.LMTask:
  model = %configs.TINY
  tokenizer = 'none.model'
  audio = @lm_task.AudioSteps()
lm_task.AudioSteps.data = @grids.GridData()
grids.GridData:
  paths = ('none',)
experiment.MeshConfig.fsdp = 2
"""


def test_the_command(tmp_path, cli):
    """Neither the data nor the tokenizer is there."""
    recipe = tmp_path / "tiny.gin"
    recipe.write_text(RECIPE)
    code, out, err = cli("plan", recipe, "--devices", 4, "--memory-gb", 0.001, "--device", "h100")
    assert code == 1, err
    assert "tiny.gin on 4 devices (data 2 x fsdp 2 x tensor 1), compiled for CPU" in out
    for word in ("parameters", "optimiser states", "gradients and activations", "temporal", "depth", "frames/s"):
        assert word in out, out
    assert "audio step: does not fit" in out
    assert "cheapest changes: 1. " in err and "mesh.data=1 mesh.fsdp=4" in err
    code, _, err = cli("plan", recipe, "--devices", 3)
    assert code == 2 and "leaves 3 devices / 2" in err
    code, _, err = cli("plan", recipe)
    assert code == 2 and "--devices N" in err


@pytest.mark.slow
def test_7b_on_8_devices_is_planned_without_its_parameters(cli):
    code, out, err = cli("plan", "moshi/pretraining.gin", "--devices", 8, "--gin.mesh.fsdp=8")
    assert code == 0, err
    print(out)
    assert "fsdp 8" in out and "parameters" in out


def test_a_slice_without_its_compiler_is_refused(tmp_path, cli):
    if importlib.util.find_spec("libtpu"):
        pytest.skip("libtpu is here")
    recipe = tmp_path / "tiny.gin"
    recipe.write_text(RECIPE)
    code, _, err = cli("plan", recipe, "--topology", "v5p-8")
    assert code == 2 and "v5p-8" in err and "pip install 'moshijax[tpu]'" in err and "Traceback" not in err


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs libtpu, which compiles for TPUs without one")
def test_a_described_slice(tmp_path, cli):
    recipe = tmp_path / "tiny.gin"
    recipe.write_text(RECIPE)
    code, out, err = cli("plan", recipe, "--topology", "v5p-8")
    assert code == 0, err
    assert "tiny.gin on 4 devices (data 2 x fsdp 2 x tensor 1), compiled for TPU v5" in out
    assert "4 x 459 TFLOP/s" in out and "peak" in out
    code, _, err = cli("plan", recipe, "--topology", "v5p-8", "--gin.task.audio.data.batch_size=4000000")
    assert code == 1 and "does not fit a TPU v5: RESOURCE_EXHAUSTED" in err and "available HBM (95.74G)" in err
    assert "cheapest changes: 1. microbatches=2" in err
