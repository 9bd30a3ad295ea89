"""Run an exported step for a long time and check that it stays stable: no error, no compilation, no growing memory.

    python -m tools.soak.runtime --steps 100000 --write docs/reliability.md

A tiny model with random weights is exported and loaded like any other; rows open and close at random, so that resets,
priming and idle rows take part. The weights are random because only the machinery is tested: every cache wraps around
many times, and the outputs must be finite and in range.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import psutil

from moshijax import runtime
from moshijax.export import artifact
from moshijax.testing.tiny import tiny_models
from tools.pages import fill

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


def soak(rows: runtime.Rows, steps: int, seed: int = 0, report_every: int = 5000) -> dict:
    """Step `rows` with random audio and return the figures.

    Raises:
      AssertionError: on the first fault.
    """
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if event == COMPILE_EVENT else None
    )
    jax.jit(lambda x: x + 1)(np.float32(1))
    assert compiled, f"jax does not report compilations as {COMPILE_EVENT}: they could not be seen"
    random = np.random.default_rng(seed)
    process = psutil.Process()
    calls: dict[int, runtime.Row] = {}
    memory, times = [], np.zeros(steps)
    opened = 0
    started = time.perf_counter()
    for step in range(steps):
        while rows.free_rows and (not calls or random.random() < 0.05):
            row = rows.open(runtime.CallOptions(seed=opened))
            calls[row.slot], opened = row, opened + 1
        pcm = random.standard_normal((rows.batch, rows.artifact.frame_size), np.float32) * 0.1
        frame = rows.step(pcm)
        times[step] = frame.seconds
        assert np.isfinite(frame.pcm).all(), f"step {step}: audio is not finite"
        assert (frame.codes[frame.ready] >= 0).all(), f"step {step}: a ready row returned {frame.codes}"
        if step == 100:
            compiled.clear()
        if random.random() < 0.002:
            rows.close(calls.pop(int(random.choice(list(calls)))))
        if step == steps // 10 or (step > steps // 10 and step % report_every == report_every - 1):
            memory.append((step + 1, process.memory_info().rss / 2**20))
            print(f"{step + 1:8d} steps  {memory[-1][1]:8.1f} MiB  {time.perf_counter() - started:7.1f} s", flush=True)
    early, late = memory[0][1], memory[-1][1]
    assert not compiled, f"{len(compiled)} compilations after step 100"
    return {
        "steps": steps,
        "calls": opened,
        "compilations": len(compiled),
        "memory_early_mib": early,
        "memory_late_mib": late,
        "memory_growth_mib": late - early,
        "first_tenth_ms": 1000 * float(np.median(times[: steps // 10])),
        "last_tenth_ms": 1000 * float(np.median(times[-steps // 10 :])),
    }


def table(figures: dict, context: int) -> str:
    """Return the figures as rows of a Markdown table."""
    steps = figures["steps"]
    rows = {
        "steps": steps,
        "calls opened": figures["calls"],
        "turns of the language model's ring cache": steps // context,
        "compilations after step 100": figures["compilations"],
        f"resident memory at step {steps // 10 + 1}": f"{figures['memory_early_mib']:.1f} MiB",
        f"resident memory at step {steps}": f"{figures['memory_late_mib']:.1f} MiB",
        "step time, median of the first tenth": f"{figures['first_tenth_ms']:.3f} ms",
        "step time, median of the last tenth": f"{figures['last_tenth_ms']:.3f} ms",
    }
    return "\n".join(f"| {name} | {value} |" for name, value in rows.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--artifact", type=Path, help="use this artifact instead of a tiny random model")
    parser.add_argument("--write", type=Path, help="write the figures into this Markdown page")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = options.artifact or artifact.build(*tiny_models(), Path(folder) / "artifact", batches=(options.batch,))
        loaded = runtime.load(made)
        context = loaded.manifest["config"]["lm"]["temporal"]["context"]
        figures = soak(runtime.Rows(loaded, options.batch), options.steps)
    lines = table(figures, context)
    print(lines)
    if options.write:
        section = SECTION.format(**vars(options), lines=lines, machine=machine())
        options.write.write_text(fill(options.write.read_text(encoding="utf-8"), {"step": section}), encoding="utf-8")


def machine() -> str:
    """Return what the figures depend on: Python, jax and processor count."""
    return (
        f"Python {platform.python_version()}, jax {jax.__version__}, {psutil.cpu_count()} cores ({platform.machine()})"
    )


SECTION = """```
python -m tools.soak.runtime --steps {steps} --batch {batch} --write docs/reliability.md
```

A tiny codec and language model with random weights is exported and loaded like any artifact. It hears random audio, and
rows open and close at random throughout. Every step is checked: the audio is finite, and every ready row returns valid
codes. Other work ran on the machine, so the step times show only that they do not grow. {machine}.

| figure | value |
|---|---|
{lines}"""


if __name__ == "__main__":
    main()
