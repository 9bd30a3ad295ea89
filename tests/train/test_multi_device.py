from __future__ import annotations

import shutil
from dataclasses import dataclass

import jax
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from moshijax.errors import ConfigError
from moshijax.train import sharding
from moshijax.train.experiment import MeshConfig
from moshijax.train.loop import train
from moshijax.weights.run_files import read_metrics
from tests.train.support.devices import run_on_devices
from tests.train.support.multi_device import SMALL

HERE = "tests.train.support.multi_device"
MESH = AbstractMesh((2, 2, 2), ("data", "fsdp", "tensor"))


def test_losses_and_gradients_agree_with_one_device():
    run_on_devices(8, f"{HERE}:small_agrees_with_one_device")


def test_the_lowered_step_keeps_the_sharding_constraints():
    run_on_devices(8, f"{HERE}:small_has_its_constraints")


def test_embeddings_are_added_up_before_they_travel():
    output = run_on_devices(8, f"{HERE}:lm_adds_embeddings_before_they_travel")
    assert "full rematerialization" not in output


def test_kernels_of_layers_are_gathered_once_in_each_pass():
    run_on_devices(8, f"{HERE}:lm_gathers_kernels_once_per_pass")


@pytest.mark.slow
def test_a_run_on_8_devices_is_the_run_on_one_and_reads_its_checkpoints(tmp_path):
    train(SMALL, tmp_path / "one")
    run_on_devices(8, f"{HERE}:trains_like_one_device", tmp_path / "one", tmp_path)
    run_on_devices(8, f"{HERE}:restores_a_checkpoint_of_one_device", tmp_path / "one")


def test_a_run_of_8_devices_goes_on_with_one(tmp_path):
    run_on_devices(8, f"{HERE}:writes_a_checkpoint", tmp_path / "eight")
    # The same recipe on another mesh: the last checkpoint is taken away, so that the run has steps left.
    shutil.rmtree(tmp_path / "eight" / "checkpoints" / "12")
    train(SMALL, tmp_path / "eight")
    assert read_metrics(tmp_path / "eight" / "metrics.jsonl")[-1]["step"] == 12


def test_rows_that_do_not_divide_are_refused():
    run_on_devices(8, f"{HERE}:refuses_what_does_not_divide")


@dataclass(frozen=True)
class Chip:
    """What `jax` asks of a chip when it lays a mesh over a slice."""

    coords: tuple[int, int, int]
    id: int
    device_kind: str = "TPU v5"
    platform: str = "tpu"
    process_index: int = 0
    core_on_chip: int = 0


def test_an_axis_may_take_a_part_of_a_dimension_of_a_slice():
    """v5p-256 has 4 x 4 x 8 chips: 64 x 2 of them splits one."""
    chips = [Chip((x, y, z), x + 4 * y + 16 * z) for z in range(8) for y in range(4) for x in range(4)]
    for config in (MeshConfig(1, 64, 2), MeshConfig(16, 4, 2), MeshConfig(2, 32, 2), MeshConfig()):
        mesh = sharding.make_mesh(config, chips)
        assert dict(mesh.shape) == config.shape(128) and set(mesh.devices.flat) == set(chips)
        if mesh.shape["tensor"] == 2:  # neighbours
            pairs = mesh.devices.reshape(-1, 2)
            assert all(sum(abs(a - b) for a, b in zip(p.coords, q.coords, strict=True)) == 1 for p, q in pairs)


def test_rules_map_and_refuse():
    assert sharding.spec_of("w", (8, 16), ("mlp", "embed"), MESH) == PartitionSpec("tensor", "fsdp")
    assert sharding.spec_of("x", (8, 3), ("batch", None), MESH) == PartitionSpec(("data", "fsdp"), None)
    with pytest.raises(ConfigError, match="w: dimension 'mlp' of size 7 does not divide by the 2 devices"):
        sharding.spec_of("w", (7, 16), ("mlp", "embed"), MESH)
    with pytest.raises(ConfigError, match="'heads' and 'mlp' both map to mesh axis 'tensor'"):
        sharding.spec_of("w", (8, 8), ("heads", "mlp"), MESH)
    with pytest.raises(ConfigError, match="logical axis 'mpl', for which there is no rule"):
        sharding.spec_of("w", (8,), ("mpl",), MESH)
    assert jax.device_count() == 1
