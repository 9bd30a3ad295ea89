"""The family of neural codecs (Mimi). Tested in `tests/weights/test_mimi.py` and `tests/weights/test_transfer.py`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import flax.linen as nn
import jax
import numpy as np

from moshijax import codec, files
from moshijax.codec.configs import MIMI
from moshijax.codec.training import codec_variables
from moshijax.errors import DataError
from moshijax.weights import writer
from moshijax.weights.compare import Part, compare_ids, compare_numbers
from moshijax.weights.families.family import Family
from moshijax.weights.formats import huggingface, huggingface_config, kyutai
from moshijax.weights.formats.mimi_config import mimi_config, published_mimi_config
from moshijax.weights.formats.mimi_table import mimi_table
from moshijax.weights.model import OpenedModel, Provenance
from moshijax.weights.names import Renamed, theirs
from moshijax.weights.published import CONFIG_FILE, MODEL_FILE, PREPROCESSOR, PublishedFiles, has_tensors, read_json
from moshijax.weights.safetensors import check_names_and_shapes, open_tensors
from moshijax.weights.table import Table
from moshijax.weights.tensors import Tensors
from moshijax.weights.writer import Progress


class CodecFamily(Family):
    """Codecs: Mimi and configs of the same architecture."""

    kind: ClassVar[str] = "codec"
    title: ClassVar[str] = "a codec"
    config_class: ClassVar[type] = codec.MimiConfig
    record_kind: ClassVar[str] = "mimi"
    record_arrays: ClassVar[tuple[str, ...]] = ("waveform", "latent", "codes", "decoded")

    # Parameters

    def abstract(self, config: codec.MimiConfig, stacked: bool = False) -> dict[str, Any]:
        return jax.eval_shape(lambda key: nn.meta.unbox(codec.init(config, key)), jax.random.key(0))

    def table(self, config: codec.MimiConfig) -> Table:
        return mimi_table(config)

    def parts(self, config: codec.MimiConfig) -> dict[str, int]:
        return {
            "layers": config.transformer.num_layers,
            "codebooks": config.num_codebooks,
            "ratios": len(config.seanet.ratios),
            "residual layers": config.seanet.n_residual_layers,
        }

    # Runs

    def from_training(self, params: Any, model_state: Any) -> dict[str, Any]:
        return codec_variables({"params": params, "codebooks": model_state})

    def to_training(self, params: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        return params["params"], params["codebooks"]

    # Published files

    def claims(self, published: PublishedFiles) -> bool:
        """Return whether the files are a codec's.

        They are if a codec's own config or tensors are there, or the config of a language model that names its codec.
        """
        if published.of_transformers:
            return published.fields["model_type"] == "mimi"
        if not published.is_directory:
            return is_codec(published.tensors())
        if "seanet" in published.fields or isinstance(published.fields.get("mimi_name"), str):
            return True
        return is_codec(published.tensors()) if has_tensors(published.file) else not published.fields

    def open_published(self, published: PublishedFiles, config: codec.MimiConfig | None = None) -> OpenedModel:
        if published.of_transformers:
            return self._of_transformers(published, published.fields)
        if not published.is_directory and of_transformers(published.tensors()):
            return self._of_transformers(published, {"model_type": "mimi"})
        if "seanet" in published.fields:
            config = config or mimi_config(published.fields, str(published.folder / CONFIG_FILE))
            return self._file(published.file, config, published.fields)
        name = published.fields.get("mimi_name")
        if isinstance(name, str) and (published.is_directory or name == published.path.name):
            return self.beside(published, config)
        return self._file(published.file, config or MIMI, {})

    def beside(self, published: PublishedFiles, config: codec.MimiConfig | None = None) -> OpenedModel:
        """Open the codec that a language model's config names, with the config that it names for it."""
        name = published.fields.get("mimi_config_name")
        stated_in = published.folder / Path(name).name if isinstance(name, str) else None
        fields = {} if stated_in is None else read_json(stated_in)
        if config is None:
            config = mimi_config(fields, str(stated_in)) if fields else MIMI
        return self._file(published.folder / Path(published.fields["mimi_name"]).name, config, fields)

    def _file(self, path: Path, config: codec.MimiConfig, fields: Mapping[str, Any]) -> OpenedModel:
        file = open_tensors(path)
        return self.opened(config, kyutai.fused(file, str(path)), Provenance(kyutai.spelling(file), fields), path)

    def _of_transformers(self, published: PublishedFiles, fields: Mapping[str, Any]) -> OpenedModel:
        file, preprocessor = published.tensors(), published.preprocessor
        config = huggingface_config.mimi_config(fields)
        huggingface_config.check_preprocessor(preprocessor, config)
        self.check_parts(config, file, published.file)
        groups = huggingface.mimi_groups(config)
        check_names_and_shapes(published.file, file.shapes, theirs(groups))
        provenance = Provenance("huggingface", fields, preprocessor=preprocessor)
        return self.opened(config, Renamed(file, groups, reading=True), provenance, published.file)

    def write_published(
        self, model: OpenedModel, folder: Path, format: str, max_bytes: int | None, progress: Progress
    ) -> None:
        file, stated_in = folder / MODEL_FILE, folder / CONFIG_FILE
        if format != "huggingface":
            self.write_file(model, file, stated_in, format, max_bytes, progress)
            return
        stated = model.provenance.config if model.provenance.format == "huggingface" else {}
        fields = huggingface_config.published_mimi_config(model.config)
        if stated and huggingface_config.mimi_config(stated) == model.config:
            fields = stated
        preprocessor = model.provenance.preprocessor or huggingface_config.published_preprocessor(
            fields["model_type"], model.config.sample_rate, {}
        )
        files.write_json(folder / PREPROCESSOR, preprocessor)
        tensors = self.spelled(model.tensors, model.config, format)
        writer.write(file, tensors, max_bytes, huggingface.METADATA, progress)
        files.write_json(stated_in, fields)

    def write_file(
        self, model: OpenedModel, file: Path, stated_in: Path, format: str, max_bytes: int | None, progress: Progress
    ) -> None:
        """Write the tensors and the config of a codec into two files, with the names of the PyTorch package."""
        tensors = self.spelled(model.tensors, model.config, format)
        writer.write(file, tensors, max_bytes, progress=lambda name: progress(f"codec {name}"))
        fields = model.provenance.config
        if "seanet" not in fields or mimi_config(fields) != model.config:
            fields = published_mimi_config(model.config)
        files.write_json(stated_in, fields)

    def spelled(self, tensors: Tensors, config: codec.MimiConfig, format: str) -> Tensors:
        """Return the published tensors under the names of a format; the MLX package has those of the released file."""
        if format == "huggingface":
            return Renamed(tensors, huggingface.mimi_groups(config), reading=False)
        return kyutai.split(tensors) if format == "kyutai" else tensors

    # Comparison with reference numbers

    def compare(self, config: codec.MimiConfig, params: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> list[Part]:
        waveform, codes = arrays["waveform"], arrays["codes"]
        if codes.shape[1] > config.num_codebooks or codes.max() >= config.bins:
            raise DataError(
                f"the record has {codes.shape[1]} codebooks with ids to {codes.max()}, the codec "
                f"{config.num_codebooks} of {config.bins}; it is of another model"
            )
        found = codec.encode(config, params, waveform, num_codebooks=codes.shape[1])
        return [
            compare_numbers("codec latents", codec.encode_latent(config, params, waveform), arrays["latent"]),
            compare_ids("codes", found, codes),
            compare_numbers("decode", codec.decode(config, params, codes), arrays["decoded"]),
        ]


CODEC = CodecFamily()


def is_codec(tensors: Tensors) -> bool:
    """Return whether these are the names of a codec, of the PyTorch package or of Transformers."""
    return any(name.startswith(("quantizer.", "encoder.", "decoder.model.")) for name in tensors.shapes)


def of_transformers(tensors: Tensors) -> bool:
    """Return whether these are the names of a codec of Transformers."""
    return any(name.startswith("encoder.layers.") for name in tensors.shapes)
