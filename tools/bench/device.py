"""Check and time everything on an accelerator in one go, while it is at hand, and write it into docs/benchmarks.md.

python -m tools.bench.device --json device.json        # measure: 15 minutes on one NVIDIA card
python -m tools.bench.device --json device.json --write                  # make the sections of the page of it
python -m tools.bench.device --json device.json --parts reference:1 step:64         # these again; the others stay

What runs: a tiny model and one of 250 M parameters against the CPU; the step of Moshi 7B for 1, 16 and 64 calls with
random weights, against the floor of its compiled program and the bandwidth of the device; the same step of the PyTorch
package with CUDA graphs, where an interpreter has `moshi` and `torch`; and training steps of the recipes. Every part
is a process with a time limit of its own, and the file is written after each, so one that fails loses no other.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tools.bench import support

#: Seconds for one part of a kind; a 7B step compiles for two minutes on slow hosts.
LIMITS = {"correct": 150, "step": 200, "reference": 120, "train": 180}
CALLS = ("1", "16", "64")
PARTS = {
    "full": (
        "correct:tiny",
        *(part for calls in CALLS for part in (f"step:{calls}", f"reference:{calls}")),
        "correct:medium",
        *(f"train:{name}.gin" for name in ("moshi/lora", "codec/small_adversarial", "moshi/finetuning")),
        *(f"train:{name}.gin" for name in ("moshi/pretraining", "codec/mimi_adversarial", "quickstart/moshi")),
    ),
    "tiny": (
        "correct:tiny",
        *(part for calls in CALLS for part in (f"step:{calls}", f"reference:{calls}")),
        *(f"train:nano/{name}.gin" for name in ("lora", "finetuning", "pretraining")),
    ),
}


def measure(part: str, platform: str, size: str, reference_python: str, seconds: float) -> dict[str, Any]:
    """Run a part in a process, for so many seconds at most.

    Returns:
      {status: "ok", "failed", "out of time" or "not here"}, with `result` and `about`, or with the last lines of what
      the process said.
    """
    if part.startswith("reference:"):
        there = subprocess.run([reference_python, "-c", "import torch, moshi"], capture_output=True, text=True)
        if there.returncode:
            return {"status": "not here", "said": there.stderr}
    environment = dict(os.environ)
    environment.setdefault("JAX_PLATFORMS", "cpu" if platform == "cpu" else f"{platform},cpu")
    environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    for name in ("NO_TORCH_COMPILE", "NO_CUDA_GRAPH"):  # of the PyTorch package: on, as its server runs
        environment.setdefault(name, "")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        file, log = Path(scratch) / "result.json", Path(scratch) / "log"
        with log.open("w") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", "tools.bench.on_device", part, platform, size, reference_python, str(file)],
                stdout=said,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=support.ROOT,
            )
            try:
                status = "ok" if process.wait(timeout=seconds) == 0 else "failed"
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                status = "out of time"
        took = {"status": status, "seconds": time.perf_counter() - started}
        if status == "ok":
            return {**took, **json.loads(file.read_text())}
        return {**took, "said": log.read_text(errors="replace")[-2000:]}


def run(file: Path, parts: list[str], platform: str, size: str, reference_python: str, minutes: float) -> None:
    """Run parts one after the other and put each into the file, beside those that are there."""
    found = json.loads(file.read_text()) if file.exists() else {}
    end = time.monotonic() + 60 * minutes
    for part in parts:
        left = min(LIMITS[part.partition(":")[0]], end - time.monotonic())
        if left <= 0:
            found[part] = {"status": "out of time", "said": "no time was left"}
        else:
            found[part] = measure(part, platform, size, reference_python, left)
        file.write_text(json.dumps(found, indent=1), encoding="utf-8")
        print(f"{part}: {found[part]['status']}, {found[part].get('seconds', 0):.0f} s", flush=True)
        if "said" in found[part]:
            print("    " + found[part]["said"].strip().rsplit("\n", 1)[-1], flush=True)


# The page -----------------------------------------------------------------------------------------------------------


def sections(found: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return (title, notes, table) of every section that can be made of what was found."""
    done = {part: entry for part, entry in found.items() if entry["status"] == "ok"}
    if not done:
        return []
    about = next(iter(done.values()))["about"]
    device = about["device"]
    missing = [f"{part} ({entry['status']})" for part, entry in found.items() if entry["status"] != "ok"]
    said = [f"Not measured: {', '.join(missing)}."] if missing else []
    results = {
        kind: {part.partition(":")[2]: entry["result"] for part, entry in done.items() if part.startswith(f"{kind}:")}
        for kind in LIMITS
    }
    out = []
    if results["correct"]:
        table = [["model", "codes equal", "largest difference of logits", "of audio", "verdict"]]
        for name, r in results["correct"].items():
            logits, audio = (
                _largest([r[f"{output} difference"] for output in outputs])
                for outputs in (("step_tokens/text_logits", "step_tokens/logits"), ("step/pcm",))
            )
            codes = f"{min(r['step_tokens equal codes'], r['step equal codes'])} of {r['frames']} frames"
            table.append([name, codes, logits, audio, "equal" if r["ok"] else "DIFFERENT"])
        notes = ["Float32, greedy and sampled rows; differences as shares of the standard deviation."]
        out.append((f"{device} against the CPU", notes, table))
    if results["step"]:
        out.append((f"{device}: one frame of calls", _step_notes(about, said), _step_table(about, results)))
    if results["train"]:
        table = [["recipe", "step", "one step", "frames/s", "MFU"]]
        for lines in results["train"].values():
            for r in lines:
                if "too large" in r:
                    table.append([f"`{r['recipe']}`", "", r["too large"], "", ""])
                    continue
                ms = r["step ms"]["fastest"]
                cells = [f"{ms:.0f} ms", f"{1e3 * r['amounts']['frames'] / ms:,.0f}", f"{100 * r['mfu']:.0f} %"]
                table.append([f"`{r['recipe']}`", r["kind"], *cells])
        notes = [f"{about['count']} x {device}, jax {about['jax']}; the fastest of three steps on random batches."]
        out.append((f"{device}: training steps", notes, table))
    return out


