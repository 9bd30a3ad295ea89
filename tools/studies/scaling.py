"""Calculate memory per device, bytes over each link, time and MFU of a training step, for docs/scaling.md.

    python -m tools.studies.scaling --write docs/scaling.md

This is only arithmetic: nothing is compiled, and no device is needed. `moshijax plan` compiles the real step.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from flax.traverse_util import flatten_dict

from moshijax import lm
from moshijax.lm.config import LMConfig
from moshijax.train.tasks.lm import TEXT_OWNS
from tools.pages import fill

BF16, F32 = 2, 4
MATMUL = 0.7  # share of the peak that matrix products alone reach; assumed
AGAIN = 4 / 3  # arithmetic with layers recomputed in the backward pass, over that without


@dataclass(frozen=True)
class Machine:
    """Devices in groups (a node of GPUs; a TPU slice is one group).

    Attributes:
      flops: dense bfloat16 peak of a device, FLOP/s.
      memory: of a device, bytes.
      near, far: bytes/s that a device can receive from its group and, at once with it, from others.
    """

    name: str
    devices: int
    group: int
    flops: float
    memory: float
    near: float
    far: float


# Vendors' figures, one way. v5p: 1200 GB/s both ways between chips, 50 Gbit/s of data centre network per chip (Google
# Cloud's page on v5p). H100 SXM: NVLink 900 GB/s both ways; a node with one 400 Gbit/s adapter per GPU.
V5P_256 = Machine("v5p-256", 128, 128, 459e12, 95 * 2**30, 600e9, 6.25e9)
H100_128 = Machine("128 H100", 128, 8, 989e12, 80e9, 450e9, 50e9)


@dataclass(frozen=True)
class Work:
    """One step: its rows, their frames, its microbatches, and the mesh."""

    rows: int
    frames: int
    microbatches: int
    data: int
    fsdp: int
    tensor: int

    def __post_init__(self) -> None:
        rows, devices = self.rows / self.microbatches, self.data * self.fsdp
        if rows % devices:
            raise ValueError(f"{rows:g} rows of a microbatch do not divide by data x fsdp = {devices}")


@dataclass(frozen=True)
class Model:
    """Sizes that the arithmetic needs.

    Attributes:
      parameters: all of them.
      text: those that a text step trains.
      tables: those of token tables.
      embedded: values per frame of the embeddings that travel: a sum for the temporal transformer, and one for every
        step of the depth transformer.
    """

    name: str
    parameters: int
    text: int
    tables: int
    embedded: int
    dim: int
    layers: int
    context: int

    @classmethod
    def of(cls, name: str, config: LMConfig) -> Model:
        sizes = {path: leaf.size for path, leaf in flatten_dict(lm.abstract(config), sep="/").items()}
        return cls(
            name,
            sum(sizes.values()),
            sum(size for path, size in sizes.items() if path.startswith(TEXT_OWNS)),
            sum(size for path, size in sizes.items() if "embedding" in path),
            config.temporal.dim + config.layout.dep_q * config.depth.transformer.dim,
            config.temporal.dim,
            config.temporal.num_layers,
            config.temporal.context,
        )


def state_bytes(model: Model, moments: int = F32, text_steps: bool = True) -> dict[str, float]:
    """Return the bytes of parameters, gradients and moments on all devices, with `moments` bytes per moment."""
    return {
        "parameters": F32 * model.parameters,
        "gradients": F32 * model.parameters,
        "moments of audio steps": 2 * moments * model.parameters,
        "moments of text steps": 2 * moments * model.text if text_steps else 0.0,
    }


def flops(model: Model, work: Work) -> float:
    """Return the FLOPs of a step: 6 per frame and parameter outside tables, and the attention in its window."""
    T, S = work.frames, min(work.frames, model.context)
    attended = S * S / 2 + (T - S) * S  # pairs of a row
    attention = 3 * 4 * model.dim * model.layers * attended * work.rows
    return 6.0 * (model.parameters - model.tables) * work.rows * T + attention


def traffic(model: Model, machine: Machine, work: Work) -> dict[str, float]:
    """Return the bytes that a device receives per step, by purpose; "near" from its group, "far" from others.

    Ring collectives: gathering or scattering n bytes over k devices moves n (k - 1) / k, an all-reduce twice that.
    Token tables stay where they are: embeddings travel over `fsdp` to the rows that they belong to, and their gradients
    back. The other parameters are gathered in bfloat16 for the forward pass and again for the backward pass of each
    microbatch; gradients are scattered in float32. Over `data` they are summed once per microbatch. Tensor parallelism
    sums the output of attention and of the MLP: forward, again where layers are computed again, and backward.
    """
    F, D, T = work.fsdp, work.data, work.tensor
    part, split = model.parameters / T, (model.parameters - model.tables) / T
    tokens = work.rows * work.frames / (D * F * work.microbatches)
    share = {k: (k - 1) / k for k in (F, D, T)}
    gather = 2 * BF16 * split * share[F] * work.microbatches
    scatter = F32 * split * share[F] * work.microbatches
    embeddings = 2 * BF16 * tokens * model.embedded * share[F] * work.microbatches
    reduce = 2 * F32 * part / F * share[D] * work.microbatches
    tensor = 6 * model.layers * tokens * model.dim * BF16 * 2 * share[T] * work.microbatches
    # A gather over several groups brings each group all it lacks once; its devices share what arrives. Embeddings are
    # of one device each.
    groups = max(1, F * T // machine.group)
    away = (groups - 1) / groups / share[F] if groups > 1 else 0.0
    across = (gather + scatter) * away / max(1, machine.group // T) + embeddings * away
    between = F * T * D > machine.group
    near, far = gather + scatter + embeddings * (1 - away) + tensor, across
    near, far = (near, far + reduce) if between else (near + reduce, far)
    return {
        "gather": gather,
        "scatter": scatter,
        "embeddings": embeddings,
        "data": reduce,
        "tensor": tensor,
        "near": near,
        "far": far,
    }


def times(model: Model, machine: Machine, work: Work) -> dict[str, float]:
    """Return seconds of arithmetic, near and far traffic, and the MFU with none and with all of the traffic hidden."""
    moved, total = traffic(model, machine, work), flops(model, work)
    compute = total * AGAIN / (MATMUL * machine.flops * machine.devices)
    near, far = moved["near"] / machine.near, moved["far"] / machine.far
    ideal = total / (machine.flops * machine.devices)
    return {
        "compute": compute,
        "near": near,
        "far": far,
        "mfu_exposed": ideal / (compute + near + far),
        "mfu_hidden": ideal / max(compute, near, far),
    }


def memory(model: Model, machine: Machine, work: Work, moments: int = F32) -> dict[str, float]:
    """Return the bytes per device: the state, and what a microbatch keeps between recomputed layers."""
    rows = work.rows / work.microbatches / (work.data * work.fsdp)
    state = sum(state_bytes(model, moments).values()) / (work.fsdp * work.tensor)
    return {"state": state, "activations": rows * work.frames * model.dim * BF16 * model.layers}


PLANS = (
    (V5P_256, Work(rows=192, frames=3744, microbatches=3, data=1, fsdp=64, tensor=2)),
    (V5P_256, Work(rows=256, frames=3744, microbatches=2, data=1, fsdp=128, tensor=1)),
    (H100_128, Work(rows=192, frames=3744, microbatches=3, data=16, fsdp=4, tensor=2)),
    (H100_128, Work(rows=256, frames=3744, microbatches=2, data=16, fsdp=8, tensor=1)),
    (H100_128, Work(rows=256, frames=3744, microbatches=2, data=1, fsdp=128, tensor=1)),
)


def plan_table(model: Model) -> str:
    lines = [
        "| machine | rows, microbatches | data x fsdp x tensor | state + activations, GB | near, GB | far, GB | "
        "compute, near, far, s | MFU, exposed to hidden |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for machine, work in PLANS:
        moved, found, held = traffic(model, machine, work), times(model, machine, work), memory(model, machine, work)
        lines.append(
            f"| {machine.name} | {work.rows}, {work.microbatches} | {work.data} x {work.fsdp} x {work.tensor} | "
            f"{held['state'] / 1e9:.1f} + {held['activations'] / 1e9:.1f} | "
            f"{moved['near'] / 1e9:.0f} | {moved['far'] / 1e9:.1f} | "
            f"{found['compute']:.2f}, {found['near']:.2f}, {found['far']:.2f} | "
            f"{100 * found['mfu_exposed']:.0f} to {100 * found['mfu_hidden']:.0f} % |"
        )
    return "\n".join(lines)


def memory_table(models: list[Model]) -> str:
    lines = [
        "| model | parameters, billion | weights | gradients | moments, audio | moments, text | all, GB | moments in "
        "bfloat16, GB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for model in models:
        full, half = state_bytes(model), state_bytes(model, BF16)
        parts = " | ".join(f"{value / 1e9:.0f}" for value in full.values())
        lines.append(
            f"| {model.name} | {model.parameters / 1e9:.2f} | {parts} | {sum(full.values()) / 1e9:.0f} | "
            f"{sum(half.values()) / 1e9:.0f} |"
        )
    return "\n".join(lines)


def models() -> list[Model]:
    from moshijax.lm import configs

    return [Model.of("Moshi 7B, as released", configs.MOSHI_7B), Model.of("development model", configs.DEV_2B)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", type=Path, help="replace the tables of this page")
    options = parser.parse_args()
    found = models()
    tables = {"memory": memory_table(found), "plan": plan_table(found[0])}
    print("\n\n".join(tables.values()))
    if options.write:
        options.write.write_text(fill(options.write.read_text(encoding="utf-8"), tables), encoding="utf-8")


if __name__ == "__main__":
    main()
