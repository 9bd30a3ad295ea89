"""Shared by the benchmarks: the reference in a separate process, alternating rounds, and docs/benchmarks.md."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "benchmarks.md"
Seconds = Mapping[str, list[float]]


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reference-python", required=True, help="interpreter of an environment with moshi, rustymimi")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--clock",
        choices=tuple(CLOCKS),
        default="wall",
        help="cpu: processor time, which other work on the machine disturbs less; for comparisons on one thread",
    )


def limit_threads(threads: int) -> None:
    """Limit this process and the reference to so many cores; call it before jax is imported."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    os.sched_setaffinity(0, cores)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "moshijax" / "bench-compilation"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))


class Reference:
    """The PyTorch process; `reference("mimi_file", samples=...)` runs one operation of tools.bench.reference."""

    def __init__(self, options: argparse.Namespace):
        self._process = subprocess.Popen(
            [options.reference_python, "-m", "tools.bench.reference"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.version = self("setup", threads=options.threads, clock=options.clock)["version"]

    def __call__(self, operation: str, **arguments) -> dict:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"operation": operation, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the reference process ended during {operation}: see its message above")
        return json.loads(line)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def write_model(reference: Reference, directory: Path, kind: str, config: dict) -> Path:
    """Write weights by name for a published config, in files that both sides read."""
    from tests.parity import weights_by_name

    shapes = reference("published_shapes", kind=kind, config=config)
    return weights_by_name.write_checkpoint(directory, {"config": config, "seed": 0, "tensors": shapes})


def in_turn(rounds: int, contestants: Mapping[str, Callable[[], Seconds]]) -> dict[str, dict[str, list[float]]]:
    """Run A B A B ... and return all times per contestant and quantity; the first round warms up and does not count."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in contestants}
    for index in range(rounds + 1):
        for name, run in contestants.items():
            time.sleep(0.3)  # until the threads of the other one sleep
            for quantity, seconds in run().items():
                if index:
                    found[name].setdefault(quantity, []).extend(seconds)
    return found


def fastest_ms(seconds: list[float]) -> float:
    """Return the least disturbed measurement: other work on the machine only ever adds time."""
    return 1000 * min(seconds)


def write_section(title: str, command: str, notes: list[str], table: list[list[str]]) -> None:
    """Print a section, and replace the one with the same title in docs/benchmarks.md."""
    head, *body = table
    lines = [
        f"## {title}",
        "",
        f"`{command}`",
        "",
        *notes,
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    lines += ["| " + " | ".join(row) + " |" for row in body]
    section = "\n".join(lines) + "\n"
    print(section)
    page = PAGE.read_text() if PAGE.exists() else _INTRODUCTION
    pattern = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", re.M | re.S)
    if pattern.search(page):
        page = pattern.sub(lambda _: section + "\n", page)
    else:
        page = page.rstrip("\n") + "\n\n" + section
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page.rstrip("\n") + "\n")


def command(options: argparse.Namespace) -> str:
    """Return the command line, without the path of the interpreter."""
    named = {name: getattr(options, name, None) for name in ("threads", "rounds", "clock", "only")}
    given = [f"--{name} {value}" for name, value in named.items() if value is not None]
    return " ".join([f"python -m tools.bench.{Path(sys.argv[0]).stem} --reference-python PYTHON", *given])


def processor() -> str:
    return next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor() or "unknown processor",
    )


def machine() -> str:
    """Return the processor and the versions."""
    import jax

    return f"{processor()}, Python {sys.version.split()[0]}, jax {jax.__version__}"


def environment(reference_version: str, options: argparse.Namespace) -> str:
    import jax

    return (
        f"{processor()}, {options.threads} threads, {options.clock} time, Python {sys.version.split()[0]}, "
        f"jax {jax.__version__}, PyTorch {reference_version} eager; {options.rounds} alternating rounds after one "
        "to warm up; the fastest time of each."
    )


_INTRODUCTION = """# Benchmarks

moshijax against the PyTorch reference (package `moshi`), in one run on the same machine, with the same weights and the
same number of threads, in alternating rounds. Each section names the command that produced it; `--reference-python` is
the interpreter of a virtual environment made with `pip install moshi==0.2.13 rustymimi`. Times depend on the machine;
the ratios matter.
"""
