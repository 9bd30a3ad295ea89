"""Ten thousand steps: no error, no compilation, no growing memory. `tools/soak.py` runs a hundred thousand."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from moshijax.export import artifact, call, runtime


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


@pytest.mark.slow
def test_rows_of_a_large_batch_are_alike(models, tmp_path):
    """More rows than the matrix-vector path takes, and a number that no vector width divides: still bit for bit."""
    program = runtime.load(artifact.build(*models, tmp_path / "artifact", batches=(13,)), 13)
    random = np.random.RandomState(0)
    wave, *others = [(random.randn(640 * n) * 0.3).astype(np.float32) for n in (40, *random.randint(5, 60, 25))]
    sampling = {"temperature": 0.9, "text_temperature": 0.9, "top_k": 20, "text_top_k": 20}
    [alone], _ = call.play(program, [wave], [5], sampling)
    for position in (0, 6, 12):
        waves = others[:position] + [wave] + others[position:]
        calls, _ = call.play(program, waves, [5 if w is wave else 100 + i for i, w in enumerate(waves)], sampling)
        np.testing.assert_array_equal(calls[position].codes, alone.codes)
        np.testing.assert_array_equal(calls[position].pcm, alone.pcm)
