"""Weights are read and written tensor by tensor."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What a process needs beside tensors: compiled code, headers, the allocator's rounding.
SPARE_MB = 30


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_under_the_destination_and_the_largest_tensor(tmp_path):
    code = (
        "import json; from pathlib import Path; from tools.soak.weights_memory import measure; "
        f"print(json.dumps(measure(0.5, Path({str(tmp_path)!r}))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    largest, parameters = found["model"]["largest tensor"], found["model"]["parameters"]
    assert parameters > 400 and largest > 30
    for step in ("import", "export"):
        assert found[step]["rise"] < 3 * largest + SPARE_MB, found
    for step in ("load", "load stacked"):
        assert parameters < found[step]["rise"] < parameters + largest + SPARE_MB, found
