"""What imports what: the layers of the design, nothing eager, and a core that needs no optional package."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from moshijax import optional
from moshijax.errors import MoshijaxError

ROOT = Path(__file__).parents[1]
CORE = ("nn", "codec", "lm", "weights", "export", "train", "testing")


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)


def modules(*packages: str) -> list[str]:
    found = []
    for package in packages:
        for path in sorted((ROOT / "moshijax" / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found.append(name.removesuffix(".__init__"))
    return found


def block(names: tuple[str, ...]) -> str:
    """Python source that makes the import of these top-level packages fail as if they were not installed."""
    return (
        "import sys, importlib.abc\n"
        f"blocked = {set(names)!r}\n"
        "class Block(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name.partition('.')[0] in blocked:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Block())\n"
    )


def test_imports_point_one_way() -> None:
    command = [str(Path(sysconfig.get_path("scripts")) / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_package_imports_nothing_eagerly() -> None:
    done = python("import sys; import moshijax; print(sorted(m for m in sys.modules if m.startswith('moshijax')))")
    assert done.stdout.strip() == "['moshijax']", done.stdout + done.stderr


def test_the_core_needs_no_optional_package() -> None:
    """Every module of the core imports where only jax, flax, optax, orbax, numpy, safetensors and flatbuffers are."""
    absent = (*optional.EXTRA_OF, "gin", "jaxtyping", "tensorflow", "tensorflow_datasets", "torch", "aiohttp", "sphn")
    names = modules(*CORE)
    code = block(absent) + "\n".join(f"import {name}" for name in names) + "\nprint('imported')"
    done = python(code)
    assert done.stdout.strip() == "imported", done.stderr[-2000:]


def test_the_runtime_needs_numpy_jax_flatbuffers_and_safetensors_alone() -> None:
    absent = (*optional.EXTRA_OF, "gin", "jaxtyping", "flax", "optax", "orbax", "click", "rich", "packaging")
    names = [name for name in modules("runtime") if not name.endswith("__main__")]
    done = python(block(absent) + "\n".join(f"import {name}" for name in names) + "\nprint('imported')")
    assert done.stdout.strip() == "imported", done.stderr[-2000:]


def test_a_missing_optional_package_is_named_with_its_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "soxr", None)
    with pytest.raises(MoshijaxError, match=r"'soxr' is not installed: pip install 'moshijax\[data\]'") as error:
        optional.load("soxr")
    assert isinstance(error.value, ModuleNotFoundError)


def test_every_optional_package_is_in_the_extra_that_is_named() -> None:
    from importlib import metadata

    from packaging.requirements import Requirement

    requirements = [Requirement(text) for text in metadata.requires("moshijax") or []]
    for module, extra in optional.EXTRA_OF.items():
        brought = {r.name.replace("-", "_") for r in requirements if r.marker and r.marker.evaluate({"extra": extra})}
        assert module in brought, f"extra {extra} does not bring {module}"
