"""Compiled programs are kept, in whichever folder; each case in a process of its own, whose jax it sets up."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import jax
from moshijax.serve import cache

kept = cache.keep_compiled()
jax.jit(lambda x: x + 1)(1.0)
print(kept)
"""


def start(**environment: str) -> str:
    """Return what is printed after a first start."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, env=inherited | environment
    )
    return done.stdout.strip()


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"])
def test_even_what_is_compiled_at_once_is_kept(variable, tmp_path) -> None:
    assert " 0 read, all kept in " in start(**{variable: str(tmp_path)})
    assert list(tmp_path.rglob("jit__lambda*"))


def test_without_a_folder_it_says_that_nothing_is_kept_and_why(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    assert start(XDG_CACHE_HOME=str(tmp_path / "file")) == (
        f"compiled programs are not kept: {tmp_path}/file/moshijax/compiled: Not a directory; "
        "XDG_CACHE_HOME names another folder"
    )
