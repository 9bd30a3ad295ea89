"""Load a server with scripted callers in real time, and report what they and the server measured.

    python -m tools.bench.calls http://127.0.0.1:8998 --callers 8 --seconds 60
    python -m tools.bench.calls --artifact runs/quickstart/artifact --callers 8 --seconds 600

Without a URL the server is started, on a port of its own, and ended; without an artifact either, one of the sizes of
the quickstart is made, with random weights. Only servers of this machine are called.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import ipaddress
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from moshijax.runtime import audio
from tools.bench.caller import RATE, Measured, call, scripts, tone_bursts
from tools.pages import fill
from tools.soak.runtime import machine

MOST_CALLERS, MOST_SECONDS = 256, 3600


def checked(url: str) -> str:
    """Return a server's URL without a slash at the end.

    Raises:
      SystemExit: it is not on this machine.
    """
    host = urlsplit(url).hostname or ""
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return url.rstrip("/")
    if host == "localhost":
        return url.rstrip("/")
    raise SystemExit(f"{url} is not on this machine; only http://127.0.0.1:PORT and the like are called")


@contextlib.contextmanager
def server(artifact: Path, callers: int) -> Iterator[tuple[str, int]]:
    """Run `moshijax serve` for the length of a `with`; gives its URL and its process number."""
    command = [
        sys.executable,
        "-m",
        "moshijax.cli.main",
        "serve",
        str(artifact),
        "--port",
        "0",
        "--calls",
        str(callers),
    ]
    command += ["--drain-seconds", "1", "--calls-per-minute", "100000"]
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "XDG_CACHE_HOME": cache}
        yield from _running(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))


def _running(process: subprocess.Popen) -> Iterator[tuple[str, int]]:
    """Give a server's URL and process number once it takes calls, and end it afterwards."""
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "takes calls" in line:
                yield checked(line.split()[0]), process.pid
                return
        raise SystemExit(f"the server ended before it took calls: {''.join(lines)}")
    finally:
        process.terminate()
        process.wait()


def random_artifact(folder: Path, callers: int) -> Path:
    """Build an artifact of the quickstart's sizes for so many calls, with random weights."""
    from moshijax import config
    from moshijax.export.artifact import build
    from moshijax.testing.tiny import tiny_models

    lm, codec = (config.load(f"quickstart/{name}.gin").task.model for name in ("moshi", "codec"))
    return build(*tiny_models(0, lm, codec), folder / "artifact", batches=(callers,))


async def run(
    url: str, callers: int, seconds: float, seed: int, recordings: Sequence[np.ndarray], steady: bool
) -> list[Measured]:
    """Let all callers make their calls, and return what each call measured."""
    epoch = asyncio.get_running_loop().time()

    async def caller(number: int) -> list[Measured]:
        return [
            await call(url, script, recordings, epoch)
            for script in scripts(number, seconds, seed, recordings, steady)
        ]  # fmt: skip

    return [one for calls in await asyncio.gather(*map(caller, range(callers))) for one in calls]


def metrics(url: str) -> dict[str, float]:
    """Return what the server counts, as {name and labels: value}."""
    with urlopen(f"{url}/metrics") as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return {
        " ".join([sample.name.removeprefix("moshijax_"), *sample.labels.values()]): sample.value
        for family in families
        for sample in family.samples
    }


def figures(measured: Sequence[Measured], before: dict[str, float], after: dict[str, float]) -> dict[str, object]:
    """Return the figures of a run, by name."""

    def shares(values: Sequence[float]) -> str:
        if not values:
            return "none"
        return " / ".join(f"{1000 * value:.0f}" for value in np.percentile(values, (50, 99, 100))) + " ms"

    def server(name: str) -> str:
        return " / ".join(f"{1000 * after[f'{name}_seconds {share}']:.0f}" for share in ("0.5", "0.99", "1")) + " ms"

    counted = {name: int(after[f"{name}_total"] - before[f"{name}_total"]) for name in ("ticks", "misses")}
    return {
        "calls": len(measured),
        "refused": sum(bool(one.refused) for one in measured),
        "calls with an error": sum(bool(one.error) for one in measured),
        "frames sent": sum(one.sent for one in measured),
        "frames dropped before the model heard them": sum(one.dropped for one in measured),
        "frames received": sum(one.received for one in measured),
        "gap between frames, median / p99 / worst": shares([gap for one in measured for gap in one.gaps]),
        "from a frame sent to its answer, median / p99 / worst": shares(
            [delay for one in measured for delay in one.delays]
        ),
        "first frame sent to first sound, median / p99 / worst": shares(
            [one.first_audio for one in measured if one.first_audio is not None]
        ),
        "server: ticks": counted["ticks"],
        "server: frames answered later than two frames after they came": counted["misses"],
        "server: tick, median / p99 / worst": server("tick"),
        "server: from a frame to its answer, median / p99 / worst": server("delay"),
    }


def table(found: dict[str, object]) -> str:
    """Return figures as a Markdown table."""
    return "\n".join(["| figure | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in found.items())])


def main(arguments: Sequence[str] | None = None) -> dict[str, object]:
    """Run the command and return its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="?", type=checked, help="of a running server on this machine")
    parser.add_argument("--artifact", type=Path, help="start a server of this artifact")
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steady", action="store_true", help="one long call each: no joins, leaves and stalls")
    parser.add_argument("--speech", type=Path, nargs="*", default=[], help="recordings; by default bursts of tones")
    parser.add_argument("--json", type=Path, help="write what every call measured")
    parser.add_argument("--write", type=Path, help="write the figures into this Markdown page")
    options = parser.parse_args(arguments)
    if not (1 <= options.callers <= MOST_CALLERS and 0 < options.seconds <= MOST_SECONDS):
        raise SystemExit(f"--callers must be 1 to {MOST_CALLERS}, and --seconds at most {MOST_SECONDS}")
    recordings = [audio.read_mixed(path, RATE) for path in options.speech] or [tone_bursts(30, n) for n in range(4)]
    with contextlib.ExitStack() as stack:
        url = options.url
        if url is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            artifact = options.artifact or random_artifact(folder, options.callers)
            url, _ = stack.enter_context(server(artifact, options.callers))
        before, began = metrics(url), time.monotonic()
        measured = asyncio.run(run(url, options.callers, options.seconds, options.seed, recordings, options.steady))
        found = figures(measured, before, metrics(url)) | {"seconds": round(time.monotonic() - began)}
    if options.json:
        calls = [dataclasses.asdict(one) for one in measured]
        options.json.write_text(json.dumps({"figures": found, "calls": calls}, indent=1) + "\n")
    print(table(found))
    if options.write:
        options.write.write_text(fill(options.write.read_text(), {"calls": section(options, found)}))
    return found


def section(options: argparse.Namespace, found: dict[str, object]) -> str:
    """Return the part of docs/reliability.md."""
    artifact = f" --artifact {options.artifact}" if options.artifact else ""
    command = f"python -m tools.bench.calls{artifact} --callers {options.callers} --seconds {options.seconds:g}"
    return f"```\n{command} --write docs/reliability.md\n```\n\n{machine()}.\n\n{table(found)}"


if __name__ == "__main__":
    main()
