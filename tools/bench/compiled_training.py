"""Compile the steps of full-size recipes for devices that need not be there, and write what the compiler made of them.

python -m tools.bench.compiled_training [--recipes moshi/lora.gin ...] [--write docs/scaling.md]

Nothing is allocated and nothing runs: about a minute and 2 GB of memory for a step. Needs the extra `cuda13`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

#: Recipe -> NVIDIA cards, and mesh.
RUNS = {
    "moshi/lora.gin": ("h100", 1, "data=1"),
    "moshi/finetuning.gin": ("h100", 8, "fsdp=8"),
    "moshi/pretraining.gin": ("h100", 8, "fsdp=8"),
}

HEAD = """\
| recipe, step | devices | memory | traffic | floor | ratio | products, attention, exchanges, copies, others | \
time at least | MFU at most |
|---|---|---|---|---|---|---|---|---|
"""


def rows_of(recipe: str) -> list[str]:
    """Compile every step of a recipe; return rows of the table."""
    from moshijax import config
    from moshijax.compiled import chips, targets
    from moshijax.compiled.report import lines, size_text
    from moshijax.train import sharding
    from moshijax.train.plan.footprint import footprints
    from moshijax.train.plan.planning import expected_mfu

    card, count, mesh_axis = RUNS[recipe]
    topology = targets.CUDA + card
    devices, chip = targets.describe(topology, count), chips.find(card)
    assert chip is not None, card
    experiment = config.load(recipe, ["mesh.data=1", f"mesh.{mesh_axis}"])
    rows = []
    for found in footprints(
        experiment, sharding.make_mesh(experiment.mesh, devices), targets.training_options(topology)
    ):
        report = found.report
        assert report is not None, found.kind
        print(f"{recipe}, {found.kind.name}:", *lines(report, chip), sep="\n", flush=True)
        seconds = report.seconds(chip)
        bound = "arithmetic" if report.flops / chip.flops == seconds else "traffic"
        parts = ", ".join(f"{size / 1e9:,.0f}" for size in report.traffic.values())
        rows.append(
            f"| {recipe}, {found.kind.name} | {count} x {card.upper()} | {size_text(report.peak)} | "
            f"{report.moved / 1e9:,.0f} GB | {report.floor / 1e9:,.0f} GB | {report.moved / report.floor:.2f} | "
            f"{parts} | {seconds:.2f} s of {bound} | {100 * expected_mfu(found, chip, count):.0f} % |"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--write", type=Path, help="replace the table of this page")
    options = parser.parse_args()

    from tools.pages import fill

    table = HEAD + "\n".join(row for recipe in options.recipes for row in rows_of(recipe))
    print(table)
    if options.write is not None:
        page = options.write.read_text(encoding="utf-8")
        options.write.write_text(fill(page, {"compiled": table}), encoding="utf-8")


if __name__ == "__main__":
    main()
