"""The family of language models over a grid of text and audio (Moshi and its siblings).

Tested in `tests/weights/test_lm.py`, `tests/weights/test_transfer.py` and `tests/weights/formats`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from moshijax import files, lm
from moshijax.errors import ConfigError, DataError
from moshijax.lm.transforms import TRANSFORMS
from moshijax.tokens import EOS, PAD
from moshijax.weights import lora, writer
from moshijax.weights.compare import Part, compare_numbers
from moshijax.weights.families.codec import CODEC, is_codec
from moshijax.weights.families.family import DTYPES, Family
from moshijax.weights.formats import backbone, huggingface, huggingface_config, kyutai, llama, mlx
from moshijax.weights.formats.lm_config import LEGACY_7B, PERSONAPLEX, lm_config, loader_fields, published_config
from moshijax.weights.formats.lm_table import depth_weights, lm_table
from moshijax.weights.model import OpenedModel, Provenance
from moshijax.weights.names import Renamed, theirs
from moshijax.weights.published import (
    ADAPTER,
    BACKBONE_TOKENIZER,
    CONFIG_FILE,
    MODEL_FILE,
    PREPROCESSOR,
    PublishedFiles,
    tokenizer_name,
)
from moshijax.weights.release import released
from moshijax.weights.safetensors import check_names_and_shapes, open_tensors
from moshijax.weights.table import AsPublished, Table
from moshijax.weights.tensors import Combined, InMemory, Tensors
from moshijax.weights.writer import Progress

#: The published module has this projection even without a depth transformer.
UNUSED = "depformer_in.0.weight"
#: Names of a codec and of its config that are written beside a model that does not name them.
MIMI_FILE, MIMI_CONFIG = "mimi.safetensors", "mimi.json"


class LanguageModelFamily(Family):
    """Language models over the token grid: Moshi and its relatives."""

    kind: ClassVar[str] = "lm"
    title: ClassVar[str] = "a language model"
    config_class: ClassVar[type] = lm.LMConfig
    comes_with_codec: ClassVar[bool] = True
    transforms: ClassVar[Mapping[str, Callable[..., Any]]] = TRANSFORMS
    record_kind: ClassVar[str] = "lm"
    record_arrays: ClassVar[tuple[str, ...]] = ("codes", "text_logits", "text_mask")

    # Parameters

    def abstract(self, config: lm.LMConfig, stacked: bool = False) -> dict[str, Any]:
        return lm.abstract(config, stacked=stacked)

    def table(self, config: lm.LMConfig) -> Table:
        return lm_table(config)

    def parts(self, config: lm.LMConfig) -> dict[str, int]:
        return {
            "layers": config.temporal.num_layers,
            "depth layers": 0 if config.depth is None else config.depth.transformer.num_layers,
            "audio rows": config.layout.n_q,
            "extra heads": config.extra_heads,
        }

    def with_dtype(self, config: lm.LMConfig, dtype: str) -> lm.LMConfig:
        config = config.with_dtype(dtype, dtype)
        return replace(config, lora=config.lora and replace(config.lora, param_dtype=None))

    def dtypes_settled(self, config: lm.LMConfig, dtypes: Mapping[str, np.dtype]) -> lm.LMConfig:
        """Return the config with the dtypes that hold every value of the published tensors.

        Conditioners are float32 whatever the others are; where those differ, float32 holds them all.
        """
        found = {dtype.name for name, dtype in dtypes.items() if not name.startswith("condition_provider.")}
        dtype = found.pop() if len(found) == 1 else "float32"
        return config.with_dtype(dtype, dtype)

    def adjusted(self, params: dict[str, Any], provenance: Provenance) -> dict[str, Any]:
        """Return the parameters of a translation model in which the end of the text does not end the translation.

        It embeds like a pause. Other models stay as they are.
        """
        if provenance.config.get("model_type") == "hibiki":
            table = params["text_embedding"]["table"]
            if isinstance(table, np.ndarray):
                table[0, EOS] = table[0, PAD]
            else:
                params["text_embedding"]["table"] = table.at[0, EOS].set(table[0, PAD])
        return params

    # Runs

    def open_run(self, config: lm.LMConfig, params: dict[str, Any], where: Path, tokenizer: Path | None) -> OpenedModel:
        """Open the parameters of a run.

        Low-rank updates of its own (`config.lora`) become the adapter of a model without them.
        """
        model = super().open_run(replace(config, lora=None), params, where, tokenizer)
        if config.lora is None:
            return model
        rank, scaling = config.lora.rank, config.lora.scaling
        stated = {"lora": True, "lora_rank": rank, "lora_scaling": scaling, "lora_name": ADAPTER}
        pairs = {name: entry for name, entry in lm_table(config).items() if name not in model.tensors.shapes}
        tensors = AsPublished(pairs, InMemory(flatten_dict(params, sep="/")))
        model = replace(model, provenance=Provenance("run", stated))
        return lora.attached(model, lora.Adapter(tensors, scaling, where))

    # Published files

    def claims(self, published: PublishedFiles) -> bool:
        """Return whether the files are a language model's.

        They are if a config is there that is not a codec's or, without one, a lone file of other tensors than a
        codec's.
        """
        if published.of_text_model:
            return True
        if published.of_transformers:
            return published.fields["model_type"] in huggingface_config.CODECS
        if published.is_directory:
            return bool(published.fields) and "seanet" not in published.fields
        return not is_codec(published.tensors())

    def open_published(self, published: PublishedFiles, config: Any = None) -> OpenedModel:
        if published.of_text_model:
            return self._of_text_model(published)
        if published.of_transformers:
            return self._of_transformers(published)
        if not published.is_directory:
            return self._file(published.path, published.fields or _legacy_fields(published.tensors()))
        file = published.folder / Path(str(published.fields.get("moshi_name", MODEL_FILE))).name
        mimi = CODEC.beside(published) if published.named("mimi_name") else None
        return replace(self._file(file, published.fields), codec=mimi, tokenizer=published.tokenizer)

    def _file(self, path: Path, fields: Mapping[str, Any]) -> OpenedModel:
        config, file = lm_config(fields), open_tensors(path)
        self.check_parts(config, file, path)
        if mlx.is_file(file):
            groups = mlx.lm_groups(config)
            file = mlx.dequantised(file, theirs(groups), str(path))
            check_names_and_shapes(path, file.shapes, theirs(groups))
            return self.opened(config, Renamed(file, groups, reading=True), Provenance("mlx", fields), path)
        fused = kyutai.fused(file, str(path))
        if fields.get("model_type") == "personaplex" and 2 * kyutai.depth_steps(fused) == config.layout.dep_q:
            fused = kyutai.widened(fused)
        scaled = kyutai.scales(fused)
        if bool(fields.get("quantize")) != bool(scaled):
            raise ConfigError(
                f"{path} has {len(scaled)} int8 weights with scales, and its config.json says quantize="
                f"{fields.get('quantize', False)}; use file and config of one model"
            )
        extra = {name: fused[name] for name in scaled.values()}
        if config.depth is None and not fields.get("depformer_multi_linear") and UNUSED in fused.shapes:
            extra[UNUSED] = fused[UNUSED]
        if fields.get("lora") and scaled:
            raise ConfigError(f"{path}: int8 weights with an adapter are not supported; use the bf16 weights")
        provenance = Provenance(kyutai.spelling(file), fields, extra=extra)
        model = self.opened(config, kyutai.dequantised(fused, str(path)), provenance, path)
        adapter = path.parent / Path(str(fields.get("lora_name") or ADAPTER)).name
        return self.with_adapter(model, adapter) if fields.get("lora") else model

    def _of_text_model(self, published: PublishedFiles) -> OpenedModel:
        """Open a Llama or a Qwen2, for a temporal transformer that begins as one."""
        fields, file, path = published.fields, published.tensors(), published.file
        config, groups = backbone.lm_config(fields), backbone.lm_groups(fields)
        self.check_parts(config, file, path)
        wanted = theirs(groups)
        # Old files hold buffers, and the table of a tied model a second time.
        extra = [name for name in file if name.endswith(llama.BUFFER) or name == "lm_head.weight"]
        extra = [name for name in extra if name not in wanted]
        check_names_and_shapes(path, file.shapes, wanted, extra)
        odd = [name for name in wanted if file.dtypes[name].name not in DTYPES]
        if odd:
            kinds = ", ".join(DTYPES)
            raise DataError(f"{path}: {odd[0]} is {file.dtypes[odd[0]]}, must be one of {kinds}; convert it")
        config = self.dtypes_settled(config, {name: file.dtypes[name] for name in wanted})
        model = self.of_parameters(config, Renamed(file, groups, reading=True), Provenance("huggingface"), path)
        tokenizer = published.folder / BACKBONE_TOKENIZER
        return replace(model, tokenizer=tokenizer if tokenizer.is_file() else None)

    def _of_transformers(self, published: PublishedFiles) -> OpenedModel:
        """Open a model of Transformers, with the codec that is part of it."""
        path, fields, file, preprocessor = published.file, published.fields, published.tensors(), published.preprocessor
        config = huggingface_config.lm_config(fields)
        inner, prefix = huggingface_config.CODECS[fields["model_type"]]
        codec_config = huggingface_config.mimi_config(fields.get(inner, {}))
        huggingface_config.check_preprocessor(preprocessor, codec_config)
        self.check_parts(config, file, path)
        CODEC.check_parts(codec_config, file, path)
        groups, codec_groups = huggingface.lm_groups(config), huggingface.mimi_groups(codec_config, prefix)
        check_names_and_shapes(path, file.shapes, {**theirs(groups), **theirs(codec_groups)})
        codec_provenance = Provenance("huggingface", fields.get(inner, {}))
        mimi = CODEC.opened(codec_config, Renamed(file, codec_groups, reading=True), codec_provenance, path)
        provenance = Provenance("huggingface", fields, preprocessor=preprocessor)
        model = self.opened(config, Renamed(file, groups, reading=True), provenance, path)
        return replace(model, codec=mimi, tokenizer=published.tokenizer)

    def write_published(
        self, model: OpenedModel, folder: Path, format: str, max_bytes: int | None, progress: Progress
    ) -> None:
        if model.adapter is not None and not format.startswith("kyutai"):
            raise ConfigError(f"{model.where} has an adapter, for which {format} has no place; give --merge-adapter")
        write = self._write_huggingface if format == "huggingface" else self._write_kyutai
        write(model, folder, format, max_bytes, progress)

    def _write_kyutai(
        self, model: OpenedModel, folder: Path, format: str, max_bytes: int | None, progress: Progress
    ) -> None:
        fields = _published_fields(model)
        file = folder / Path(fields.get("moshi_name", MODEL_FILE)).name
        if model.codec is not None:
            mimi = folder / Path(fields.setdefault("mimi_name", MIMI_FILE)).name
            stated_in = folder / Path(fields.setdefault("mimi_config_name", MIMI_CONFIG)).name
            CODEC.write_file(model.codec, mimi, stated_in, format, None, progress)
        if model.tokenizer is not None:
            name = fields.setdefault("tokenizer_name", tokenizer_name(model.tokenizer))
            shutil.copyfile(model.tokenizer, folder / Path(name).name)
        if model.adapter is not None:
            _write_adapter(model, folder, progress)
            fields |= {name: value for name, value in model.provenance.config.items() if name.startswith("lora")}
        tensors, held = model.tensors, model.provenance.extra
        extra = {name: array for name, array in held.items() if not name.endswith(kyutai.SCALE)}
        if extra:
            tensors = Combined(tensors, InMemory(extra))
        if fields.get("quantize") and format == "mlx":
            raise ConfigError(
                f"{model.where} holds int8 weights, for which the MLX package has another form; import bf16 ones"
            )
        if fields.get("quantize"):
            tensors = kyutai.quantised(tensors, kyutai.linear_weights(tensors, held))
        writer.write(file, self.spelled(tensors, model.config, format), max_bytes, progress=progress)
        files.write_json(folder / CONFIG_FILE, fields)

    def spelled(self, tensors: Tensors, config: lm.LMConfig, format: str) -> Tensors:
        """Return the published tensors under the names of a format of language models alone."""
        if format == "mlx":
            return Renamed(tensors, mlx.lm_groups(config), reading=False)
        return kyutai.split(tensors, depth_weights(config)) if format == "kyutai" else tensors

    def _write_huggingface(
        self, model: OpenedModel, folder: Path, format: str, max_bytes: int | None, progress: Progress
    ) -> None:
        if model.codec is None:
            raise ConfigError(f"the classes of Transformers hold the codec too, {model.where} has none; give --codec")
        stated = model.provenance.config if model.provenance.format == "huggingface" else {}
        fields = huggingface_config.published_lm_config(model.config, model.codec.config)
        inner, prefix = huggingface_config.CODECS[fields["model_type"]]
        dtype = model.config.temporal.dtype
        if (
            stated
            and huggingface_config.lm_config(stated).with_dtype(dtype, dtype) == model.config
            and huggingface_config.mimi_config(stated.get(inner, {})) == model.codec.config
        ):
            fields = stated
        tensors = Combined(
            Renamed(model.tensors, huggingface.lm_groups(model.config), reading=False),
            Renamed(model.codec.tensors, huggingface.mimi_groups(model.codec.config, prefix), reading=False),
        )
        if model.tokenizer is not None:
            shutil.copyfile(model.tokenizer, folder / tokenizer_name(model.tokenizer))
        preprocessor = model.provenance.preprocessor or huggingface_config.published_preprocessor(
            fields["model_type"], model.codec.config.sample_rate, model.provenance.config.get("stt_config", {})
        )
        files.write_json(folder / PREPROCESSOR, preprocessor)
        writer.write(folder / MODEL_FILE, tensors, max_bytes, huggingface.METADATA, progress)
        files.write_json(folder / CONFIG_FILE, fields)

    # Adapters and the released form

    def with_adapter(self, model: OpenedModel, path: Path) -> OpenedModel:
        return lora.with_adapter(model, path)

    def unmerged(self, model: OpenedModel) -> OpenedModel:
        return lora.unmerged(model)

    def released(self, model: OpenedModel) -> OpenedModel:
        return released(model)

    # Comparison with reference numbers

    def compare(self, config: lm.LMConfig, params: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> list[Part]:
        codes = arrays["codes"]
        if codes.shape[1] != config.layout.num_streams:
            raise DataError(
                f"the record has {codes.shape[1]} rows, the model {config.layout.num_streams}; it is of another model"
            )
        output = jax.jit(lambda params, codes: lm.forward(config, params, codes))(params, codes)
        parts = [compare_numbers("text logits", output.text_logits, arrays["text_logits"], arrays["text_mask"])]
        for k in range(config.layout.dep_q):
            want, mask = arrays["logits"][:, k], arrays["mask"][:, k]
            parts.append(compare_numbers(f"depth step {k} logits", output.logits[:, k], want, mask))
        return parts


LANGUAGE_MODEL = LanguageModelFamily()


def _legacy_fields(tensors: Tensors) -> dict[str, Any]:
    """The config of a file without one: Moshi 7B as it was first released, or with the depth steps of PersonaPlex."""
    steps = kyutai.depth_steps(tensors)
    return {**LEGACY_7B, "dep_q": PERSONAPLEX["dep_q"]} if steps == PERSONAPLEX["dep_q"] else dict(LEGACY_7B)


def _published_fields(model: OpenedModel) -> dict[str, Any]:
    """The config as it was where it still says the same, else a new one."""
    stated, dtype = model.provenance.config, model.config.temporal.dtype
    if "delays" in stated and lm_config(stated).with_dtype(dtype, dtype) == model.config:
        return dict(stated)
    if "delays" in stated:
        kept = loader_fields(stated)
    else:
        kept = huggingface_config.loader_fields(stated, model.provenance.preprocessor)
    return {**published_config(model.config), **kept}


def _write_adapter(model: OpenedModel, folder: Path, progress: Progress) -> None:
    """Copy the file that an adapter came from, or write a new one."""
    adapter = model.adapter
    if adapter.path is not None:
        shutil.copyfile(adapter.path, folder / adapter.path.name)
        return
    linear = {kyutai.stem_of(name) for name in kyutai.linear_maps(model.tensors)}
    bare = sorted(linear - set(adapter.pairs))
    if bare:
        raise ConfigError(
            f"{model.where} has updates of some linear maps only ({bare[0]} has none), the PyTorch package needs one "
            "for each; give --merge-adapter"
        )
    writer.write(folder / ADAPTER, lora.split(adapter.tensors, depth_weights(model.config)), progress=progress)
