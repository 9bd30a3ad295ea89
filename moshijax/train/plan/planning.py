"""A plan of a run on devices that need not be there: memory, arithmetic and time of its steps, as lines of text."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from dataclasses import dataclass
from typing import Any

import jax

from moshijax.errors import ConfigError, MoshijaxError
from moshijax.train import sharding
from moshijax.train.experiment import ExperimentConfig
from moshijax.train.plan.flops import PEAK_FLOPS
from moshijax.train.plan.footprint import Footprint, footprints, is_out_of_memory, remedies

# TPU generation -> dimensions of its torus, and TensorCores per chip in the name of a slice ("v5p-256" has 128 chips).
TPUS = {"v4": (3, 2), "v5p": (3, 2), "v5e": (2, 1), "v6e": (2, 1)}


@dataclass(frozen=True)
class Request:
    """What to plan for.

    Attributes:
      recipe: its name, for a reader.
      devices: their number.
      memory_gb: of a device, in 10^9 bytes; None: nothing is compared with it.
      topology: a TPU slice to compile for, such as "v5p-256"; None: devices of this machine.
      kind: name of a device whose peak the times assume; None: the kind compiled for.
      mfu: share of the peak that the times assume.
    """

    recipe: str
    devices: int
    memory_gb: float | None = None
    topology: str | None = None
    kind: str | None = None
    mfu: float = 0.4

    def to_text(self) -> str:
        """Return the request as text for another process."""
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_text(text: str) -> Request:
        """Return the inverse of `to_text`."""
        return Request(**json.loads(text))


@dataclass(frozen=True)
class Plan:
    """What was planned.

    Attributes:
      lines: for a reader.
      verdict: what is wrong if a step does not fit, else None.
    """

    lines: list[str]
    verdict: str | None


def topology_devices(topology: str, devices: int | None = None) -> int:
    """Count the chips of a TPU slice.

    Raises:
      ConfigError: not the name of a slice, or another number than `devices`.
    """
    match = re.fullmatch(r"(v\d+[a-z]?)-(\d+)", topology)
    if match is None or match[1] not in TPUS:
        raise ConfigError(f"topology {topology!r} is unknown; write {', '.join(TPUS)} and a size, such as v5p-256")
    chips = int(match[2]) // TPUS[match[1]][1]
    if not chips or chips & (chips - 1):
        raise ConfigError(f"topology {topology!r} has {chips} chips; slices have 1, 2, 4, 8, ...")
    if devices not in (None, chips):
        raise ConfigError(f"topology {topology!r} has {chips} chips, but --devices is {devices}; omit one of the two")
    return chips


def torus(topology: str) -> str:
    """Return the name by which libtpu knows a slice: "v5p-256" is "v5p:4x4x8"."""
    return f"{topology.split('-')[0]}:{'x'.join(map(str, _sides(topology)))}"


def _sides(topology: str) -> list[int]:
    """Return the chips along each dimension of a slice, shortest first; up to a host's 2 x 2 chips, longest first."""
    kind, chips = topology.split("-")[0], topology_devices(topology)
    sizes = [1] * TPUS[kind][0]
    for _ in range(int(math.log2(chips))):
        sizes[sizes.index(min(sizes))] *= 2
    return sorted(sizes, reverse=chips < 8)


def describe(topology: str) -> list[Any]:
    """Describe the chips of a slice that need not be there, by libtpu: one device each.

    Raises:
      ConfigError: libtpu is not installed, or knows no such slice.
    """
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
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"no description of {topology} here ({reason}); if libtpu is missing: pip install 'moshijax[tpu]'"
        ) from error


def devices_for(request: Request) -> list[Any]:
    """Choose the devices to compile for; call it before jax has looked for devices.

    Returns:
      The chips of a described slice, else the accelerators of this machine if there are enough, else CPU devices.

    Raises:
      ConfigError: see `describe`.
    """
    if request.topology is not None:
        return describe(request.topology)
    jax.config.update("jax_num_cpu_devices", request.devices)
    own = jax.devices()
    if own[0].platform != "cpu" and len(own) >= request.devices:
        return own[: request.devices]
    return jax.devices("cpu")[: request.devices]


