"""The prepared run on a device, here on the CPU with tiny models."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from tools.bench import device, on_device, support


def test_every_part_stands_in_the_file_and_a_failed_one_loses_no_other(tmp_path, monkeypatch):
    file, page = tmp_path / "device.json", tmp_path / "benchmarks.md"
    monkeypatch.setattr(device, "LIMITS", dict.fromkeys(device.LIMITS, 3600.0))
    where = ["--json", str(file), "--platform", "cpu", "--size", "tiny", "--minutes", "60"]
    device.main([*where, "--parts", "train:nano/nothing.gin", "correct:tiny", "step:1", "train:nano/lora.gin"])
    found = json.loads(file.read_text())
    assert {part: entry["status"] for part, entry in found.items()} == {
        "train:nano/nothing.gin": "failed",
        "correct:tiny": "ok",
        "step:1": "ok",
        "train:nano/lora.gin": "ok",
    }
    assert "nano/nothing.gin" in found["train:nano/nothing.gin"]["said"]
    assert found["correct:tiny"]["result"]["ok"]
    step, (train,) = found["step:1"]["result"], found["train:nano/lora.gin"]["result"]
    assert 0 < step["floor bytes"] <= step["moved bytes"] and step["awaited ms"]["fastest"] > 0
    assert train["finite"] and train["amounts"]["frames"] == 320

    device.main([*where, "--parts", "train:nano/lora.gin", "--minutes", "0"])  # the others stay
    assert json.loads(file.read_text())["train:nano/lora.gin"]["status"] == "out of time"
    assert json.loads(file.read_text())["step:1"] == found["step:1"]

    monkeypatch.setattr(support, "PAGE", page)
    file.write_text(json.dumps(found))
    device.main(["--json", str(file), "--write"])
    text = page.read_text()
    assert "| tiny | 12 of 12 frames | 0.0e+00 | 0.0e+00 | equal |" in text
    assert f"| 1 | {step['awaited ms']['fastest']:.2f} ms |" in text
    assert f"| `nano/lora.gin` | audio | {train['step ms']['fastest']:.0f} ms |" in text
    assert "Not measured: train:nano/nothing.gin (failed)." in text


def test_a_part_that_takes_too_long_is_ended():
    entry = device.measure("step:1", "cpu", "tiny", sys.executable, 0.1)
    assert entry["status"] == "out of time" and "result" not in entry


@pytest.mark.parametrize("fault", [None, "logits", "codes", "pcm"])
def test_a_device_that_computes_something_else_is_noticed(fault):
    random, frames = np.random.RandomState(0), on_device.FRAMES
    reference = {
        "step_tokens/text_logits": random.randn(frames, 2, 5),
        "step_tokens/logits": random.randn(frames, 2, 3, 5),
        "step_tokens/codes": random.randint(0, 9, (frames, 2, 4)),
        "step/codes": random.randint(0, 9, (frames, 2, 4)),
        "step/pcm": random.randn(frames, 2, 8),
    }
    ours = {name: value.copy() for name, value in reference.items()}
    if fault == "logits":
        ours["step_tokens/logits"][3, 1] += 2e-3 * reference["step_tokens/logits"].std()
    elif fault == "codes":
        ours["step/codes"][4, 0, 2] += 1
        ours["step/pcm"][6] += 1.0  # whatever follows a differing code differs
    elif fault == "pcm":
        ours["step/pcm"][5] = np.nan
    found = on_device.compare(ours, reference)
    assert found["ok"] == (fault is None)
    assert found["step equal codes"] == (4 if fault == "codes" else frames)
    if fault in (None, "codes"):
        assert found["step/pcm difference"] == 0.0
