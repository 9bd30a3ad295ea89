"""Ten thousand steps: no error, no compilation, no growing memory. `tools/soak.py` runs a hundred thousand."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from moshijax.export import runtime


@pytest.mark.slow
def test_ten_thousand_steps(artifact_dir):
    path = Path(__file__).parents[2] / "tools" / "soak.py"
    spec = importlib.util.spec_from_file_location("soak", path)
    soak = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(soak)
    figures = soak.soak(runtime.load(artifact_dir, 1), steps=10_000, report_every=1000)
    assert figures["compilations"] == 0 and figures["calls"] > 5
    # Between a tenth of the way and the end: allocator noise, not growth (1 KiB a step would be 9 MiB).
    assert figures["memory_growth_mib"] < 4
