"""Import and export: whole directories, tensor by tensor, so that memory never holds the model twice."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moshijax.config_json import to_json
from moshijax.errors import ConfigError
from moshijax.weights import lora, source, writer
from moshijax.weights.formats import huggingface, kyutai, mlx
from moshijax.weights.formats import huggingface_config as hf_config
from moshijax.weights.formats.lm_config import lm_config, loader_fields, published_config
from moshijax.weights.formats.mimi_config import mimi_config, published_mimi_config
from moshijax.weights.names import Both, View
from moshijax.weights.source import Source
from moshijax.weights.table import Leaves

FORMATS = ("kyutai", "kyutai-fused", "huggingface", "mlx")
#: An imported model lies in files of at most so many bytes.
SHARD_BYTES = 4 << 30
MIMI_FILE, MIMI_CONFIG = "mimi.safetensors", "mimi.json"
Progress = Callable[[str], None]


class _Held:
    """Arrays in memory, as `moshijax.weights.writer` takes them."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self._arrays = arrays
        self.shapes = {name: array.shape for name, array in arrays.items()}
        self.dtypes = {name: array.dtype for name, array in arrays.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]


def _ignore(name: str) -> None:
    pass


def _new_directory(path: Path) -> Path:
    """Where to write a directory that is then moved to `path`."""
    if path.exists():
        raise ConfigError(f"{path} exists; choose another path or remove it first")
    if not path.resolve().parent.is_dir():
        raise ConfigError(f"cannot write {path}: its folder does not exist; create it first")
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    return partial


def import_weights(
    src: str | Path, dst: str | Path, progress: Progress = _ignore, adapter: str | Path | None = None
) -> Source:
    """Copy a model into a directory of ours, which every command takes.

    A LoRA adapter, `adapter` or the one that the model's config names, is copied as it is; loading adds it.
    The directory holds our parameters with the types of the file, and what else is needed to write the same files
    again. A language model's codec (`codec/`) and tokenizer come along when they lie beside it.

    Raises:
        ConfigError: `dst` exists.
        DataError: as `moshijax.weights.source.open_source`; nothing is left behind.
    """
    found = source.open_source(src)
    if found.record.format == "run":
        raise ConfigError(f"{found.where} is a run already; every command takes it as it is")
    return write_imported(found if adapter is None else source.with_adapter(found, adapter), dst, progress)


def write_imported(found: Source, dst: str | Path, progress: Progress = _ignore) -> Source:
    """Write a model as an imported one.

    Raises:
        ConfigError: `dst` exists.
    """
    dst = Path(dst)
    partial = _new_directory(dst)
    try:
        _write_ours(found, partial, progress)
        partial.rename(dst)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return source.open_source(dst)


def _write_ours(found: Source, folder: Path, progress: Progress) -> None:
    if found.codec is not None:
        (folder / source.CODEC).mkdir()
        _write_ours(found.codec, folder / source.CODEC, lambda name: progress(f"codec {name}"))
    if found.tokenizer is not None:
        shutil.copyfile(found.tokenizer, folder / source.TOKENIZER)
    if found.adapter is not None:
        shutil.copyfile(found.adapter.path, folder / found.adapter.path.name)
    # Without the adapter: what is added cannot be taken away again.
    table, shapes = source.table_of(found.kind, found.config), source.abstract(found.kind, found.config)
    writer.write(folder / source.PARAMETERS, Leaves(table, found.tensors, shapes), SHARD_BYTES, progress=progress)
    record = dataclasses.asdict(found.record)
    extra = record.pop("extra")
    if extra:
        writer.write(folder / source.EXTRA, _Held(extra))
    record["config"] = dict(found.record.config)
    writer.write_text(folder / source.RECORD, json.dumps(record, indent=1) + "\n")
    description = {"kind": found.kind, "config": to_json(found.config)}
    writer.write_text(folder / source.DESCRIPTION, json.dumps(description, indent=2) + "\n")


