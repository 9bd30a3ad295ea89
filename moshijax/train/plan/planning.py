"""A plan of a run on devices that need not be there: memory, arithmetic and time of its steps, as lines of text."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import jax

from moshijax.compiled import report, targets
from moshijax.compiled.chips import CHIPS, Chip, find
from moshijax.compiled.report import size_text
from moshijax.errors import ConfigError, MoshijaxError
from moshijax.train import sharding
from moshijax.train.experiment import ExperimentConfig
from moshijax.train.plan.footprint import Footprint, footprints, is_out_of_memory, remedies


@dataclass(frozen=True)
class Request:
    """What to plan for.

    Attributes:
      recipe: its name, for a reader.
      devices: their number.
      memory_gb: of a device, in 10^9 bytes; None: that of the topology, if there is one.
      topology: what to compile for, such as "cuda:h100" or "v5p-256"; None: devices of this machine.
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


def devices_for(request: Request) -> list[Any]:
    """Choose the devices to compile for; call it before jax has looked for devices.

    Returns:
      Those of the topology, else the accelerators of this machine if there are enough, else CPU devices.

    Raises:
      ConfigError: see `targets.describe`.
    """
    if request.topology is not None:
        return targets.describe(request.topology, request.devices)
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
        found = footprints(experiment, mesh, targets.training_options(request.topology))
    except RuntimeError as error:
        if "cudnn" in str(error).lower():
            raise ConfigError(
                "cuDNN is needed to compile the attention of these steps: pip install 'moshijax[cuda13]'"
            ) from error
        if not is_out_of_memory(error):
            raise
        changes, said = remedies(experiment, mesh, experiment.step_kinds), str(error).splitlines()[0]
        raise MoshijaxError(f"does not fit a {devices[0].device_kind}: {said}; {changes}") from error
    kind = devices[0].device_kind if devices[0].platform != "cpu" else "CPU"
    shape = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    lines = [f"{request.recipe} on {request.devices} devices ({shape}), compiled for {kind}", ""]
    lines += _table(found)
    chip = _chip(request, devices)
    lines += ["", *_times(found, request, chip)]
    for f in found:
        if f.report is not None:
            own = find(devices[0].device_kind)
            lines += ["", f"{f.kind.name} step on one device, as compiled:", *report.lines(f.report, own)]
            if own is not None:
                lines.append(f"expected MFU {100 * expected_mfu(f, own, request.devices):.0f} % at most, {_LEFT_OUT}")
    memory_gb = request.memory_gb
    memory = targets.memory_of(devices[0])
    if memory_gb is None and request.topology is not None and memory is not None:
        memory_gb = round(memory / 1e9, 1)
    verdict = None
    if memory_gb is not None:
        over = [f for f in found if f.peak > memory_gb * 1e9]
        lines.append("")
        for f in found:
            fits = "does not fit" if f in over else "fits"
            lines.append(f"{f.kind.name} step: {fits}, {size_text(f.peak)} of {memory_gb:g} GB")
        if over:
            worst = max(over, key=lambda f: f.peak)
            changes = remedies(experiment, mesh, [worst.kind])
            needs = f"the {worst.kind.name} step needs {size_text(worst.peak)} per device"
            verdict = f"{needs}, {memory_gb:g} GB are available; {changes}"
    return Plan(lines, verdict)


_LEFT_OUT = "with all exchanges between devices hidden behind arithmetic"


def expected_mfu(found: Footprint, chip: Chip, devices: int) -> float:
    """Return the share of the peak arithmetic that the model's own FLOPs take, in the least time of a compiled step."""
    assert found.report is not None, found.kind
    return sum(found.flops.values()) / devices / (found.report.seconds(chip) * chip.flops)


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
            rows.append((label, [size_text(getattr(f, name)) for f in found]))
    rows.append(("", [""] * len(found)))
    rows.append(("FLOPs per step", [f"{sum(f.flops.values()):.3e}" for f in found]))
    for part in dict.fromkeys(part for f in found for part in f.flops):
        rows.append((f"  {part}", [_share(f.flops.get(part, 0.0), sum(f.flops.values())) for f in found]))
    return [f"{label:27}" + "".join(f"{cell:>16}" for cell in cells) for label, cells in rows]


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _chip(request: Request, devices: list[Any]) -> Chip | None:
    """Return the figures of the kind of device that was named, else of the devices themselves.

    Raises:
      ConfigError: no figures are known for the named kind.
    """
    chip = find(request.kind or devices[0].device_kind)
    if chip is None and request.kind is not None:
        known = ", ".join(chip.part for chip in CHIPS)
        raise ConfigError(f"no peak is known for a device {request.kind!r}; known: {known}")
    return chip


def _times(found: list[Footprint], request: Request, chip: Chip | None) -> list[str]:
    if chip is None:
        return ["time: name the kind of device, such as --device h100"]
    lines = []
    for f in found:
        seconds = sum(f.flops.values()) / (chip.flops * request.devices * request.mfu)
        rates = ", ".join(f"{amount / seconds:,.0f} {what.replace('_', ' ')}/s" for what, amount in f.amounts.items())
        where = f"{100 * request.mfu:.0f} % of {request.devices} x {chip.flops / 1e12:.0f} TFLOP/s"
        lines.append(f"{f.kind.name} step at {where}: {seconds:.3g} s, {rates}")
    return lines
