"""The runtime in an environment that holds numpy, jax, flatbuffers, safetensors and this package, and nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from moshijax.runtime import audio

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_runs_with_four_packages(artifact_dir, tmp_path):
    user, out, text = tmp_path / "user.wav", tmp_path / "reply.wav", tmp_path / "reply.json"
    audio.write(user, np.random.RandomState(0).uniform(-0.4, 0.4, (640 * 20, 1)), 8000)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "numpy", "jax", "flatbuffers", "safetensors"], check=True)
    # A build leaves files in the folder it is made in, so it is made in a copy.
    source, wheels = tmp_path / "source", tmp_path / "wheels"
    shutil.copytree(ROOT, source, symlinks=True, ignore=shutil.ignore_patterns(".*", "runs", "build", "dist", "tests"))
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, source]
    subprocess.run(build, check=True)
    [wheel] = wheels.glob("*.whl")
    subprocess.run([*pip, "--no-deps", wheel], check=True)
    installed = subprocess.run([python, "-m", "pip", "list", "--format=json"], capture_output=True, check=True)
    names = {entry["name"].lower() for entry in json.loads(installed.stdout)}
    assert not names & {"flax", "click", "rich", "optax", "orbax-checkpoint", "gin-config", "soundfile", "soxr"}

    command = [python, "-m", "moshijax.runtime", artifact_dir, "--user", user, "--out", out, "--text-out", text]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    stereo, rate = audio.read(out)
    assert rate == 8000 and stereo.shape == (640 * 20, 2) and stereo[:, 0].std() > 0
    assert json.loads(text.read_text())["timing"]["steps"] == 21
    imported = subprocess.run(
        [python, "-c", "import sys, moshijax.runtime.rows, moshijax.runtime.play; print('flax' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert imported.stdout.strip() == "False"
