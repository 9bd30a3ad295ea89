"""Compile the step of a call for NVIDIA cards that need not be there, and write what the compiler made of it.

python -m tools.bench.compiled [--cards l40s h100 h200] [--batches 1 8 16] [--int8-batches 1 16 40] [--write docs]

Nothing is allocated and nothing runs: three minutes and 2 GB of memory for each card and number of calls of the full
model. `--write` puts the figures into `compiled.json` of that folder beside those of earlier runs, and makes the tables
of `compiled.md` and `serving.md` from all of them. Needs the extra `compile-cuda`.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

MODELS = ("MOSHI_7B", "tiny")
RECORD, PAGE, SERVING = "compiled.json", "compiled.md", "serving.md"
#: Time of a frame, in ms.
FRAME = 80.0


class Case(NamedTuple):
    """What is compiled: `int8` weights and caches, or `bfloat16` ones, for a number of calls on a card."""

    card: str
    types: str
    calls: int

    def __str__(self) -> str:
        return f"{self.card} {self.types} {self.calls}"

    @classmethod
    def read(cls, text: str) -> Case:
        card, types, calls = text.split()
        return cls(card, types, int(calls))


def step_of(model: str, types: str):
    """Return the step of a named model and its weights as shapes."""
    import dataclasses

    import jax

    from moshijax import codec, lm
    from moshijax.export import weights
    from moshijax.export.step import CallStep, flatten
    from moshijax.testing import tiny

    codec_config, config = (tiny.CODEC, tiny.LM) if model == "tiny" else (codec.configs.MIMI, lm.configs.MOSHI_7B)
    dtype = weights.compute_dtype("cuda", types)
    config = config.with_dtype(dtype, dtype)
    cache_dtype = "int8" if types == "int8" else "computed"
    config = dataclasses.replace(config, temporal=dataclasses.replace(config.temporal, cache_dtype=cache_dtype))
    laid = jax.eval_shape(
        lambda key: codec.inference_layout(codec_config, codec.init(codec_config, key)), jax.random.key(0)
    )
    step = CallStep(codec_config, config, 8 if model == "tiny" else 250)
    return step, {**flatten(laid, "codec"), **weights.specs("lm", lm.abstract, config, types)}


def compile_case(model: str, case: Case) -> dict[str, Any]:
    """Compile a step, and return its figures: bytes and counts."""
    from moshijax.compiled import chips, report, targets
    from moshijax.export.artifact import export_program
    from moshijax.export.step import Signature

    (device,) = targets.describe(f"cuda:{case.card}")
    step, weights = step_of(model, case.types)
    exported = export_program(Signature("step", case.calls), step, "cuda", weights)
    started = time.perf_counter()
    found, chip = report.compile_exported(exported, device), chips.find(device.device_kind)
    print(f"{case}, compiled in {time.perf_counter() - started:.0f} s", flush=True)
    print("\n".join(report.lines(found, chip)), flush=True)
    return {
        "memory": found.peak,
        "temporary": found.temporary,
        "traffic": found.moved,
        "floor": found.floor,
        "kernels": found.kernels,
        "conditionals": found.conditionals,
        "copies": {what: size for what, (_, size) in found.moves.items()},
    }


def table(record: dict[str, dict[str, Any]]) -> str:
    """Return the table of all cases."""
    from moshijax.compiled.chips import find
    from moshijax.compiled.report import size_text

    rows = []
    for case in sorted(map(Case.read, record)):
        found, chip = record[str(case)], find(case.card)
        assert chip is not None, case
        fits = "" if found["memory"] <= chip.memory else " (does not fit)"
        copies = size_text(sum(found["copies"].values())) if found["copies"] else "none"
        rows.append(
            f"| {case.card.upper()} | {case.types} | {case.calls} | {size_text(found['memory'])}{fits} | "
            f"{size_text(found['temporary'])} | {size_text(found['traffic'])} | {size_text(found['floor'])} | "
            f"{found['traffic'] / found['floor']:.2f} | {1e3 * found['traffic'] / chip.bandwidth:.1f} ms | "
            f"{found['kernels']} | {found['conditionals']} | {copies} |"
        )
    head = ("card", "types", "calls", "memory", "temporary", "traffic", "floor", "ratio", "time", "kernels")
    head += ("conditionals", "copies")
    return "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *rows])


def copies(record: dict[str, dict[str, Any]]) -> str:
    """Return the list of copies, each with the cases that have it."""
    from moshijax.compiled.report import size_text

    places: dict[str, list[str]] = {}
    for case in sorted(map(Case.read, record)):
        for what, size in record[str(case)]["copies"].items():
            places.setdefault(f"{size_text(size)}: {what}", []).append(str(case))
    return "\n".join(f"- {what} ({', '.join(where)})" for what, where in places.items())


def capacity(record: dict[str, dict[str, Any]]) -> str:
    """Return the table of the calls that fit on a card, from the two compiled numbers of calls that are furthest apart.

    Memory and traffic grow by the same amount with every call; the tick is that of the traffic.
    """
    from moshijax.compiled.chips import find
    from moshijax.compiled.report import size_text
    from moshijax.compiled.targets import GIVEN_SHARE

    cases: dict[tuple[str, str], list[int]] = {}
    for case in map(Case.read, record):
        cases.setdefault((case.card, case.types), []).append(case.calls)
    rows = []
    for (card, types), calls in sorted(cases.items()):
        chip, few, many = find(card), min(calls), max(calls)
        if few == many:
            continue
        assert chip is not None, card
        first, last = (record[str(Case(card, types, n))] for n in (few, many))
        memory, traffic = ((last[of] - first[of]) / (many - few) for of in ("memory", "traffic"))
        most = int(few + (chip.memory * GIVEN_SHARE - first["memory"]) / memory)
        tick = 1e3 * (first["traffic"] + (most - few) * traffic) / chip.bandwidth
        assert tick < FRAME, f"{card} {types}: bandwidth is the limit, not memory"
        weights = first["memory"] - few * memory
        rows.append(
            f"| {card.upper()} | {types} | {size_text(weights)} | {size_text(memory)} | **{most}** | {tick:.0f} ms |"
        )
    head = "| card | types | weights | memory per call | calls | time of a tick |"
    return "\n".join([head, "|" + "---|" * 6, *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="MOSHI_7B")
    parser.add_argument("--cards", nargs="+", default=["l40s", "h100", "h200"])
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 8, 16], help="calls, in bfloat16")
    parser.add_argument("--int8-batches", nargs="*", type=int, default=[1, 16, 40], help="calls, in int8")
    parser.add_argument("--write", type=Path, help="the folder of the pages")
    options = parser.parse_args()

    record: dict[str, Any] = {}
    if options.write is not None and (options.write / RECORD).is_file():
        record = json.loads((options.write / RECORD).read_text(encoding="utf-8"))
    for types, batches in (("bfloat16", options.batches), ("int8", options.int8_batches)):
        for batch in batches:
            for card in options.cards:
                case = Case(card, types, batch)
                record[str(case)] = compile_case(options.model, case)
                if options.write is not None:
                    write(options.write, record)


def tables(record: dict[str, dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Return the tables of every page, by the names of their places."""
    l40s = {name: found for name, found in record.items() if Case.read(name).card == "l40s"}
    return {
        PAGE: {"cases": table(record), "copies": copies(record)},
        SERVING: {"capacity": capacity(record), "l40s": table(l40s)},
    }


def write(folder: Path, record: dict[str, Any]) -> None:
    """Write the record of all cases, and the tables that are made of it."""
    import jax

    from tools.pages import fill

    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    made = tables(record)
    made[PAGE]["versions"] = f"With jax {jax.__version__} and nvidia-cuda-nvcc {version('nvidia-cuda-nvcc')}, made by"
    for page, parts in made.items():
        text = (folder / page).read_text(encoding="utf-8")
        (folder / page).write_text(fill(text, parts), encoding="utf-8")


if __name__ == "__main__":
    main()
