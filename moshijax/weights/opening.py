"""Opening whatever holds the weights of a model: published files, imported weights, or a run.

Tested in `tests/weights/test_transfer.py` and `tests/weights/test_bad_input.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moshijax.errors import DataError
from moshijax.weights.families import FAMILIES
from moshijax.weights.imported import is_imported, open_imported
from moshijax.weights.model import OpenedModel
from moshijax.weights.published import CONFIG_FILE, PublishedFiles
from moshijax.weights.run import open_run
from moshijax.weights.run_files import MODEL


def open_model(path: str | Path, kind: str | None = None, config: Any = None) -> OpenedModel:
    """Open what is at `path`: a safetensors file or index, a directory of published or imported weights, or a run.

    Args:
      path: where it is.
      kind: of the model that is needed, one of `moshijax.weights.families.FAMILIES`; default: whatever is there. A
        directory of a language model may lead to its codec.
      config: of the model in a lone file.

    Raises:
      DataError: nothing usable is there, files are damaged or incomplete, or tensors do not fit the config.
      ConfigError: a config that this model family does not have.
    """
    path = Path(path)
    if is_imported(path):
        model = open_imported(path)
    elif (path / MODEL).is_file():
        model = open_run(path)
    else:
        model = _open_published(path, kind, config)
    if kind is None or model.family.kind == kind:
        return model
    if model.codec is not None and model.codec.family.kind == kind:
        return model.codec
    raise DataError(f"{path} is {model.family.title}, {FAMILIES[kind].title} is needed; {model.family.unfit}")


def _open_published(path: Path, kind: str | None, config: Any) -> OpenedModel:
    """Open published files by the first family that claims them; the one that is needed is asked first."""
    published = PublishedFiles.at(path)
    for family in sorted(FAMILIES.values(), key=lambda family: family.kind != kind):
        if family.claims(published):
            return family.open_published(published, config)
    raise DataError(f"{path} has no {CONFIG_FILE}; name a weight file, or a directory with its {CONFIG_FILE}")
