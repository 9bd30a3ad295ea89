"""What imports what: the layers of the design, nothing eager, and a core that needs no optional package."""

from __future__ import annotations

import ast
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from moshijax import optional
from moshijax.errors import MoshijaxError

ROOT = Path(__file__).parents[1]
CORE = ("nn", "codec", "lm", "omni", "weights", "export", "train", "testing")


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


#: Functions that import a module by its name, and the only files that may call them with a name that is not written
#: there: a recipe names the modules of its bindings, `optional` has a table of packages that are not ours.
BY_NAME = ("import_module", "__import__", "run_module", "resolve_name")
NAMES_FROM_ELSEWHERE = ("config.py", "optional.py")


def hidden_imports(source: str, file: str) -> list[str]:
    """Calls in a module at `file` (a path inside `moshijax/`) that import by name what the linter should see.

    A call may name a module by a string (or the constant beginning of an f-string) of the folder that the file is in
    (`moshijax.cli.` in `moshijax/cli/main.py`), which crosses no layer, or of another package than ours. Any other
    argument is hidden, except in the files of `NAMES_FROM_ELSEWHERE`.
    """
    folder = ".".join(("moshijax", *Path(file).parts[:-1])) + "."
    found = []
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call):
            continue
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", None)
        if name not in BY_NAME:
            continue
        argument = call.args[0] if call.args else None
        if isinstance(argument, ast.JoinedStr):
            argument = argument.values[0]
        named = argument.value if isinstance(argument, ast.Constant) else None
        if named is None:
            allowed = file in NAMES_FROM_ELSEWHERE
        else:
            ours = named.startswith((".", "moshijax.")) or named == "moshijax"
            allowed = not ours or (folder != "moshijax." and named.startswith(folder))
        if not allowed:
            found.append(f"moshijax/{file}:{call.lineno}: {ast.unparse(call)}")
    return found


def test_no_module_of_ours_is_imported_by_name() -> None:
    package = ROOT / "moshijax"
    files = [path.relative_to(package) for path in sorted(package.rglob("*.py")) if "shipped" not in path.parts]
    found = [line for file in files for line in hidden_imports((package / file).read_text(), str(file))]
    assert not found, found


@pytest.mark.parametrize(
    ("call", "file", "hidden"),
    [
        ("importlib.import_module('moshijax.train.loop')", "weights/run.py", True),
        ("import_module('moshijax.weights.run')", "weights/run.py", False),
        ("importlib.import_module(f'moshijax.{name}')", "weights/run.py", True),
        ("importlib.import_module('..train.loop', __package__)", "weights/run.py", True),
        ("__import__(name)", "weights/run.py", True),
        ("__import__('torch')", "data/teacher.py", False),
        ("importlib.import_module(f'moshijax.cli.{name}')", "cli/main.py", False),
        ("importlib.import_module(f'moshijax.cli.{name}')", "config.py", True),
        ("importlib.import_module(module)", "optional.py", False),
    ],
)
def test_what_counts_as_an_import_by_name(call, file, hidden) -> None:
    assert bool(hidden_imports(call, file)) is hidden


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


def test_no_module_needs_a_package_of_the_tests() -> None:
    """Users do not have these: what only type checkers read is imported for them alone."""
    names = [name for name in modules("") if not name.endswith("__main__") and ".shipped" not in name]
    code = block(("jaxtyping", "pytest", "hypothesis", "psutil")) + "\n".join(f"import {name}" for name in names)
    done = python(code + "\nprint('imported')")
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
    packages = metadata.packages_distributions()  # of those that are installed; others are named like their module
    for module, extra in optional.EXTRA_OF.items():
        names = {name.lower().replace("-", "_") for name in packages.get(module, [module])}
        brought = {
            r.name.lower().replace("-", "_").partition(".")[0]
            for r in requirements
            if r.marker and r.marker.evaluate({"extra": extra})
        }
        assert names & brought, f"extra {extra} does not bring {module}"
