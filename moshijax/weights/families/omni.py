"""The family of LLaMA-Omni. Tested in `tests/train/tasks/test_omni.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from moshijax import files
from moshijax.errors import ConfigError, DataError
from moshijax.nn import lora
from moshijax.omni.config import OmniConfig, abstract
from moshijax.weights import writer
from moshijax.weights.compare import Part
from moshijax.weights.families.family import Family
from moshijax.weights.formats import llama, llama_omni
from moshijax.weights.formats import whisper as whisper_format
from moshijax.weights.model import OpenedModel, Provenance
from moshijax.weights.names import Renamed, theirs
from moshijax.weights.published import CONFIG_FILE, MODEL_FILE, PublishedFiles
from moshijax.weights.safetensors import check_names_and_shapes
from moshijax.weights.table import Table, same
from moshijax.weights.writer import Progress


class OmniFamily(Family):
    """LLaMA-Omni: encoder, adapter, text model and speech decoder."""

    kind: ClassVar[str] = "omni"
    title: ClassVar[str] = "a LLaMA-Omni"
    unfit: ClassVar[str] = "name one, or export this one with --vocoder"
    config_class: ClassVar[type] = OmniConfig
    record_kind: ClassVar[str] = "llama_omni"
    record_arrays: ClassVar[tuple[str, ...]] = ()

    # Parameters

    def abstract(self, config: OmniConfig, stacked: bool = False) -> dict[str, Any]:
        return abstract(config, stacked)

    def table(self, config: OmniConfig) -> Table:
        return same(abstract(config, False))

    def parts(self, config: OmniConfig) -> dict[str, int]:
        return {f"{part} layers": getattr(config, part).stack.num_layers for part in ("encoder", "text", "decoder")}

    def with_dtype(self, config: OmniConfig, dtype: str) -> OmniConfig:
        return config.with_dtype(dtype, dtype)

    def dtypes_settled(self, config: OmniConfig, dtypes: Mapping[str, np.dtype]) -> OmniConfig:
        found = {dtype.name for dtype in dtypes.values()}
        dtype = found.pop() if len(found) == 1 else "float32"
        return config.with_dtype(dtype, dtype)

    # Runs

    def open_run(self, config: OmniConfig, params: dict[str, Any], where: Path, tokenizer: Path | None) -> OpenedModel:
        """Open the parameters of a run; low-rank updates of its own are added to the weights."""
        if config.text.lora is not None:
            params = {**params, "text": lora.merged(params["text"], config.text.lora)}
            config = replace(config, text=replace(config.text, lora=None))
        return super().open_run(config, params, where, tokenizer)

    # Published files

    def claims(self, published: PublishedFiles) -> bool:
        return published.fields.get("model_type") == llama_omni.MODEL_TYPE

    def open_published(self, published: PublishedFiles, config: OmniConfig | None = None) -> OpenedModel:
        file = published.tensors()
        encoder = whisper_format.config_of_shapes(file.shapes, "openai", llama_omni.ENCODER, str(file.path))
        config = llama_omni.omni_config(published.fields, encoder)
        self.check_parts(config, file, published.file)
        buffers = [name for name in file if name.endswith(llama.BUFFER)]
        check_names_and_shapes(published.file, file.shapes, theirs(llama_omni.omni_groups(config)), buffers)
        tensors = Renamed(file, llama_omni.omni_groups(config), reading=True)
        return self.opened(config, tensors, Provenance("huggingface", published.fields), published.file)

    def write_published(
        self, model: OpenedModel, folder: Path, format: str, max_bytes: int | None, progress: Progress
    ) -> None:
        if format != "huggingface":
            raise ConfigError(f"{model.where} is {self.title}, which has no format {format}; give --format huggingface")
        tensors = Renamed(model.tensors, llama_omni.omni_groups(model.config), reading=False)
        writer.write(folder / MODEL_FILE, tensors, max_bytes, {"format": "pt"}, progress)
        files.write_json(folder / CONFIG_FILE, _published_fields(model))

    # Comparison with reference numbers

    def compare(self, config: OmniConfig, params: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> list[Part]:
        raise DataError(f"there are no records of reference numbers of {self.title} as a whole, only of its parts")


OMNI = OmniFamily()


def _published_fields(model: OpenedModel) -> dict[str, Any]:
    """The config as it was where it still says the same, else a new one."""
    stated, dtype = model.provenance.config, model.config.text.stack.dtype
    if stated and llama_omni.omni_config(stated, model.config.encoder).with_dtype(dtype, dtype) == model.config:
        return dict(stated)
    return dict(llama_omni.published_omni_config(model.config))