def export_weights(
    found: Source,
    dst: str | Path,
    format: str,
    shard_bytes: int | None = None,
    progress: Progress = _ignore,
    merge: bool = False,
) -> list[Path]:
    """Write a model, with its codec and tokenizer where it has them, under published names.

    Args:
        format: one of `FORMATS`.
        shard_bytes: largest file; by default one file per model.
        merge: add the LoRA adapter to the weights instead of writing it beside them.

    Returns:
        The files.

    Raises:
        ConfigError: `dst` exists, or the format has no place for this model.
    """
    dst = Path(dst)
    if format not in FORMATS:
        raise ConfigError(f"format {format!r} must be one of {', '.join(FORMATS)}")
    if merge:
        found = _merged(found)
    if found.adapter is not None and not format.startswith("kyutai"):
        raise ConfigError(f"{found.where} has an adapter, for which {format} has no place; give --merge-adapter")
    partial = _new_directory(dst)
    try:
        write = _write_huggingface if format == "huggingface" else _write_kyutai
        write(found, partial, format, shard_bytes, progress)
        partial.rename(dst)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return sorted(dst.iterdir())


def _merged(found: Source) -> Source:
    """The model with its adapter in its weights."""
    if found.adapter is None:
        raise ConfigError(f"{found.where} has no adapter to merge; leave --merge-adapter out")
    config = {name: value for name, value in found.record.config.items() if not name.startswith("lora")}
    record = dataclasses.replace(found.record, config=config)
    return dataclasses.replace(found, tensors=found.stored, record=record, adapter=None)


def predicted_size(kind: str, config: Any, format: str) -> int:
    """Bytes of the one file that a model makes in a format, header included; nothing is allocated."""
    tensors: Any = source.shown(kind, config)
    metadata = None
    if format == "huggingface":
        groups = huggingface.lm_groups(config) if kind == "lm" else huggingface.mimi_groups(config)
        tensors, metadata = View(tensors, groups, reading=False), huggingface.METADATA
    elif kind == "lm" and format == "mlx":
        tensors = View(tensors, mlx.lm_groups(config), reading=False)
    elif format == "kyutai":
        tensors = kyutai.split(tensors, source.depth_weights(config) if kind == "lm" else 1)
    return writer.file_size(tensors, metadata)


def _write_kyutai(found: Source, folder: Path, format: str, shard_bytes: int | None, progress: Progress) -> None:
    if found.kind == "codec":
        _write_codec(found, folder / source.MODEL_FILE, folder / source.CONFIG_FILE, shard_bytes, progress, format)
        return
    fields = _lm_fields(found)
    file = folder / Path(fields.get("moshi_name", source.MODEL_FILE)).name
    if found.codec is not None:
        mimi = fields.setdefault("mimi_name", MIMI_FILE)
        own = fields.setdefault("mimi_config_name", MIMI_CONFIG)
        path = folder / Path(own).name
        _write_codec(found.codec, folder / Path(mimi).name, path, None, progress, format)
    if found.tokenizer is not None:
        shutil.copyfile(found.tokenizer, folder / Path(fields.setdefault("tokenizer_name", source.TOKENIZER)).name)
    if found.adapter is not None:
        _write_adapter(found, folder, progress)
        fields |= {name: value for name, value in found.record.config.items() if name.startswith("lora")}
    tensors = found.tensors
    extra = {name: array for name, array in found.record.extra.items() if not name.endswith(kyutai.SCALE)}
    if extra:
        tensors = Both(tensors, _Held(extra))
    if fields.get("quantize") and format == "mlx":
        raise ConfigError(
            f"{found.where} holds int8 weights, for which the MLX package has another form; import bf16 ones"
        )
    if fields.get("quantize"):
        tensors = kyutai.quantised(tensors, kyutai.linear_weights(tensors, found.record.extra))
    if format == "mlx":
        tensors = View(tensors, mlx.lm_groups(found.config), reading=False)
    if format == "kyutai":
        tensors = kyutai.split(tensors, source.depth_weights(found.config))
    writer.write(file, tensors, shard_bytes, progress=progress)
    writer.write_text(folder / source.CONFIG_FILE, json.dumps(fields, indent=2) + "\n")


