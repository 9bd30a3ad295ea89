"""The shipped recipes: each loads, says what it is for, and resolves to the config that is on record."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import pytest

from moshijax import config, shipped
from moshijax.eval.evaluation import EvaluationConfig
from moshijax.train.experiment import ExperimentConfig, MeshConfig
from tests.train.support.devices import run_on_devices

GOLDEN = Path(__file__).parent / "golden"
RECIPES = sorted(shipped.folder("experiments").rglob("*.gin"))
NAMES = [str(path.relative_to(shipped.folder("experiments"))) for path in RECIPES]
UPDATE = "MOSHIJAX_UPDATE_GOLDEN"


def root(name):
    """What a recipe describes: a training run, or in `eval` an evaluation."""
    return EvaluationConfig if name.startswith("eval/") else ExperimentConfig


@pytest.mark.parametrize("name", NAMES)
def test_the_resolved_config_is_the_one_on_record(name) -> None:
    """A change here is a change of an experiment: look at the difference, then update with MOSHIJAX_UPDATE_GOLDEN=1."""
    text = config.dump(config.load(name, root=root(name)), defaults=False)
    golden = GOLDEN / name
    if UPDATE in os.environ:
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(text)
    assert golden.exists(), f"no {golden}; run again with {UPDATE}=1"
    assert text == golden.read_text(), f"{name} resolves to another config; if that is meant, run again with {UPDATE}=1"


@pytest.mark.parametrize("defaults", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_the_resolved_config_loads_back_equal(name, tmp_path, defaults) -> None:
    made = config.load(name, root=root(name))
    (tmp_path / "resolved.gin").write_text(config.dump(made, defaults))
    assert config.load(tmp_path / "resolved.gin", root=root(name)) == made


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_opens_with_its_command_hardware_time_and_result(name) -> None:
    lines = (shipped.folder("experiments") / name).read_text().splitlines()
    head = "\n".join(
        line for line in lines[: next(i for i, line in enumerate([*lines, ""]) if not line.startswith("#"))]
    )
    command = "eval" if name.startswith("eval/") else "train"
    assert f"moshijax {command} {name}" in head, "the first comment gives the command"
    for word in ("hardware", "time", "result"):
        assert word in head.lower(), f"the first comment says nothing of {word}"


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("moshi/")])
def test_sequences_of_full_size_models_are_not_padded(name) -> None:
    """On NVIDIA GPUs, XLA pads the rows of every product in half precision to a multiple of 8."""
    for kind in config.load(name).step_kinds:
        for data in (kind.data, kind.eval_data):
            assert data is None or data.num_frames % 8 == 0, data


def test_no_record_outlives_its_recipe() -> None:
    assert sorted(str(path.relative_to(GOLDEN)) for path in GOLDEN.rglob("*.gin")) == NAMES


MESH = re.compile(r"--gin\.mesh\.(\w+)=(-?\d+)")
HARDWARE = re.compile(r"^# Hardware: (?:(\d+)|one) H100", re.MULTILINE)


FOR_GPUS = [path for path in RECIPES if HARDWARE.search(path.read_text())]


@pytest.mark.parametrize("path", FOR_GPUS, ids=lambda path: path.stem)
def test_batches_divide_by_the_mesh_and_the_hardware_that_a_recipe_names(path) -> None:
    header = path.read_text().split("from __gin__")[0]
    devices = int(HARDWARE.search(header)[1] or 1)
    mesh = MeshConfig(**{axis: int(size) for axis, size in MESH.findall(header)}).shape(devices)
    assert math.prod(mesh.values()) == devices
    experiment = config.load(path)
    devices = mesh["data"] * mesh["fsdp"]
    for kind in experiment.step_kinds:
        rows, rest = divmod(kind.data.batch_size, experiment.microbatches)
        assert rest == 0 and rows % devices == 0
    for kind in experiment.held_out:
        assert kind.eval_data.batch_size % devices == 0  # in one piece


@pytest.mark.slow
@pytest.mark.parametrize("path", FOR_GPUS, ids=lambda path: path.stem)
def test_no_array_of_a_recipe_is_moved_whole_between_layouts(path) -> None:
    """Two layers stand for all, which are scanned: what is split how does not depend on their number."""
    header = path.read_text().split("from __gin__")[0]
    devices = int(HARDWARE.search(header)[1] or 1)
    mesh = MeshConfig(**{axis: int(size) for axis, size in MESH.findall(header)}).shape(devices)
    output = run_on_devices(devices, "tests.train.support.multi_device:compiles_a_recipe", path, *mesh.values())
    assert "exchanges" in output and "full rematerialization" not in output
