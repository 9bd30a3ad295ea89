"""Run a test function in a process of its own that sees several CPU devices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def run_on_devices(count: int, function: str, *arguments: object) -> str:
    """Call `package.module:function(*arguments)` (arguments as strings) with `count` CPU devices; what it writes."""
    module, name = function.split(":")
    code = (
        f"import jax; jax.config.update('jax_num_cpu_devices', {count}); "
        f"import importlib, sys; importlib.import_module({module!r}).{name}(*sys.argv[1:])"
    )
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return done.stdout + done.stderr
