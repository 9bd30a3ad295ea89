"""Kill a training run repeatedly, also while it saves, and check that it ends like an undisturbed run.

    python -m tools.soak.training --kills 20 --write docs/reliability.md

`moshijax train` runs as a process on a small language model, with text steps and a checkpoint every five steps. SIGKILL
arrives alternately at a random point in the next one to nine steps, or within 20 ms of the start of a save. Then the
same command runs again. At the end all leaves of the state are compared bit for bit, and all metrics except times.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import tempfile
from pathlib import Path

import jax

from tests.system.killing import assert_same_end, complete_steps, finish, kill_once, start, write_recipe
from tools.pages import fill


def soak(folder: Path, kills: int, seed: int) -> list[tuple[str, int]]:
    """Return for every kill what it interrupted, and the last complete checkpoint at that time.

    Raises:
      AssertionError: the ends differ.
    """
    chance, found = random.Random(seed), []
    experiment = write_recipe(folder, steps=10 * kills)
    whole, killed = folder / "whole", folder / "killed"
    code, output = finish(start(folder, whole))
    assert code == 0, output
    while len(found) < kills:
        where = kill_once(folder, killed, while_saving=len(found) % 2 == 1, chance=chance)
        assert where is not None, f"the run was over after {len(found)} kills: make it longer"
        found.append((where, (complete_steps(killed) or [0])[-1]))
        print(f"{len(found):3d}  {where}; resumes from {found[-1][1]}", flush=True)
    code, output = finish(start(folder, killed))
    assert code == 0, output
    assert_same_end(whole, killed, experiment)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, help="write the figures into this Markdown page")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/compiled")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        found = soak(Path(folder), options.kills, options.seed)
    rows = {
        "steps of the run": 10 * options.kills,
        "kills": len(found),
        "of these in a save": sum("in a save" in where for where, _ in found),
        "before the first complete checkpoint": sum(not step for _, step in found),
        "leaves of the state that differ from the undisturbed run": 0,
        "lines of metrics that differ": 0,
    }
    lines = "\n".join(["| figure | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
    command = f"```\npython -m tools.soak.training --kills {options.kills} --write docs/reliability.md\n```"
    machine = f"Python {platform.python_version()}, jax {jax.__version__}, {platform.machine()}."
    print(lines)
    if options.write:
        text = f"{command}\n\n{machine}\n\n{lines}"
        options.write.write_text(fill(options.write.read_text(encoding="utf-8"), {"resume": text}), encoding="utf-8")


if __name__ == "__main__":
    main()