def _largest(differences: list[float | None]) -> str:
    """Return the largest as text; None is one that was not finite."""
    known = [value for value in differences if value is not None]
    return f"{max(known):.1e}" if len(known) == len(differences) else "not finite"


def _step_notes(about: dict[str, Any], said: list[str]) -> list[str]:
    return [
        f"{about['device']}, jax {about['jax']}. Audio in, audio and text out, codec included, random weights. "
        "Awaited: the fastest step with its outputs fetched; in a row: steps without a wait between them. Floor: what "
        "has to be read, at the bandwidth of the data sheet, or without one at that of a reading of the weights here.",
        *said,
    ]


def _step_table(about: dict[str, Any], results: dict[str, Any]) -> list[list[str]]:
    table = [["calls", "awaited", "in a row", "floor", "in a row / floor", "weights read at"]]
    table[0] += ["PyTorch", "times faster"]
    for calls, r in results["step"].items():
        floor = 1e3 * r["floor bytes"] / (about["bandwidth"] or r["measured bandwidth"])
        peer = results["reference"].get(calls)
        ours, theirs = r["awaited ms"]["fastest"], peer and peer["awaited ms"]["fastest"]
        cells = [f"{ours:.2f} ms", f"{r['in a row ms']:.2f} ms", f"{floor:.2f} ms", f"{r['in a row ms'] / floor:.2f}"]
        cells.append(f"{r['measured bandwidth'] / 1e9:.0f} GB/s")
        table.append([calls, *cells, *([f"{theirs:.2f} ms", f"{theirs / ours:.2f}"] if theirs else ["", ""])])
    return table


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file of the results")
    parser.add_argument("--write", action="store_true", help="only write the page from the file")
    parser.add_argument("--platform", default="cuda", choices=("cuda", "tpu", "cpu"))
    parser.add_argument("--size", default="full", choices=tuple(PARTS))
    parser.add_argument("--parts", nargs="+", help="such as step:16; all of the size without")
    parser.add_argument("--reference-python", default=sys.executable, help="interpreter with moshi and torch")
    parser.add_argument("--minutes", type=float, default=14.0, help="for all parts together")
    options = parser.parse_args(arguments)
    if options.write:
        for title, notes, table in sections(json.loads(options.json.read_text())):
            support.write_section(title, "python -m tools.bench.device --json FILE", notes, table)
        return
    parts, others = options.parts or list(PARTS[options.size]), (options.reference_python, options.minutes)
    run(options.json, parts, options.platform, options.size, *others)


if __name__ == "__main__":
    main()
