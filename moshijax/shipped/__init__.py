"""The recipes of `experiments/` and the texts of `data/`, as they ship with the package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def folder(name: str) -> Path:
    """Return the shipped folder `experiments` or `data`, or a path inside one, such as `data/small_world`.

    The package is always installed unzipped, so this is a real path on disk.
    """
    return Path(str(resources.files(__name__))).joinpath(*name.split("/"))
