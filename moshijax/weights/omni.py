"""Published files of the parts of LLaMA-Omni, and of all together, read and written tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from moshijax import files, lock
from moshijax.errors import ConfigError, DataError
from moshijax.omni import config as omni
from moshijax.omni import text_model, vocoder, whisper
from moshijax.omni.config import OmniConfig
from moshijax.omni.text_model import TextConfig
from moshijax.omni.vocoder import VocoderConfig
from moshijax.omni.whisper import WhisperConfig
from moshijax.weights import writer
from moshijax.weights.formats import code_hifigan, ctranslate2, llama, llama_omni
from moshijax.weights.formats import whisper as whisper_format
from moshijax.weights.formats.ctranslate2 import CTranslate2File
from moshijax.weights.names import Group, Renamed, theirs
from moshijax.weights.published import CONFIG_FILE, MODEL_FILE, read_json
from moshijax.weights.safetensors import ShardedFile, TensorFile, check_names_and_shapes, open_tensors
from moshijax.weights.table import AsParameters, AsPublished, same
from moshijax.weights.tensors import Finite, InMemory

DTYPES = ("float32", "bfloat16", "float16")
#: Parts of Whisper beside its encoder, which are not read.
_NOT_READ = ("model.decoder.", "decoder.", "proj_out.")
_METADATA = {"format": "pt"}


def load_text_model(
    path: str | Path, dtype: str | None = None, stacked: bool = False, shardings: Any = None
) -> tuple[TextConfig, dict[str, Any]]:
    """Load a Llama or a Qwen2 from a directory of Transformers.

    Args:
      path: The directory, with `config.json` and `model.safetensors` or the index of several files.
      dtype: Of parameters and computation; default: that of the file.
      stacked: True for the training layout.
      shardings: A tree of `jax.sharding.Sharding` like the parameters; default: numpy arrays.

    Raises:
      ConfigError: A config.json of another model.
      DataError: Files that are missing or damaged, or tensors that do not fit the config (all are listed).
    """
    fields, file = _open(path)
    config = llama.text_config(fields)
    # Files of a model with a tied head may hold the table a second time, as the head.
    extra = [name for name in file if name.endswith(llama.BUFFER) or (config.tied and name == "lm_head.weight")]
    _check_parts(file, config.stack.num_layers)
    return _load(file, config, llama.text_groups(config), text_model.abstract, dtype, stacked, shardings, extra)


def load_whisper(
    path: str | Path, dtype: str | None = None, stacked: bool = False, shardings: Any = None
) -> tuple[WhisperConfig, dict[str, Any]]:
    """Load the encoder of a Whisper, as Transformers, openai or CTranslate2 name it; its decoder is not read.

    Args:
      path: A directory as in `load_text_model`, or a weight file without a config, which the shapes describe; the
        `model.bin` of CTranslate2, or its directory.
      dtype: As in `load_text_model`.
      stacked: As in `load_text_model`.
      shardings: As in `load_text_model`.

    Raises:
      ConfigError: As `load_text_model`.
      DataError: As `load_text_model`, or there is no encoder in the file.
    """
    path = Path(path)
    binary = path / ctranslate2.FILE if path.is_dir() else path
    if binary.name == ctranslate2.FILE and binary.is_file():
        file = CTranslate2File(binary)
        config = ctranslate2.encoder_config(file)
        groups = ctranslate2.encoder_groups(config)
        extra = [name for name in file if name.startswith("decoder/") or not file.shapes[name]]
        return _load(file, config, groups, whisper.abstract, dtype, stacked, shardings, extra)
    if path.is_dir():
        fields, file = _open(path)
        config = whisper_format.whisper_config(fields)
        spelling, prefix = whisper_format.spelling_of(file, str(file.path))
    else:
        file = open_tensors(path)
        spelling, prefix = whisper_format.spelling_of(file, str(file.path))
        config = whisper_format.config_of_shapes(file.shapes, spelling, prefix, str(file.path))
    _check_parts(file, config.stack.num_layers)
    groups = whisper_format.whisper_groups(config, spelling, prefix)
    extra = [name for name in file if name.startswith(_NOT_READ)]
    return _load(file, config, groups, whisper.abstract, dtype, stacked, shardings, extra)


def load_vocoder(path: str | Path) -> tuple[VocoderConfig, dict[str, Any]]:
    """Load a CodeHiFiGAN from a directory; it is float32, and weight norm is folded.

    Args:
      path: A directory with its `config.json`, and the tensors under `generator` of its checkpoint in
        `model.safetensors`.

    Raises:
      ConfigError: As `load_text_model`.
      DataError: As `load_text_model`.
    """
    fields, file = _open(path)
    config = code_hifigan.vocoder_config(fields)
    groups = code_hifigan.vocoder_groups(config, code_hifigan.form_of(file, str(file.path)))
    return _load(file, config, groups, lambda config, stacked: vocoder.abstract(config), "float32")


def load_llama_omni(
    path: str | Path, dtype: str | None = None, stacked: bool = False, shardings: Any = None
) -> tuple[OmniConfig, dict[str, Any]]:
    """Load a LLaMA-Omni, with its encoder, from a directory; arguments and errors as in `load_text_model`."""
    fields, file = _open(path)
    known = whisper_format.config_of_shapes(file.shapes, "openai", llama_omni.ENCODER, str(file.path))
    config = llama_omni.omni_config(fields, known)
    _check_parts(file, config.text.stack.num_layers + config.decoder.stack.num_layers)
    extra = [name for name in file if name.endswith(llama.BUFFER)]
    return _load(file, config, llama_omni.omni_groups(config), omni.abstract, dtype, stacked, shardings, extra)


def save_text_model(
    config: TextConfig, params: Mapping[str, Any], dst: str | Path, max_bytes: int | None = None
) -> None:
    """Write a text model as a directory of Transformers.

    Args:
      config: Of the model.
      params: In either layout.
      dst: The new directory.
      max_bytes: Of the tensors in one file; default: one file.

    Raises:
      ConfigError: `dst` exists, or Transformers has no such model.
    """
    fields = llama.published_text_config(config)
    _save(fields, llama.text_groups(config), text_model.abstract(config, False), params, dst, max_bytes)


def save_whisper(
    config: WhisperConfig, params: Mapping[str, Any], dst: str | Path, spelling: str = "huggingface"
) -> None:
    """Write an encoder under the names of Transformers ("huggingface") or of "openai"; arguments as above.

    Raises:
      ConfigError: `dst` exists, or there is no such spelling.
    """
    if spelling not in whisper_format.SPELLINGS:
        raise ConfigError(f"spelling {spelling!r} must be one of {', '.join(whisper_format.SPELLINGS)}")
    prefix = "model.encoder." if spelling == "huggingface" else "encoder."
    groups = whisper_format.whisper_groups(config, spelling, prefix)
    fields = whisper_format.published_whisper_config(config)
    _save(fields, groups, whisper.abstract(config, False), params, dst)


def save_vocoder(config: VocoderConfig, params: Mapping[str, Any], dst: str | Path, form: str = "weight_norm") -> None:
    """Write a vocoder, its weights in one of `code_hifigan.FORMS`; arguments as above.

    Raises:
      ConfigError: `dst` exists, or there is no such form.
    """
    if form not in code_hifigan.FORMS:
        raise ConfigError(f"form {form!r} must be one of {', '.join(code_hifigan.FORMS)}")
    groups = code_hifigan.vocoder_groups(config, form)
    _save(code_hifigan.published_vocoder_config(config), groups, vocoder.abstract(config), params, dst)


def save_llama_omni(
    config: OmniConfig, params: Mapping[str, Any], dst: str | Path, max_bytes: int | None = None
) -> None:
    """Write a LLaMA-Omni under its published names; arguments and errors as in `save_text_model`."""
    fields = llama_omni.published_omni_config(config)
    _save(fields, llama_omni.omni_groups(config), omni.abstract(config, False), params, dst, max_bytes)


def _open(path: str | Path) -> tuple[dict[str, Any], TensorFile | ShardedFile]:
    path = Path(path)
    if not path.is_dir():
        raise DataError(f"{path} is no directory; name the one that holds {CONFIG_FILE} and {MODEL_FILE}")
    return read_json(path / CONFIG_FILE), open_tensors(path / MODEL_FILE)


def _check_parts(file: TensorFile | ShardedFile, layers: int) -> None:
    """Refuse a config that declares more layers than there are tensors, before anything is made for each layer."""
    if layers > len(file):
        raise DataError(
            f"{file.path} holds {len(file)} tensors, its config declares {layers} layers; use the files of one model"
        )


def _load(
    file: TensorFile | ShardedFile | CTranslate2File,
    config: Any,
    groups: list[Group],
    abstract: Callable[[Any, bool], Any],
    dtype: str | None = None,
    stacked: bool = False,
    shardings: Any = None,
    extra: Sequence[str] = (),
) -> tuple[Any, dict[str, Any]]:
    """Check names, shapes and types of a file, and read it as parameters; `extra`: names that are not read."""
    wanted = theirs(groups)
    check_names_and_shapes(file.path, file.shapes, wanted, extra)
    found = {file.dtypes[name].name for name in wanted}
    if not found <= set(DTYPES):
        odd = next(name for name in wanted if file.dtypes[name].name not in DTYPES)
        raise DataError(f"{file.path}: {odd} is {file.dtypes[odd]}, must be one of {', '.join(DTYPES)}; convert it")
    if hasattr(config, "with_dtype"):
        dtype = dtype or (found.pop() if len(found) == 1 else "float32")
        config = config.with_dtype(dtype, dtype)
    tensors = Renamed(Finite(file, file.path), groups, reading=True)
    return config, AsParameters(same(abstract(config, False)), tensors, abstract(config, stacked), shardings).tree()


def _save(
    fields: Mapping[str, Any],
    groups: list[Group],
    abstract: Mapping[str, Any],
    params: Mapping[str, Any],
    dst: str | Path,
    max_bytes: int | None = None,
) -> None:
    files.check_folder(dst)
    ours = AsPublished(same(abstract), InMemory(flatten_dict(params, sep="/")))
    tensors = Renamed(ours, groups, reading=False)
    with lock.beside(Path(dst)), files.staged_directory(Path(dst)) as folder:
        writer.write(folder / MODEL_FILE, tensors, max_bytes, _METADATA)
        files.write_json(folder / CONFIG_FILE, dict(fields))
