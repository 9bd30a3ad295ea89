"""A plan of serving an artifact on a device that need not be there: what its compiled programs take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from moshijax.compiled import report, targets
from moshijax.compiled.chips import find
from moshijax.errors import ConfigError
from moshijax.runtime import manifest as manifests
from moshijax.runtime.programs import read_program

#: What the lengths of programs count.
_LENGTHS = {"prefill": "ids", "durations": "units", "vocode_chunk": "frames"}


@dataclass(frozen=True)
class Plan:
    """What was planned.

    Attributes:
      lines: For a reader.
      verdict: What is wrong if it does not fit the device, else None.
    """

    lines: list[str]
    verdict: str | None


def plan(artifact: str | Path, topology: str, batch: int | None = None) -> Plan:
    """Compile the step of an artifact, or the programs of one that answers questions, for a described device.

    Args:
      artifact: Its directory.
      topology: Such as "cuda:l40s", or a TPU slice of one chip.
      batch: Calls that take part; None: the smallest the artifact has.

    Raises:
      ConfigError: a topology of several devices, or one that the artifact was not exported for, or another batch size;
        a batch size of an artifact that answers questions, whose programs are for one caller.
      DataError: as `manifest.read` and `manifest.check_file`.
    """
    folder = Path(artifact)
    manifest = manifests.read(folder)
    answers = manifest["config"]["policy"]["type"] == manifests.ANSWER
    if answers and batch is not None:
        raise ConfigError(
            f"--batch is for calls, and {folder} answers its callers in turn; omit it: the plan says how many fit"
        )
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
    (device,) = targets.describe(topology)
    return answering(folder, manifest, device) if answers else _calls(folder, manifest, platform, batch, device)


def _calls(folder: Path, manifest: Mapping[str, Any], platform: str, batch: int, device: Any) -> Plan:
    """Plan the step of an artifact for so many calls."""
    exported = read_program(manifests.check_file(folder, manifest, manifests.program_file("step", platform, batch)))
    found = report.compile_exported(exported, device)
    lines = [f"step of {folder.name} for {batch} calls on one {device.device_kind}, compiled, not run", ""]
    lines += report.lines(found, find(device.device_kind))
    verdict = None
    memory = targets.memory_of(device)
    if memory is not None and found.peak > memory:
        verdict = (
            f"a step for {batch} calls takes {report.size_text(found.peak)}, a process is given "
            f"{report.size_text(memory)}; serve fewer calls, or use a larger device"
        )
    return Plan(lines, verdict)


@dataclass(frozen=True)
class Memory:
    """What callers take who are answered in turn; bytes.

    Attributes:
      weights: Of all of them.
      caches: Of each.
      running: The most that a program takes beside both.
    """

    weights: int
    caches: int
    running: int

    def callers(self, memory: float) -> int:
        """Return how many callers so much memory holds."""
        return max(0, int((memory - self.weights - self.running) // self.caches))


def answering(folder: Path, manifest: Mapping[str, Any], device: Any, memory: float | None = None) -> Plan:
    """Plan an artifact that answers questions, whose programs are for one caller with caches of his own.

    Args:
      folder: Of the artifact.
      manifest: Its `artifact.json`.
      device: It was exported for its platform.
      memory: Bytes that a process is given; None: as the device has them, or all if nothing is known of it.

    Raises:
      DataError: as `manifest.check_file`.
    """
    platform = "cuda" if device.platform == "gpu" else device.platform
    chip, memory = find(device.device_kind), memory or targets.memory_of(device)
    found, arguments = {}, {}
    for name in manifest["inputs"]:
        length = max(manifest["lengths"].get(name, [0])) or None
        exported = read_program(
            manifests.check_file(folder, manifest, manifests.program_file(name, platform, 1, length))
        )
        parts, _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
        arguments[name] = [sum(x.size * x.dtype.itemsize for x in part.values()) for part in parts]
        title = name if length is None else f"{name}, {length} {_LENGTHS[name]}"
        found[name] = title, report.compile_exported(exported, device)
    weights, caches, _ = arguments["decode_token"]
    beside = (made.peak - sum(arguments[name][:2]) for name, (_, made) in found.items())
    taken = Memory(weights, caches, max(0, *beside))
    size = report.size_text
    lines = [
        f"answers of {folder.name} on one {device.device_kind}, compiled, not run",
        "",
        f"weights      {size(taken.weights)}, once",
        f"caches       {size(taken.caches)} for every caller",
        f"beside them  {size(taken.running)} while a program runs",
    ]
    verdict = None
    if memory is not None:
        lines.append(f"callers      {taken.callers(memory)} of them fit the {size(memory)} that a process is given")
        if not taken.callers(memory):
            verdict = (
                f"one caller takes {size(taken.weights + taken.caches + taken.running)}, a process is given "
                f"{size(memory)}; store smaller weights (moshijax export --weights-dtype), or use a larger device"
            )
    if chip is not None:
        token = sum(found[name][1].seconds(chip) for name in ("decode_token", "decode_units"))
        lines.append(f"a token      {1e3 * token:.2f} ms at least, with its units of speech")
    for title, made in found.values():
        lines += ["", title, *report.lines(made, chip)]
    return Plan(lines, verdict)
