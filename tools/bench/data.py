"""Measure how many frames per second one core turns into batches, against what an H100 consumes.

python -m tools.bench.data
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

from tools.bench import support

TITLE = "Data pipeline"
MFU, WANTED = 0.5, 10


def consumed() -> float:
    """Return the frames per second of Moshi 7B in training on one H100 at 50 % MFU, by the arithmetic of a step."""
    import jax

    from moshijax import data
    from moshijax.lm import configs
    from moshijax.train import sharding
    from moshijax.train.experiment import ExperimentConfig
    from moshijax.train.plan.flops import PEAK_FLOPS
    from moshijax.train.state import plan_state
    from moshijax.train.steps import step_flops
    from moshijax.train.tasks.lm import AudioSteps, LMTask

    grids = data.GridData(("none",), batch_size=1, num_frames=3000)
    task = LMTask(configs.MOSHI_7B, "none", AudioSteps(grids))
    experiment, (kind,) = ExperimentConfig(task=task), task.step_kinds()
    mesh = sharding.make_mesh(experiment.mesh, jax.devices()[:1])
    with sharding.context(mesh):
        plan = plan_state(task, experiment, mesh)
        flops = sum(step_flops(task, kind, plan, task.batch_shapes(kind, grids)).values())
    return MFU * dict(PEAK_FLOPS)["h100"] * 3000 / flops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--note", default="", help="a sentence about the machine, such as other work on it")
    options = parser.parse_args()
    support.limit_threads(1)

    from moshijax import data
    from moshijax.data.text import Tokenizer
    from moshijax.lm import configs
    from tests.train.support.grids import write_dialogues, write_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        write_dialogues(path / "grids", count=40, frames=3750, codebooks=8, card=2048)
        write_tokenizer(path / "tokenizer.model")
        tokenizer = Tokenizer.load(path / "tokenizer.model")
        plain = data.GridData((str(path / "grids"),), batch_size=8, num_frames=3000, text_jitter=0.6)
        rows = []
        for label, config in (
            ("8 x 3000 frames of 5-minute recordings", plain),
            ("8 x 1250 frames (100 s)", dataclasses.replace(plain, num_frames=1250)),
        ):
            source = data.grid_batches(config, configs.MOSHI_7B.layout, tokenizer, 0)
            frames = source.batch(0)["codes"][:, 0].size
            best = min(seconds_of(source, n) for n in range(1, options.batches + 1))
            rows.append((label, frames / best))
    need = consumed()
    support.write_section(
        TITLE,
        "python -m tools.bench.data",
        [
            f"{support.machine()}. Processor time of one thread, the fastest of {options.batches} batches: from "
            "prepared records to token grids of 17 rows, with jittered text, one word per 0.6 s. "
            f"{options.note}".strip(),
            f"One H100 at {100 * MFU:.0f} % MFU consumes {need:,.0f} frames/s of Moshi 7B (all trained, windows of "
            f"3000 frames): {WANTED} times as much is {WANTED * need:,.0f}.",
        ],
        [
            ["batch", "frames/s per core", "times one H100"],
            *([label, f"{rate:,.0f}", f"{rate / need:.1f}"] for label, rate in rows),
        ],
    )


def seconds_of(source, n: int) -> float:
    begin = time.process_time()
    source.batch(n)
    return time.process_time() - begin


if __name__ == "__main__":
    main()
