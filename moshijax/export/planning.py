"""A plan of serving an artifact on a device that need not be there: what its compiled step takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moshijax.compiled import report, targets
from moshijax.compiled.chips import find
from moshijax.errors import ConfigError
from moshijax.runtime import manifest as manifests
from moshijax.runtime.programs import read_program


@dataclass(frozen=True)
class Plan:
    """What was planned.

    Attributes:
      lines: For a reader.
      verdict: What is wrong if the step does not fit the device, else None.
    """

    lines: list[str]
    verdict: str | None


def plan(artifact: str | Path, topology: str, batch: int | None = None) -> Plan:
    """Compile the step of an artifact for a described device.

    Args:
      artifact: Its directory.
      topology: Such as "cuda:l40s", or a TPU slice of one chip.
      batch: Calls that take part; None: the smallest the artifact has.

    Raises:
      ConfigError: a topology of several devices, or one that the artifact was not exported for, or another batch size.
      DataError: as `manifest.read` and `manifest.check_file`.
    """
    folder = Path(artifact)
    manifest = manifests.read(folder)
    if manifest["config"]["policy"]["type"] == manifests.ANSWER:
        raise ConfigError(f"{folder} answers questions one by one; only artifacts of calls can be planned")
    if targets.count_devices(topology) != 1:
        raise ConfigError(f"topology {topology!r} has several devices; an artifact runs on one")
    platform = "cuda" if topology.startswith(targets.CUDA) else "tpu"
    batch = min(manifest["batches"]) if batch is None else batch
    for what, value, known, remedy in (
        ("platform", platform, manifest["platforms"], f"--platforms {platform}"),
        ("batch size", batch, manifest["batches"], f"--batch {batch}"),
    ):
        if value not in known:
            raise ConfigError(
                f"{folder} has no {what} {value}, but {', '.join(map(str, known))}; export it again with {remedy}"
            )
    file = manifests.check_file(folder, manifest, manifests.program_file("step", platform, batch))
    exported = read_program(file)
    (device,) = targets.describe(topology)
    chip = find(device.device_kind)
    found = report.compile_exported(exported, device)
    lines = [f"step of {folder.name} for {batch} calls on one {device.device_kind}, compiled, not run", ""]
    lines += report.lines(found, chip)
    verdict = None
    memory = targets.memory_of(device)
    if memory is not None and found.peak > memory:
        verdict = (
            f"a step for {batch} calls takes {report.size_text(found.peak)}, a process is given "
            f"{report.size_text(memory)}; serve fewer calls, or use a larger device"
        )
    return Plan(lines, verdict)