def make(experiment: ExperimentConfig, request: Request) -> Plan:
    """Compile the steps of an experiment and describe what they take.

    Raises:
      ConfigError: an experiment, mesh or topology that cannot be.
      MoshijaxError: the compiler itself ran out of memory, as that of TPUs does.
    """
    devices = devices_for(request)
    mesh = sharding.make_mesh(experiment.mesh, devices)
    try:
        found = footprints(experiment, mesh)
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        changes, said = remedies(experiment, mesh, experiment.step_kinds), str(error).splitlines()[0]
        raise MoshijaxError(f"does not fit a {devices[0].device_kind}: {said}; {changes}") from error
    kind = devices[0].device_kind if devices[0].platform != "cpu" else "CPU"
    shape = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    lines = [f"{request.recipe} on {request.devices} devices ({shape}), compiled for {kind}", ""]
    lines += _table(found)
    lines += ["", *_times(found, request, devices)]
    limit = None if request.memory_gb is None else request.memory_gb * 1e9
    verdict = None
    if limit is not None:
        over = [f for f in found if f.peak > limit]
        lines.append("")
        for f in found:
            fits = "fits" if f.peak <= limit else "does not fit"
            lines.append(f"{f.kind.name} step: {fits}, {_gb(f.peak)} of {request.memory_gb:g} GB")
        if over:
            worst = max(over, key=lambda f: f.peak)
            changes = remedies(experiment, mesh, [worst.kind])
            needs = f"the {worst.kind.name} step needs {_gb(worst.peak)} per device"
            verdict = f"{needs}, {request.memory_gb:g} GB are available; {changes}"
    return Plan(lines, verdict)


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"


def _table(found: list[Footprint]) -> list[str]:
    rows: list[tuple[str, list[str]]] = [("memory per device", [f"{f.kind.name} step" for f in found])]
    for label, name in (
        ("parameters", "parameters"),
        ("optimiser states", "optimizer"),
        ("running average", "average"),
        ("codebooks and counters", "other"),
        ("batch", "batch"),
        ("gradients and activations", "temporary"),
        ("peak", "peak"),
    ):
        if any(getattr(f, name) for f in found):
            rows.append((label, [_gb(getattr(f, name)) for f in found]))
    rows.append(("", [""] * len(found)))
    rows.append(("FLOPs per step", [f"{sum(f.flops.values()):.3e}" for f in found]))
    for part in dict.fromkeys(part for f in found for part in f.flops):
        rows.append((f"  {part}", [_share(f.flops.get(part, 0.0), sum(f.flops.values())) for f in found]))
    return [f"{label:27}" + "".join(f"{cell:>16}" for cell in cells) for label, cells in rows]


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _times(found: list[Footprint], request: Request, devices: list[Any]) -> list[str]:
    name = (request.kind or devices[0].device_kind).lower()
    peak = next((peak for part, peak in PEAK_FLOPS if part in name), None)
    if peak is None and request.kind is not None:
        known = ", ".join(part for part, _ in PEAK_FLOPS)
        raise ConfigError(f"no peak is known for a device {request.kind!r}; known: {known}")
    if peak is None:
        return ["time: name the kind of device, such as --device h100"]
    lines = []
    for f in found:
        seconds = sum(f.flops.values()) / (peak * request.devices * request.mfu)
        rates = ", ".join(f"{amount / seconds:,.0f} {what.replace('_', ' ')}/s" for what, amount in f.amounts.items())
        where = f"{100 * request.mfu:.0f} % of {request.devices} x {peak / 1e12:.0f} TFLOP/s"
        lines.append(f"{f.kind.name} step at {where}: {seconds:.3g} s, {rates}")
    return lines
