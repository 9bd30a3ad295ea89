"""`moshijax weights verify` against stored numbers of the reference."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.parity.weights_by_name import clip, load_fixture, write_checkpoint


def record(folder, name):
    """A fixture as a record: with its waveform, beside the weights."""
    description, arrays = load_fixture(name)
    write_checkpoint(folder, description)
    if description["kind"] == "mimi":
        size = description["frame_size"]
        arrays["waveform"] = np.stack([clip(seeds, size) for seeds in description["frame_seeds"]])
    (folder / "reference.json").write_text(json.dumps(description))
    np.savez(folder / "reference.npz", **arrays)
    return folder


@pytest.mark.parametrize("name", ["mimi_small", "lm_moshi"])
def test_equal_within_rounding_then_changed(tmp_path, cli, name):
    folder = record(tmp_path / "model", name)
    code, out, _ = cli("weights", "verify", folder)
    assert code == 0 and "equal within" in out.splitlines()[-1]
    parts = ["codec latents", "codes", "decode"] if "mimi" in name else ["text logits", "depth step 0", "depth step 1"]
    assert [line.split("  ")[0].removesuffix(" logits") for line in out.splitlines()[:-1]] == [
        part.removesuffix(" logits") for part in parts
    ]
    # One weight of the last part: what comes before is still right.
    tensors = load_file(folder / "model.safetensors")
    changed = "decoder.model.14.conv.conv.bias" if "mimi" in name else "linears.1.weight"
    tensors[changed] += 0.01
    save_file(tensors, folder / "model.safetensors")
    code, _, err = cli("weights", "verify", folder, "--reference", folder / "reference.npz")
    assert code == 1 and f"differs: {parts[-1]}" in err and "first at [0" in err


def test_what_is_no_record(tmp_path, cli):
    folder = record(tmp_path / "model", "lm_moshi")
    other = tmp_path / "other"
    code, _, err = cli("weights", "verify", folder, "--reference", other)
    assert code == 3 and "no reference numbers at" in err
    for suffix, content in ((".json", "{}"), (".npz", "PK")):
        other.with_suffix(suffix).write_text(content)
    code, _, err = cli("weights", "verify", folder, "--reference", other)
    assert code == 3 and "is not a record" in err
    record(tmp_path / "codec", "mimi_small")
    code, _, err = cli("weights", "verify", folder, "--reference", tmp_path / "codec" / "reference.json")
    assert code == 3 and "is a language model, a codec is needed" in err
