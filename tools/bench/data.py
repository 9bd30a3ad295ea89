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
ALL = {"swap_speakers": 0.5, "interruption": 1.0, "user_mask": 0.1, "user_levels": True, "text_mask": 0.3}


def consumed() -> float:
    """Return the frames per second of Moshi 7B in training on one H100 at 50 % MFU, by the arithmetic of a step."""
    import jax

    from moshijax import data
    from moshijax.compiled import chips
    from moshijax.lm import configs
    from moshijax.train import sharding
    from moshijax.train.experiment import ExperimentConfig
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
    return MFU * chips.find("h100").flops * 3000 / flops


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
        write_turns(path / "grids", path / "turns")
        turns = dataclasses.replace(plain, paths=(str(path / "turns"),))
        rows = []
        for label, config in (
            ("8 x 3000 frames of 5-minute recordings", plain),
            ("8 x 1250 frames (100 s)", dataclasses.replace(plain, num_frames=1250)),
            ("the same calls, in turns that interrupt", dataclasses.replace(turns, num_frames=1250)),
            ("the same, every augmentation of the grid on", dataclasses.replace(turns, num_frames=1250, **ALL)),
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


def write_turns(calls: Path, folder: Path) -> None:
    """Write prepared calls again, with words in turns of four seconds, each begun over the end of the last."""
    from moshijax import files
    from moshijax.data import records

    folder.mkdir()
    source = records.RecordSource(calls)

    def turned(record: dict) -> dict:
        words = []
        for text, start, end, _ in record["words"]:
            turn = int(start // 4)
            early = 0.6 if turn else 0.0  # the first word of a turn is spoken with the last one of the other
            words.append([text, start - early, end - early, "user" if turn % 2 else "model"])
        return {**record, "words": sorted(words, key=lambda word: word[1])}

    (shard,) = source.index["shards"]
    records.write_shard(folder / shard["file"], map(turned, source))
    codec = source.index["codec"]
    codec["silence"] = [0] * codec["num_codebooks"]
    files.write_json(folder / records.INDEX, {**source.index, "sha256": records.digest("turns")})


def seconds_of(source, n: int) -> float:
    begin = time.process_time()
    source.batch(n)
    return time.process_time() - begin


if __name__ == "__main__":
    main()
