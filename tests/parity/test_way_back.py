"""A model of the quickstart's shape, exported with `--format kyutai`, in the PyTorch package's own loader.

`fixtures/way_back.npz` holds what the package made of it. With torch and `moshi` at hand (here, or in the interpreter
that MOSHIJAX_REFERENCE_PYTHON names) the test marked `reference` has it made again; MOSHIJAX_EXPORTED names another
exported directory for it, such as that of a trained quickstart.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from moshijax import codec, lm, weights
from moshijax.weights.formats.lm_config import published_config
from moshijax.weights.formats.lm_table import lm_table
from moshijax.weights.formats.mimi_config import published_mimi_config
from moshijax.weights.formats.mimi_table import mimi_table
from moshijax.weights.opening import open_model
from moshijax.weights.transfer import export_weights, import_weights
from tests.parity.weights_by_name import FIXTURES, fill

ROOT = Path(__file__).parents[2]
SEED = 11


def shapes(table):
    return {name: entry.shape for name, entry in table.items()}


def exported(folder: Path) -> Path:
    """The directory that the fixture was made from: weights by name, through import and export."""
    from safetensors.numpy import save_file

    given = folder / "given"
    given.mkdir()
    names = {"mimi_name": "mimi.safetensors", "mimi_config_name": "mimi.json", "tokenizer_name": "tokenizer.model"}
    fields = {**published_config(lm.configs.TINY), **names}
    (given / "config.json").write_text(json.dumps(fields))
    (given / "mimi.json").write_text(json.dumps(published_mimi_config(codec.configs.TINY)))
    (given / "tokenizer.model").write_bytes(b"no text is decoded")
    save_file(fill(shapes(lm_table(lm.configs.TINY)), SEED), given / "model.safetensors")
    save_file(fill(shapes(mimi_table(codec.configs.TINY)), SEED), given / "mimi.safetensors")
    import_weights(given, folder / "ours")
    export_weights(open_model(folder / "ours"), folder / "exported", "kyutai")
    return folder / "exported"


def ours(directory: Path, want: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What we make of the same directory: generated columns, codes and their decoding."""
    config, params = weights.load_lm(directory, dtype="float32")
    state, greedy = lm.init_generation(config, params, 1), lm.Sampling.greedy().rows(1)
    step = jax.jit(lambda params, state, given: lm.generate_step(config, params, state, given, greedy))
    columns = []
    for given in want["given"]:
        state, out = step(params, state, given)
        columns.append(out)
    mimi, params = weights.load_mimi(directory)
    codes = codec.encode(mimi, params, want["waveform"], num_codebooks=want["codes"].shape[1])
    return np.stack(columns), np.asarray(codes), np.asarray(codec.decode(mimi, params, want["codes"]))


def check(directory: Path, want: dict[str, np.ndarray]) -> None:
    columns, codes, decoded = ours(directory, want)
    np.testing.assert_array_equal(columns, want["out"])
    np.testing.assert_array_equal(codes, want["codes"])
    np.testing.assert_allclose(decoded, want["decoded"], atol=1e-4, rtol=0)


def test_the_stored_reference(tmp_path):
    with np.load(FIXTURES / "way_back.npz") as file:
        want = dict(file)
    assert len(np.unique(want["out"])) > 20 and want["margin"] > 1e-4
    check(exported(tmp_path), want)


def reference_python() -> str | None:
    if importlib.util.find_spec("torch") and importlib.util.find_spec("moshi"):
        return sys.executable
    return os.environ.get("MOSHIJAX_REFERENCE_PYTHON")


@pytest.mark.reference
@pytest.mark.skipif(reference_python() is None, reason="needs torch and moshi, or MOSHIJAX_REFERENCE_PYTHON")
def test_the_package_loads_what_we_export(tmp_path):
    directory = Path(os.environ["MOSHIJAX_EXPORTED"]) if "MOSHIJAX_EXPORTED" in os.environ else exported(tmp_path)
    subprocess.run(
        [reference_python(), "-m", "tools.reference.generate", directory, tmp_path / "made.npz"], check=True, cwd=ROOT
    )
    with np.load(tmp_path / "made.npz") as file:
        check(directory, dict(file))
