"""Imported weights: a directory with our parameters, and all that is needed to write the published files again.

Tested in `tests/weights/test_transfer.py`.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from moshijax import files
from moshijax.config_json import from_json, to_json
from moshijax.errors import DataError
from moshijax.weights import writer
from moshijax.weights.families import family_of
from moshijax.weights.formats.fields import checked
from moshijax.weights.model import OpenedModel, Provenance
from moshijax.weights.published import ADAPTER, has_tensors, read_json, tokenizer_in, tokenizer_name
from moshijax.weights.run_files import MODEL
from moshijax.weights.safetensors import check_names_and_shapes, open_tensors
from moshijax.weights.table import AsParameters
from moshijax.weights.tensors import InMemory, ShapesOnly
from moshijax.weights.writer import Progress

#: Files beside `model.json`, and the folder of the codec that came with a language model.
PARAMETERS, PROVENANCE, EXTRA, CODEC = "parameters.safetensors", "published.json", "extra.safetensors", "codec"
#: Largest file of parameters in bytes.
MAX_BYTES = 4 << 30


def is_imported(path: Path) -> bool:
    """Return whether this is a directory of imported weights."""
    return (path / MODEL).is_file() and has_tensors(path / PARAMETERS)


def open_imported(path: Path) -> OpenedModel:
    """Open imported weights.

    Raises:
      DataError: the directory is incomplete or damaged.
    """
    description, published = read_json(path / MODEL), read_json(path / PROVENANCE)
    try:
        kind, fields = description["kind"], description["config"]
        extra = dict(open_tensors(path / EXTRA)) if (path / EXTRA).exists() else {}
        stated = {name: published[name] for name in ("format", "config", "dtypes")}
    except KeyError as error:
        raise DataError(f"{path} lacks {error} in {MODEL} or {PROVENANCE}; import it again") from None
    hints = {"format": str, "config": dict, "dtypes": dict[str, str], "preprocessor": dict}
    stated = checked({"preprocessor": published.get("preprocessor", {}), **stated}, hints, str(path / PROVENANCE))
    provenance = Provenance(extra=extra, **stated)
    family = family_of(kind, path / MODEL)
    config = from_json(family.config_class, fields, MODEL)
    file = open_tensors(path / PARAMETERS)
    family.check_parts(config, file, file.path)
    check_names_and_shapes(file.path, file.shapes, ShapesOnly(family.abstract(config)).shapes)
    model = dataclasses.replace(
        family.of_parameters(config, file, provenance, path),
        codec=open_imported(path / CODEC) if (path / CODEC).is_dir() else None,
        tokenizer=tokenizer_in(path),
    )
    adapter = path / Path(str(provenance.config.get("lora_name") or ADAPTER)).name
    return family.with_adapter(model, adapter) if provenance.config.get("lora") else model


def write_imported(model: OpenedModel, folder: Path, progress: Progress) -> None:
    """Write a model, with its codec and tokenizer where it has them, into a folder that is there."""
    if model.codec is not None:
        (folder / CODEC).mkdir()
        write_imported(model.codec, folder / CODEC, lambda name: progress(f"codec {name}"))
    if model.tokenizer is not None:
        shutil.copyfile(model.tokenizer, folder / tokenizer_name(model.tokenizer))
    if model.adapter is not None:
        shutil.copyfile(model.adapter.path, folder / model.adapter.path.name)
    # Without the adapter, which cannot be taken out of a sum again.
    family = model.family
    parameters = AsParameters(family.table(model.config), model.tensors, family.abstract(model.config))
    writer.write(folder / PARAMETERS, parameters, MAX_BYTES, progress=progress)
    published = dataclasses.asdict(model.provenance)
    extra = published.pop("extra")
    if extra:
        writer.write(folder / EXTRA, InMemory(extra))
    published["config"] = dict(model.provenance.config)
    files.write_json(folder / PROVENANCE, published)
    description = {"kind": family.kind, "config": to_json(model.config)}
    files.write_json(folder / MODEL, description)
