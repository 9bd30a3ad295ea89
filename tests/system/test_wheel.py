"""The wheel, installed as a user installs it: everything is in it, and the quickstart's first stage runs from it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_SOURCE = shutil.ignore_patterns(".git", ".venv*", "runs", "build", "dist", "*.egg-info", "__pycache__", ".*_cache")

pytestmark = pytest.mark.slow


def clean_environment() -> dict[str, str]:
    """Without what would let the new environment see this one."""
    return {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    }


def shell(*command: object, cwd: Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=clean_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    source = tmp_path_factory.mktemp("source") / "moshijax"
    shutil.copytree(ROOT, source, symlinks=True, ignore=NOT_SOURCE)
    out = tmp_path_factory.mktemp("wheel")
    shell(sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", out, source, cwd=out)
    (path,) = out.glob("moshijax-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The `bin` folder of an environment that holds the wheel and what the quickstart needs."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    shell(sys.executable, "-m", "venv", folder, cwd=folder.parent)
    shell(folder / "bin" / "python", "-m", "pip", "install", "--quiet", f"{wheel}[quickstart]", cwd=folder.parent)
    yield folder / "bin"
    shutil.rmtree(folder)


def files(*folders: str) -> set[str]:
    found = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    return {str(path.relative_to(ROOT)) for path in found if "__pycache__" not in path.parts}


def test_the_wheel_holds_the_modules_the_recipes_and_the_texts(wheel) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {path for path in files("moshijax") if path.endswith(".py")} | files("moshijax/serve/page")
    shipped = {f"moshijax/shipped/{path}" for path in files("experiments", "data")}
    assert sources | shipped <= names, (sources | shipped) - names
    assert any(path.endswith(".gin") for path in shipped)
    assert not [name for name in names if name.startswith(("tests/", "tools/"))]
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_wheel_brings_its_dependencies_and_the_doctor_is_content(installed, tmp_path) -> None:
    shell(installed / "python", "-m", "pip", "check", cwd=tmp_path)
    where = shell(installed / "python", "-c", "import moshijax; print(moshijax.__file__)", cwd=tmp_path).strip()
    assert str(installed.parent) in where, "the wheel itself must be tested, not this checkout"
    assert "All that the quickstart needs is here." in shell(installed / "moshijax", "doctor", cwd=tmp_path)


def test_every_shipped_recipe_loads_from_the_wheel(installed, tmp_path) -> None:
    recipes = sorted(path.removeprefix("experiments/") for path in files("experiments") if path.endswith(".gin"))
    code = (
        "from moshijax import config\nfrom moshijax.eval.evaluation import EvaluationConfig\n"
        f"for name in {recipes!r}: config.load(name, root=EvaluationConfig if name.startswith('eval/') else None)\n"
        "print('loaded')"
    )
    assert shell(installed / "python", "-c", code, cwd=tmp_path).strip() == "loaded"


def test_the_first_stage_of_the_quickstart_runs_from_the_wheel(installed, tmp_path) -> None:
    run = tmp_path / "run"
    shell(installed / "moshijax", "quickstart", "--run-dir", run, "--until", "synthesize", cwd=tmp_path)
    assert list(run.rglob("*.wav")), "the first stage makes speech"
