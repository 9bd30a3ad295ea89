"""Published files: a weight file, or a directory of them with a `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moshijax import files
from moshijax.annotations import shown
from moshijax.errors import ConfigError, DataError
from moshijax.weights.formats import huggingface_config, llama, llama_omni
from moshijax.weights.formats.lm_config import MODEL_TYPES, completed
from moshijax.weights.safetensors import INDEX_SUFFIX, ShardedFile, TensorFile, open_tensors

MODEL_FILE, CONFIG_FILE, PREPROCESSOR = "model.safetensors", "config.json", "preprocessor_config.json"
TOKENIZER, ADAPTER = "tokenizer.model", "lora.safetensors"
#: Of a Llama or a Qwen2, and of what began as one.
BACKBONE_TOKENIZER = "tokenizer.json"


def tokenizer_in(folder: str | Path) -> Path | None:
    """Return the file of the tokenizer in the folder of a run or of imported weights, or None where there is none."""
    places = (Path(folder) / name for name in (TOKENIZER, BACKBONE_TOKENIZER))
    return next((place for place in places if place.is_file()), None)


def tokenizer_name(file: Path) -> str:
    """Return by which name a folder holds a tokenizer, from any name of its file."""
    return BACKBONE_TOKENIZER if file.suffix == ".json" else TOKENIZER


@dataclass(frozen=True)
class PublishedFiles:
    """What lies at a path.

    Attributes:
      path: a directory, a weight file, or the index of several.
      fields: `config.json` beside the weights, completed where a release leaves out what its package knows; {} without.
    """

    path: Path
    fields: Mapping[str, Any]

    @classmethod
    def at(cls, path: Path) -> PublishedFiles:
        """Read the `config.json` at a path.

        Raises:
          DataError: it is not the config of a model.
          ConfigError: it is of a model of another kind, or names a file as no file can be called.
        """
        file = (path if path.is_dir() else path.parent) / CONFIG_FILE
        fields = completed(read_json(file)) if file.is_file() else {}
        _check_class(fields, file)
        for name, value in fields.items():
            if name.endswith("_name") and isinstance(value, str):
                files.check_file_name(value, f"{file}: {name}")
        return cls(path, fields)

    @property
    def is_directory(self) -> bool:
        """Whether the path is a directory."""
        return self.path.is_dir()

    @property
    def folder(self) -> Path:
        """The directory, or that of the file."""
        return self.path if self.is_directory else self.path.parent

    @property
    def of_transformers(self) -> bool:
        """Whether the config is of a class of Hugging Face Transformers."""
        return huggingface_config.is_config(self.fields)

    @property
    def of_text_model(self) -> bool:
        """Whether the config is of a text model of Transformers."""
        return self.fields.get("model_type") in tuple(llama.ARCHITECTURES)  # which compares lists too

    @property
    def file(self) -> Path:
        """The weight file: the one that was named, or `model.safetensors` in the directory."""
        return self.folder / MODEL_FILE if self.is_directory else self.path

    def tensors(self) -> TensorFile | ShardedFile:
        """Open `file`.

        Raises:
          DataError: it is missing or damaged.
        """
        return open_tensors(self.file)

    def named(self, field: str) -> Path | None:
        """Return the file that a field of the config names, or None where there is none.

        Names may be addresses elsewhere; what counts is a file of the same name here.
        """
        name = self.fields.get(field)
        file = self.folder / Path(name).name if isinstance(name, str) else None
        return file if file is not None and file.is_file() else None

    @property
    def tokenizer(self) -> Path | None:
        """The SentencePiece model that the config names, or `tokenizer.model`, where it is there."""
        if isinstance(self.fields.get("tokenizer_name"), str):
            return self.named("tokenizer_name")
        file = self.folder / TOKENIZER
        return file if file.is_file() else None

    @property
    def preprocessor(self) -> dict[str, Any]:
        """`preprocessor_config.json` of Transformers, {} without."""
        file = self.folder / PREPROCESSOR
        return read_json(file) if file.is_file() else {}


def _check_class(fields: Mapping[str, Any], file: Path) -> None:
    """Refuse the config of a class that is not read, such as a CSM, an EnCodec or a DAC, by the name of the class."""
    classes, kind = fields.get("architectures"), fields.get("model_type")
    classes_of = {
        **huggingface_config.ARCHITECTURES,
        **llama.ARCHITECTURES,
        llama_omni.MODEL_TYPE: llama_omni.ARCHITECTURE,
    }
    known, ours = (*MODEL_TYPES, *classes_of), classes_of.values()
    named = [name for name in classes if isinstance(name, str)] if isinstance(classes, list) else []
    if (isinstance(kind, str) and kind not in known) or (named and not set(named) & set(ours)):
        what = f"{shown(named[0])}, model_type {shown(kind)}" if named else f"model_type {shown(kind)}"
        raise ConfigError(
            f"{file} is of {what}, which is not read: must be one of {', '.join(dict.fromkeys(known))}; use the files "
            "of such a model"
        )


def has_tensors(file: Path) -> bool:
    """Return whether a weight file is there, or the index of several that stand for it."""
    return file.exists() or file.with_name(file.name.removesuffix(".safetensors") + INDEX_SUFFIX).exists()


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
      DataError: it cannot be read, or is something else.
    """
    found = files.read_json(path)
    if not isinstance(found, dict):
        raise DataError(f"{path} is not the config of a model (a JSON object); fetch it again")
    return found
