"""Import and export: whole directories, tensor by tensor, so that memory never holds the model twice."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from moshijax import files, lock
from moshijax.errors import ConfigError
from moshijax.weights import imported
from moshijax.weights.model import OpenedModel
from moshijax.weights.opening import open_model
from moshijax.weights.writer import Progress

FORMATS = ("kyutai", "kyutai-fused", "huggingface", "mlx")


def _ignore(name: str) -> None:
    pass


def import_weights(
    src: str | Path, dst: str | Path, progress: Progress = _ignore, adapter: str | Path | None = None
) -> OpenedModel:
    """Copy a model into a directory of ours, which every command takes.

    The directory holds our parameters with the dtypes of the file, and what else is needed to write the same files
    again. A language model's codec (`codec/`) and tokenizer come along where they lie beside it.

    Args:
      src: published files.
      dst: the new directory.
      progress: called with every name before it is written.
      adapter: a LoRA adapter; default: the one that the model's config names. It is copied as it is; loading adds it.

    Raises:
      ConfigError: `dst` exists or cannot be written, `src` is a run, or the model takes no adapter.
      DataError: as `moshijax.weights.opening.open_model`; nothing is left behind.
    """
    model = open_model(src)
    if model.provenance.format == "run":
        raise ConfigError(f"{model.where} is a run already; every command takes it as it is")
    if adapter is not None:
        model = model.family.with_adapter(model, Path(adapter))
    return write_imported(model, dst, progress)


def write_imported(model: OpenedModel, dst: str | Path, progress: Progress = _ignore) -> OpenedModel:
    """Write a model as an imported one, and open it.

    Raises:
      ConfigError: `dst` exists.
    """
    files.check_folder(dst)
    with lock.beside(Path(dst)), files.staged_directory(Path(dst)) as folder:
        imported.write_imported(model, folder, progress)
    return open_model(dst)


def export_weights(
    model: OpenedModel,
    dst: str | Path,
    format: str,
    max_bytes: int | None = None,
    progress: Progress = _ignore,
    merge: bool = False,
) -> list[Path]:
    """Write a model, with its codec and tokenizer where it has them, under published names.

    Args:
      model: what to write.
      dst: the new directory.
      format: one of `FORMATS`.
      max_bytes: of the tensors in one file; default: one file per model.
      progress: called with every name before it is written.
      merge: add the LoRA adapter to the weights instead of writing it beside them.

    Returns:
      The files.

    Raises:
      ConfigError: `dst` exists, or the format has no place for this model.
    """
    if format not in FORMATS:
        raise ConfigError(f"format {format!r} must be one of {', '.join(FORMATS)}")
    if merge:
        model = _merged(model)
    files.check_folder(dst)
    with lock.beside(Path(dst)), files.staged_directory(Path(dst)) as folder:
        model.family.write_published(model, folder, format, max_bytes, progress)
    return sorted(Path(dst).iterdir())


def _merged(model: OpenedModel) -> OpenedModel:
    """The model with its adapter in its weights."""
    if model.adapter is None:
        raise ConfigError(f"{model.where} has no adapter to merge; omit --merge-adapter")
    config = {name: value for name, value in model.provenance.config.items() if not name.startswith("lora")}
    provenance = dataclasses.replace(model.provenance, config=config)
    return dataclasses.replace(model, tensors=model.stored, provenance=provenance, adapter=None)
