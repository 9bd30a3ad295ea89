"""Weights are read and written tensor by tensor."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "weights_memory.py"
# What a process needs beside tensors: compiled code, headers, the allocator's rounding.
SPARE_MB = 30


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_under_the_destination_and_the_largest_tensor(tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(TOOL.parent)!r}); import json, weights_memory; from pathlib import Path; "
        f"print(json.dumps(weights_memory.measure(0.5, Path({str(tmp_path)!r}))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    largest, parameters = found["model"]["largest tensor"], found["model"]["parameters"]
    assert parameters > 400 and largest > 30
    for step in ("import", "export"):
        assert found[step]["rise"] < 3 * largest + SPARE_MB, found
    for step in ("load", "load stacked"):
        assert parameters < found[step]["rise"] < parameters + largest + SPARE_MB, found
