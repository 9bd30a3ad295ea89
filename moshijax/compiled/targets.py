"""Devices to compile for that need not be there: NVIDIA cards by the CUDA plug-in of jax, slices of TPUs by libtpu."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from typing import Any

import jax

from moshijax.compiled.chips import find
from moshijax.errors import ConfigError

# TPU generation -> dimensions of its torus, and TensorCores per chip in the name of a slice ("v5p-256" has 128 chips).
TPUS = {"v4": (3, 2), "v5p": (3, 2), "v5e": (2, 1), "v6e": (2, 1)}

#: Devices of an NVIDIA host; more of them are several hosts.
CARDS_PER_HOST = 8
#: XLA plans for this share of the memory it is told of, and recomputes values to stay below it.
PLANNED_SHARE = 0.8
#: Share of a card's memory that a process is given here (`XLA_PYTHON_CLIENT_MEM_FRACTION`).
GIVEN_SHARE = 0.95
WITHOUT_TRITON = {"xla_gpu_enable_triton_gemm": False}


@dataclass(frozen=True)
class Card:
    """What XLA's compiler has to know of an NVIDIA card (`GpuDeviceInfoProto`) besides its `Chip`; bytes and GHz.

    Attributes:
      name: By which it calls itself.
      capability: Compute capability.
      accelerated: It has the features of its generation that later ones may lack (`sm_90a`).
      cores: Streaming multiprocessors.
      threads_per_core, shared_per_core, shared_per_block: Of a multiprocessor, and the most that a block may ask for.
      l2, clock: Of the card.
    """

    name: str
    capability: tuple[int, int]
    accelerated: bool
    cores: int
    threads_per_core: int
    shared_per_core: int
    shared_per_block: int
    l2: int
    clock: float


# From the occupancy tables of the CUDA programming guide and the data sheets.
CARDS = {
    "a100": Card("NVIDIA A100-SXM4-80GB", (8, 0), False, 108, 2048, 167936, 166912, 41943040, 1.41),
    "h100": Card("NVIDIA H100 80GB HBM3", (9, 0), True, 132, 2048, 233472, 232448, 52428800, 1.98),
    "h200": Card("NVIDIA H200", (9, 0), True, 132, 2048, 233472, 232448, 52428800, 1.98),
    "l40s": Card("NVIDIA L40S", (8, 9), False, 142, 1536, 102400, 101376, 100663296, 2.52),
}
CUDA = "cuda:"


def count_devices(topology: str, devices: int | None = None) -> int:
    """Count the devices of a topology: `devices` NVIDIA cards (1 if None), or the chips of a TPU slice.

    Raises:
      ConfigError: no such topology, or another number than `devices`.
    """
    if topology.startswith(CUDA):
        card = topology.removeprefix(CUDA)
        if card not in CARDS:
            raise ConfigError(f"topology {topology!r} is unknown; the cards are {', '.join(CUDA + c for c in CARDS)}")
        count = devices or 1
        if count > CARDS_PER_HOST and count % CARDS_PER_HOST:
            raise ConfigError(f"--devices is {count}: more than {CARDS_PER_HOST} cards must be a multiple of that")
        return count
    match = re.fullmatch(r"(v\d+[a-z]?)-(\d+)", topology)
    if match is None or match[1] not in TPUS:
        raise ConfigError(
            f"topology {topology!r} is unknown; write {', '.join(CUDA + card for card in CARDS)}, or {', '.join(TPUS)} "
            "and a size, such as v5p-256"
        )
    chips = int(match[2]) // TPUS[match[1]][1]
    if not chips or chips & (chips - 1):
        raise ConfigError(f"topology {topology!r} has {chips} chips; slices have 1, 2, 4, 8, ...")
    if devices not in (None, chips):
        raise ConfigError(f"topology {topology!r} has {chips} chips, but --devices is {devices}; omit one of the two")
    return chips


def describe(topology: str, devices: int | None = None) -> list[Any]:
    """Describe the devices of a topology, for `jax.sharding`; call it before jax has looked for devices.

    Raises:
      ConfigError: see `count_devices`; or the compiler for these devices is not installed.
    """
    count = count_devices(topology, devices)
    return _cards(topology, count) if topology.startswith(CUDA) else _chips(topology)


def _cards(topology: str, count: int) -> list[Any]:
    os.environ["JAX_PLATFORMS"] = "cpu"  # with a plug-in and no driver, looking for a GPU would fail
    jax.config.update("jax_platforms", "cpu")
    from jax.experimental import topologies

    shape = f"1x{math.ceil(count / CARDS_PER_HOST)}x{min(count, CARDS_PER_HOST)}"  # partitions, hosts, cards of a host
    config = _target_config(CARDS[topology.removeprefix(CUDA)])
    try:
        return list(topologies.get_topology_desc(platform="cuda", topology=shape, target_config=config).devices)
    except Exception as error:
        raise _not_here(topology, error, "compile-cuda") from error


def _target_config(card: Card) -> str:
    """Return the card as the text of a `GpuTargetConfigProto`."""
    major, minor = card.capability
    chip = find(card.name)
    assert chip is not None, card.name
    features = "feature_extension: ACCELERATED_FEATURES" if card.accelerated else ""
    return f"""
        gpu_device_info {{
          threads_per_block_limit: 1024
          threads_per_warp: 32
          shared_memory_per_block: 49152
          shared_memory_per_core: {card.shared_per_core}
          threads_per_core_limit: {card.threads_per_core}
          core_count: {card.cores}
          fpus_per_core: 128
          block_dim_limit_x: 2147483647
          block_dim_limit_y: 65535
          block_dim_limit_z: 65535
          memory_bandwidth: {int(chip.bandwidth)}
          l2_cache_size: {card.l2}
          clock_rate_ghz: {card.clock}
          device_memory_size: {int(chip.memory * GIVEN_SHARE / PLANNED_SHARE)}
          shared_memory_per_block_optin: {card.shared_per_block}
          cuda_compute_capability {{ major: {major} minor: {minor} {features} }}
          registers_per_core_limit: 65536
          registers_per_block_limit: 65536
          device_vendor: "NVIDIA Corporation"
          name: "{card.name}"
          driver_version: "13.0.0"
          runtime_version: "13.0.0"
          compile_time_toolkit_version: "13.0.0"
          dnn_version: "9.10.0"
        }}
        platform_name: "CUDA"
        dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
        runtime_version {{ major: 13 minor: 0 patch: 0 }}
        device_description_str: "{card.name}"
    """


def memory_of(device: Any) -> float | None:
    """Return the bytes of its memory that a process is given; None where nothing is known of the device."""
    chip = find(device.device_kind)
    if chip is None:
        return None
    return chip.memory * GIVEN_SHARE if device.platform == "gpu" else chip.memory


def training_options(topology: str | None) -> dict[str, Any]:
    """Return compiler options for training steps on the devices of a topology.

    A card that is there times its products, and takes cuBLAS for most; without one XLA would take Triton for all.
    """
    return WITHOUT_TRITON if topology is not None and topology.startswith(CUDA) else {}


def torus(topology: str) -> str:
    """Return the name by which libtpu knows a slice: "v5p-256" is "v5p:4x4x8"."""
    return f"{topology.split('-')[0]}:{'x'.join(map(str, _sides(topology)))}"


def _sides(topology: str) -> list[int]:
    """Return the chips along each dimension of a slice, shortest first; up to a host's 2 x 2 chips, longest first."""
    kind, chips = topology.split("-")[0], count_devices(topology)
    sizes = [1] * TPUS[kind][0]
    for _ in range(int(math.log2(chips))):
        sizes[sizes.index(min(sizes))] *= 2
    return sorted(sizes, reverse=chips < 8)


def _chips(topology: str) -> list[Any]:
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no question to Google's cloud about this machine
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no chip is used, so other processes may use libtpu
    from jax.experimental import topologies

    sides, kind = _sides(topology), topology.split("-")[0]
    options: dict[str, Any] = {"chips_per_host_bounds": [*(min(2, side) for side in sides[:2]), 1]}
    if TPUS[kind][1] == 2:
        options["chip_config_name"] = "megacore"  # the two cores of a chip are one device
    try:
        return list(topologies.get_topology_desc(torus(topology), platform="tpu", **options).devices)
    except Exception as error:
        raise _not_here(topology, error, "tpu") from error


def _not_here(topology: str, error: Exception, extra: str) -> ConfigError:
    reason = str(error).splitlines()[0]
    return ConfigError(
        f"no description of {topology} here ({reason}); if its compiler is missing: pip install 'moshijax[{extra}]'"
        + (", or for training steps 'moshijax[cuda13]'" if extra == "compile-cuda" else "")
    )