def _write_adapter(found: Source, folder: Path, progress: Progress) -> None:
    """The file that an adapter came from, or a new one."""
    adapter = found.adapter
    if adapter.path is not None:
        shutil.copyfile(adapter.path, folder / adapter.path.name)
        return
    linear = {kyutai.stem_of(name) for name in kyutai.linear_maps(found.tensors)}
    bare = sorted(linear - set(adapter.pairs))
    if bare:
        raise ConfigError(
            f"{found.where} has updates of some linear maps only ({bare[0]} has none), the PyTorch package needs one "
            "for each; give --merge-adapter"
        )
    tensors = lora.split(adapter.tensors, source.depth_weights(found.config))
    writer.write(folder / source.ADAPTER, tensors, progress=progress)


def _write_huggingface(found: Source, folder: Path, format: str, shard_bytes: int | None, progress: Progress) -> None:
    stated = found.record.config if found.record.format == "huggingface" else {}
    if found.kind == "codec":
        fields = hf_config.published_mimi_config(found.config)
        if stated and hf_config.mimi_config(stated) == found.config:
            fields = stated
        tensors: Any = View(found.tensors, huggingface.mimi_groups(found.config), reading=False)
    else:
        if found.codec is None:
            raise ConfigError(f"the classes of Transformers hold the codec too, {found.where} has none; give --codec")
        fields, types = hf_config.published_lm_config(found.config, found.codec.config), found.config.temporal.dtype
        inner, prefix = hf_config.CODECS[fields["model_type"]]
        if (
            stated
            and hf_config.lm_config(stated).with_dtype(types, types) == found.config
            and hf_config.mimi_config(stated.get(inner, {})) == found.codec.config
        ):
            fields = stated
        tensors = Both(
            View(found.tensors, huggingface.lm_groups(found.config), reading=False),
            View(found.codec.tensors, huggingface.mimi_groups(found.codec.config, prefix), reading=False),
        )
    if found.tokenizer is not None:
        shutil.copyfile(found.tokenizer, folder / source.TOKENIZER)
    rate = (found.codec or found).config.sample_rate
    preprocessor = found.record.preprocessor or hf_config.published_preprocessor(
        fields["model_type"], rate, found.record.config.get("stt_config", {})
    )
    writer.write_text(folder / source.PREPROCESSOR, json.dumps(preprocessor, indent=2) + "\n")
    writer.write(folder / source.MODEL_FILE, tensors, shard_bytes, huggingface.METADATA, progress)
    writer.write_text(folder / source.CONFIG_FILE, json.dumps(fields, indent=2) + "\n")


def _write_codec(found: Source, file: Path, config: Path, shard_bytes, progress: Progress, format: str) -> None:
    tensors = kyutai.split(found.tensors) if format == "kyutai" else found.tensors
    writer.write(file, tensors, shard_bytes, progress=lambda name: progress(f"codec {name}"))
    stated = found.record.config
    fields = (
        stated if "seanet" in stated and mimi_config(stated) == found.config else published_mimi_config(found.config)
    )
    writer.write_text(config, json.dumps(fields, indent=2) + "\n")


def _lm_fields(found: Source) -> dict[str, Any]:
    """The config as it was where it still says the same, else a new one."""
    stated, types = found.record.config, found.config.temporal.dtype
    if "delays" in stated and lm_config(stated).with_dtype(types, types) == found.config:
        return dict(stated)
    if "delays" in stated:
        kept = loader_fields(stated)
    else:
        kept = hf_config.loader_fields(stated, found.record.preprocessor)
    return {**published_config(found.config), **kept}
