"""Body of the test that compares a plan with the memory of a process; it runs in a process of its own."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
from pathlib import Path

import jax
import numpy as np

from moshijax import data
from moshijax.nn.transformer import TransformerConfig
from moshijax.train import sharding
from moshijax.train.experiment import ExperimentConfig
from moshijax.train.plan.footprint import footprints
from moshijax.train.state import plan_state
from moshijax.train.steps import compile_step
from moshijax.train.tasks.lm import AudioSteps, LMTask
from tests.train.support.models import LM, MOSHI


def resident(field: str) -> int:
    """Bytes of this process in memory now ("VmRSS") or at most since the last reset ("VmHWM")."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return 1024 * int(line.split()[1])


def settled() -> int:
    """Bytes of this process in memory, after what was freed went back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return resident("VmRSS")


def uses_what_is_planned() -> None:
    temporal = TransformerConfig(dim=512, num_layers=8, num_heads=8, hidden_dim=1408, context=100, **MOSHI)
    model = dataclasses.replace(LM, temporal=temporal)
    grids = data.GridData(("none",), batch_size=4, num_frames=100)
    experiment = ExperimentConfig(task=LMTask(model, "none", AudioSteps(grids)))
    (kind,) = experiment.step_kinds
    mesh = sharding.make_mesh(experiment.mesh)
    planned = footprints(experiment, mesh)[0]
    batch = {k: np.zeros(x.shape, x.dtype) for k, x in experiment.task.batch_shapes(kind, grids).items()}
    with sharding.context(mesh):
        plan = plan_state(experiment.task, experiment, mesh)
        program = compile_step(experiment.task, experiment, plan, kind, batch, mesh)
        # Twice: what the compiler keeps of the program that makes the state is none of the state.
        for _ in range(2):
            state = packed = None
            before = settled()
            state = jax.block_until_ready(plan.create(0))
            settled()
            Path("/proc/self/clear_refs").write_text("5")  # the mark of the most is set to what is used now
            state, packed = jax.block_until_ready(program.run(state, jax.device_put(batch)))
            used = resident("VmHWM") - before
    print(f"planned {planned.peak / 1e6:.1f} MB, used {used / 1e6:.1f} MB")
    assert abs(used - planned.peak) < 0.05 * planned.peak, (used, planned.peak)
