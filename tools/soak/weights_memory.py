"""Measure the peak memory of importing, loading and exporting a synthetic model of any size.

    python -m tools.soak.weights_memory --gigabytes 4 [--directory DIR]

Writes a published file of a Moshi-shaped model in bfloat16, then runs each step in a separate process and prints, in
MB, the largest tensor, the parameters, and the growth of the step's resident memory. Importing and exporting must stay
within a few tensors, loading within the parameters and the largest tensor.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np

ROOT = Path(__file__).parents[2]

STEPS = ("import", "load", "load stacked", "export")


def config_of(gigabytes: float) -> dict:
    """Return a published config whose file has about this size; layers of 7B proportions, half as wide below 1 GB."""
    dim = 1024 if gigabytes >= 1 else 512
    layer = 2 * (4 * dim * dim + 3 * dim * 2816 * dim // 1024)
    layers = max(2, round((gigabytes * 1e9 - 2 * 2 * 32000 * dim) / layer))
    return {
        **{"dim": dim, "num_heads": 8, "num_layers": layers, "hidden_scale": 4.125, "context": 100, "n_q": 4},
        **{"dep_q": 2, "card": 2048, "text_card": 32000, "delays": [0, 0, 1, 0, 1], "norm": "rms_norm_f32"},
        **{"gating": "silu", "positional_embedding": "rope", "depformer_dim": 256, "depformer_num_heads": 4},
        **{"depformer_num_layers": 2, "depformer_dim_feedforward": 1056, "depformer_multi_linear": True},
        **{"depformer_weights_per_step": True, "depformer_pos_emb": "none"},
    }


class Synthetic:
    """The tensors of a model, built when they are written."""

    def __init__(self, config: dict):
        from moshijax.weights.formats.lm_config import lm_config
        from moshijax.weights.formats.lm_table import lm_table

        self.shapes = {name: entry.shape for name, entry in lm_table(lm_config(config)).items()}
        self.dtypes = dict.fromkeys(self.shapes, np.dtype(ml_dtypes.bfloat16))
        self._random = np.random.RandomState(0)

    def __getitem__(self, name: str) -> np.ndarray:
        count = int(np.prod(self.shapes[name]))
        words = np.frombuffer(self._random.bytes(2 * count), np.uint16) & 0x3FFF  # small positive numbers
        return words.view(ml_dtypes.bfloat16).reshape(self.shapes[name])


def make(directory: Path, gigabytes: float) -> dict[str, float]:
    """Write the model and return its sizes in MB."""
    from moshijax.weights.writer import write

    config = config_of(gigabytes)
    tensors = Synthetic(config)
    directory.mkdir()
    write(directory / "model.safetensors", tensors)
    (directory / "config.json").write_text(json.dumps(config))
    sizes = [2 * int(np.prod(shape)) / 1e6 for shape in tensors.shapes.values()]
    return {"largest tensor": max(sizes), "parameters": sum(sizes)}


def status(field: str) -> float:
    """Return one figure of this process's memory, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024 / 1e6
    raise SystemExit(f"no {field} in /proc/self/status: this needs Linux")


def run(step: str, directory: Path) -> dict[str, float]:
    """Run one step in this process and return the growth of its memory and its seconds."""
    from moshijax import weights
    from moshijax.weights.opening import open_model
    from moshijax.weights.transfer import export_weights, import_weights

    given, ours = directory / "given", directory / "ours"
    open_model(given)  # everything imported and traced
    before, started = status("VmRSS"), time.perf_counter()
    if step == "import":
        import_weights(given, ours)
    elif step == "export":
        export_weights(open_model(ours), directory / "back", "kyutai")
    else:
        weights.load_lm(ours, stacked=step.endswith("stacked"))
    return {"rise": status("VmHWM") - before, "seconds": time.perf_counter() - started}


def measure(gigabytes: float, directory: Path) -> dict[str, dict[str, float]]:
    """Run all steps, each in a separate process, and return their figures."""
    found = {"model": make(directory / "given", gigabytes)}
    for step in STEPS:
        command = [sys.executable, "-m", "tools.soak.weights_memory", "--step", step, "--directory", str(directory)]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        found[step] = json.loads(
            subprocess.run(command, check=True, capture_output=True, env=environment, cwd=ROOT).stdout
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--directory", type=Path, help="an existing folder with three times that much space")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(run(options.step, options.directory)))
        return
    scratch = Path(tempfile.mkdtemp(dir=options.directory))
    try:
        for name, values in measure(options.gigabytes, scratch).items():
            print(f"{name:14}", ", ".join(f"{key} {value:.1f}" for key, value in values.items()))
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
