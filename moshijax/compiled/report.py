"""A program compiled for a device, as figures and as lines of text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax

from moshijax.compiled import targets
from moshijax.compiled.chips import Chip
from moshijax.compiled.program import Program

#: Moves of fewer bytes are not named.
SMALLEST_MOVE = 1_000_000
#: Largest moves that a reader sees; the others are added up.
SHOWN_MOVES = 12


@dataclass(frozen=True)
class Report:
    """What the compiler made of a program; all sizes in bytes, on one device.

    Attributes:
      arguments, outputs: Of the program.
      aliased: Those of the outputs that lie where arguments lay.
      temporary: What it allocates while it runs.
      moved: Read and written in a run, as `Program.moved_bytes` counts.
      floor: The bytes without which it could not do, see `floor_is`.
      flops: Of its contractions and convolutions.
      kernels: Instructions that are launched.
      conditionals, loops: Instructions that choose or repeat others.
      moves: What only moves values or changes their type, over 1 MB: description -> (times, bytes).
      collectives: Kind -> (times, bytes of the results).
      attention: Attention kernels of a library -> times.
      traffic: Kind of instructions -> bytes of `moved`, see `Program.traffic`; {} for TPUs.
      floor_is: What the floor is, in words.
    """

    arguments: int
    outputs: int
    aliased: int
    temporary: int
    moved: int
    floor: int
    flops: float
    kernels: int
    conditionals: int
    loops: int
    moves: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    collectives: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    attention: Mapping[str, int] = field(default_factory=dict)
    traffic: Mapping[str, int] = field(default_factory=dict)
    floor_is: str = "every argument read once"

    @property
    def peak(self) -> int:
        """Bytes that are taken while the program runs."""
        return self.arguments + self.outputs - self.aliased + self.temporary

    def seconds(self, chip: Chip) -> float:
        """Return the time that its traffic or its arithmetic takes at least, whichever is longer."""
        return max(self.moved / chip.bandwidth, self.flops / chip.flops)


def examine(compiled: jax.stages.Compiled, device: Any, flops: float) -> Report:
    """Report on a program compiled for a device, whose FLOPs on it are known.

    For TPUs the bytes moved are XLA's own count, which knows what stays in the scratch memory of a core.
    """
    program, memory = Program(compiled.as_text()), compiled.memory_analysis()
    moved = (compiled.cost_analysis() or {})["bytes accessed"] if device.platform == "tpu" else program.moved_bytes()
    return Report(
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        moved=int(moved),
        floor=program.floor_bytes(),
        flops=flops,
        kernels=program.kernels(),
        conditionals=program.count("conditional"),
        loops=program.count("while"),
        moves={name: found for name, found in program.moves().items() if found[1] > SMALLEST_MOVE},
        collectives=program.collectives(),
        attention=dict(program.calls("fmha")),
    )


def examine_training(compiled: jax.stages.Compiled, device: Any, flops: float) -> Report:
    """Report on a step of training, whose FLOPs for the model are known: on NVIDIA cards, on what it computes of them.

    That counts what the backward pass computes again too. The floor is then what products, attention and collectives
    move as they are, which is weights, activations and gradients, and the state read and written once.
    """
    report = examine(compiled, device, flops)
    if device.platform == "tpu":
        return report
    program = Program(compiled.as_text())
    traffic = program.traffic()
    needed = sum(traffic[kind] for kind in ("products", "attention", "collectives"))
    return dataclasses.replace(
        report,
        flops=program.flops(),
        traffic=traffic,
        floor=needed + report.arguments + report.outputs,
        floor_is="products, attention, collectives, and the state read and written once",
    )


def compile_exported(exported: jax.export.Exported, device: Any) -> Report:
    """Compile an exported program `(weights, state, inputs)` for a device that need not be there; nothing is allocated.

    The state is donated, as the runtime does.
    """
    where = jax.sharding.SingleDeviceSharding(device)
    arguments, _ = jax.tree.unflatten(
        exported.in_tree, [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where) for x in exported.in_avals]
    )
    lowered = jax.jit(exported.call, donate_argnums=1).lower(*arguments)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "tile sizes" not in str(error):
            raise
        # Triton cannot tile some products of very small models; a card that is there would leave them to cuBLAS too.
        compiled = lowered.compile(compiler_options=targets.WITHOUT_TRITON)
    return examine(compiled, device, Program(lowered.as_text("hlo")).flops())


def size_text(size: float) -> str:
    """Return a size in GB or MB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"


def lines(report: Report, chip: Chip | None) -> list[str]:
    """Describe a program for a reader; with times if the device is known."""
    times = f"{report.moved / max(report.floor, 1):.2f} times"
    found = [
        f"memory       {size_text(report.peak)}: arguments {size_text(report.arguments)}, of which "
        f"{size_text(report.aliased)} are updated in place; temporary {size_text(report.temporary)}",
        f"traffic      {size_text(report.moved)}, {times} the floor of {size_text(report.floor)} ({report.floor_is})",
        f"arithmetic   {report.flops / 1e9:,.1f} GFLOP",
        f"launches     {report.kernels} kernels, {report.conditionals} conditionals, {report.loops} loops",
    ]
    if report.traffic:
        parts = (f"{kind} {size_text(size)}" for kind, size in report.traffic.items())
        found.insert(2, f"of it        {', '.join(parts)}")
    if chip is not None:
        traffic, arithmetic = 1e3 * report.moved / chip.bandwidth, 1e3 * report.flops / chip.flops
        found.append(
            f"time         {1e3 * report.seconds(chip):.2f} ms at least: {traffic:.2f} ms of traffic at "
            f"{chip.bandwidth / 1e12:.2f} TB/s, {arithmetic:.2f} ms of arithmetic at {chip.flops / 1e12:.0f} TFLOP/s"
        )
    for kind, (times, size) in report.collectives.items():
        found.append(f"collective   {kind}: {times} times, {size_text(size)} of results")
    for kind, times in report.attention.items():
        found.append(f"attention    {kind}: {times} times")
    moves = list(report.moves.items())
    for what, (times, size) in moves[:SHOWN_MOVES]:
        found.append(f"copy         {size_text(size)} in {times}: {what}")
    if rest := moves[SHOWN_MOVES:]:
        found.append(f"copies       {size_text(sum(size for _, (_, size) in rest))} in {len(rest)} more places")
    return found
