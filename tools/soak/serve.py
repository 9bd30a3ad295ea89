"""Hours of calls in minutes: the server's engine on simulated time, with a tiny model.

    python -m tools.soak.serve --write docs/reliability.md

Three runs: many callers whose answers are compared with what they would hear in other slots, beside others and alone;
callers who vanish at random points; and hours of calls, in which memory must not grow and nothing may be compiled.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil

from moshijax import runtime
from moshijax.export import artifact
from moshijax.testing.tiny import tiny_models
from tools.pages import fill
from tools.soak.runtime import COMPILE_EVENT, machine
from tools.soak.world import Caller, World, check_alone, columns, script


def equal(loaded: runtime.Artifact, lines: int, minutes: float) -> dict[str, Any]:
    """Let callers talk, stall, ring and leave on all lines, and compare every answer."""
    world = World(loaded, lines)
    callers = script(world, lines, 60 * minutes, seed=1)
    world.run(60 * minutes + 5)
    assert world.engine.callers == 0 and world.engine.rows.free_rows == lines
    rows = runtime.Rows(loaded, lines)
    check_alone(rows, callers)
    for caller in callers[:4]:
        check_alone(rows, [caller])
    return {
        f"{lines} lines, simulated minutes": minutes,
        "calls, all answered as in other slots and beside other callers, 4 also alone": len(callers),
        "with a prompt": sum(caller.options.prompt is not None for caller in callers),
        "frames heard": sum(len(caller.heard) for caller in callers),
        "frames dropped, after stalls": sum(caller.dropped for caller in callers),
        "steps": world.engine.stats.ticks,
    }


def vanish(loaded: runtime.Artifact, lines: int, count: int) -> dict[str, Any]:
    """Let callers vanish at random points; their slots must be free in the engine's next turn."""
    world, random, process = World(loaded, lines), np.random.RandomState(0), psutil.Process()
    threads, memory = threading.active_count(), 0
    for number in range(count):
        caller = Caller(world, number, columns(60, number) if number % 3 == 0 else None)
        caller.speak(world.now, world.now + 1)
        for _ in range(random.randint(12)):
            world.engine.step()
        caller.leave()
        world.engine.step()
        assert world.engine.callers == 0 and world.engine.rows.free_rows == lines, number
        world.run(world.now + random.uniform(0, 0.2))
        if number == count // 10:
            gc.collect()
            memory = process.memory_info().rss
    gc.collect()
    assert threading.active_count() == threads
    return {
        "callers who vanished, all slots back at once": count,
        "memory gained after the first tenth of them": f"{(process.memory_info().rss - memory) / 2**20:.1f} MiB",
    }


def hours(loaded: runtime.Artifact, lines: int, length: float) -> dict[str, Any]:
    """Let callers talk for hours; returns memory and compilations after the first tenth."""
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if event == COMPILE_EVENT else None
    )
    jax.jit(lambda x: x + 1)(np.float32(1))
    assert compiled, f"jax does not report compilations as {COMPILE_EVENT}: they could not be seen"
    world, process, memory, calls = World(loaded, lines), psutil.Process(), [], 0
    while world.now < 3600 * length:
        callers = script(world, lines, world.now + 60, seed=int(world.now))
        world.run(world.now + 65)  # (the last stalls end after the minute)
        calls += len(callers)
        del callers
        gc.collect()
        memory.append(process.memory_info().rss / 2**20)
        if len(memory) == 6:
            compiled.clear()
    assert not compiled, f"{len(compiled)} compilations after six minutes"
    return {
        f"{lines} lines, simulated hours": length,
        "calls": calls,
        "steps in them": world.engine.stats.ticks,
        "compilations after six minutes": len(compiled),
        "resident memory after six minutes": f"{memory[5]:.1f} MiB",
        "resident memory at the end": f"{memory[-1]:.1f} MiB",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lines", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--vanish", type=int, default=1000)
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--write", type=Path, help="write the figures into this Markdown page")
    options = parser.parse_args()
    figures, began = {}, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        batches = tuple(sorted({8, options.lines}))
        made = artifact.build(*tiny_models(), Path(folder) / "artifact", batches=batches, prefill_lengths=(4, 16))
        loaded = runtime.load(made)
        for run in (
            lambda: equal(loaded, options.lines, options.minutes),
            lambda: vanish(loaded, 8, options.vanish),
            lambda: hours(loaded, 8, options.hours),
        ):
            figures |= run()
            print(f"{figures}\n{time.perf_counter() - began:.0f} s", flush=True)
    lines = "\n".join(f"| {name} | {value} |" for name, value in figures.items())
    if options.write:
        command = f"python -m tools.soak.serve --lines {options.lines} --minutes {options.minutes:g}"
        command += f" --vanish {options.vanish} --hours {options.hours:g}"
        section = SECTION.format(command=command, table=lines, machine=machine())
        options.write.write_text(fill(options.write.read_text(encoding="utf-8"), {"serve": section}), encoding="utf-8")


SECTION = """```
{command} --write docs/reliability.md
```

The server's engine and sessions, unchanged, on simulated time, of which a step takes 30 ms. Callers with scripts ring,
send noise with jitter, stall and then send everything at once, begin with prompts, and leave. {machine}.

| figure | value |
|---|---|
{table}"""


if __name__ == "__main__":
    main()
