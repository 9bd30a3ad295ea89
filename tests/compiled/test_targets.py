from __future__ import annotations

import os
import subprocess
import sys

import pytest

from moshijax.compiled import chips, targets
from moshijax.errors import ConfigError
from tests.programs import HAS_CUDA_COMPILER


def test_slices_by_name():
    assert targets.torus("v5p-256") == "v5p:4x4x8" and targets.count_devices("v5p-256") == 128
    assert targets.torus("v5p-8") == "v5p:2x2x1" and targets.torus("v5p-16") == "v5p:2x2x2"
    assert targets.torus("v6e-64") == "v6e:8x8" and targets.count_devices("v6e-64") == 64


def test_cards_by_name():
    assert targets.count_devices("cuda:h100") == 1 and targets.count_devices("cuda:l40s", 16) == 16
    for name, card in targets.CARDS.items():
        chip = chips.find(card.name)
        assert chip is not None and chip.part == name
        text = targets._target_config(card)
        assert f"memory_bandwidth: {int(chip.bandwidth)}" in text
        assert f"device_memory_size: {int(chip.memory * 0.95 / 0.8)}" in text


@pytest.mark.parametrize(
    ("name", "devices", "message"),
    [
        ("h100-8", None, "write cuda:a100, cuda:h100, cuda:h200, cuda:l40s, or v4"),
        ("cuda:b200", None, "the cards are cuda:a100"),
        ("cuda:h100", 12, "must be a multiple"),
        ("v6e-48", None, "slices have 1, 2, 4"),
        ("v6e-64", 8, "has 64 chips, but --devices is 8"),
    ],
)
def test_names_that_mean_nothing(name, devices, message):
    with pytest.raises(ConfigError, match=message):
        targets.count_devices(name, devices)


def test_figures_belong_to_the_name_by_which_a_device_calls_itself():
    assert chips.find("NVIDIA L40S").flops == 2 * chips.find("NVIDIA L40").flops
    assert chips.find("TPU v5 lite").bandwidth < chips.find("TPU v5").bandwidth
    assert chips.find("cpu") is None


DESCRIBED = """
from moshijax.compiled import targets
devices = targets.describe("cuda:h100", 16)
assert len(devices) == 16 and devices[0].device_kind == "NVIDIA H100 80GB HBM3", devices
assert len({d.process_index for d in devices}) == 2
"""


@pytest.mark.skipif(not HAS_CUDA_COMPILER, reason="needs the extra compile-cuda")
def test_cards_that_are_not_there_are_described():
    """In a process of its own: jax looks for devices once."""
    subprocess.run([sys.executable, "-c", DESCRIBED], check=True, env={**os.environ, "JAX_PLATFORMS": ""})
