"""Whatever holds the weights of a model, opened: published files, imported weights, or a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict

from moshijax import codec, lm
from moshijax.codec.configs import MIMI
from moshijax.config_json import from_json
from moshijax.errors import ConfigError, DataError
from moshijax.weights import lora
from moshijax.weights.formats import huggingface, kyutai, mlx
from moshijax.weights.formats import huggingface_config as hf_config
from moshijax.weights.formats.lm_config import LEGACY_7B, PERSONAPLEX, completed, lm_config
from moshijax.weights.formats.lm_table import lm_table
from moshijax.weights.formats.mimi_config import mimi_config
from moshijax.weights.formats.mimi_table import mimi_table
from moshijax.weights.names import Both, View, theirs
from moshijax.weights.run import load_run
from moshijax.weights.safetensors import INDEX_SUFFIX, check_names_and_shapes, open_tensors
from moshijax.weights.table import Entry, Leaves, Published, same

MODEL_FILE, CONFIG_FILE, PREPROCESSOR = "model.safetensors", "config.json", "preprocessor_config.json"
#: Files of an imported model.
DESCRIPTION, PARAMETERS, RECORD, EXTRA, CODEC = (
    *("model.json", "parameters.safetensors", "published.json", "extra.safetensors"),
    "codec",
)
TOKENIZER, ADAPTER = "tokenizer.model", "lora.safetensors"
#: The published module has this projection even without a depth transformer.
UNUSED = "depformer_in.0.weight"
#: Types of tensors that can be kept as they are.
TYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Record:
    """How a model was published, as far as its parameters do not say it.

    Attributes:
        format: of the files, one of `moshijax.weights.transfer.FORMATS`; "run" for a run of ours.
        config: `config.json` as it was.
        dtypes: published name -> dtype, where it is not that of our parameter.
        extra: published name -> what no parameter holds: the row scales of int8 weights, a projection nobody uses.
        preprocessor: `preprocessor_config.json` of Transformers as it was; of recognition it has the delays in seconds.
    """

    format: str
    config: Mapping[str, Any] = field(default_factory=dict)
    dtypes: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)
    preprocessor: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """The weights of one model, not yet read.

    Attributes:
        kind: "lm" or "codec".
        config: of the model; the types are those that hold every value of the file.
        tensors: the published tensors (names of the released files), each made when it is asked for.
        where: for messages.
        table, stored: `moshijax.weights.table.Leaves` of these are our parameters.
        codec: the codec that a language model comes with.
        tokenizer: its SentencePiece model.
        adapter: what is added to `tensors` in our parameters (`stored` has it).
    """

    kind: str
    config: Any
    tensors: Any
    record: Record
    where: Path
    table: Mapping[str, Entry]
    stored: Any
    codec: Source | None = None
    tokenizer: Path | None = None
    adapter: lora.Adapter | None = None

    def unmerged(self) -> Source:
        """The same with the adapter as parameters of the model; without one as it is.

        Raises:
            ConfigError: an adapter that can only be merged.
        """
        if self.adapter is None:
            return self
        config = lora.with_updates(self.config, self.adapter)
        tensors = Both(self.tensors, self.adapter.tensors)
        return replace(self, config=config, table=table_of("lm", config), stored=tensors)

    def leaves(self, config: Any = None, stacked: bool = False, shardings: Any = None) -> Leaves:
        """Our parameters, lazily; `config` may differ in its types."""
        return Leaves(self.table, self.stored, abstract(self.kind, config or self.config, stacked), shardings)


def with_adapter(source: Source, path: str | Path) -> Source:
    """The model with a LoRA adapter; scaling and rank as the config.json beside the file, or of the model, says.

    Raises:
        DataError: the adapter does not fit, or does nothing.
    """
    path = Path(path)
    beside = path.parent / CONFIG_FILE
    fields = {**source.record.config, **(read_json(beside) if beside.is_file() else {})}
    adapter = lora.open_adapter(path, float(fields.get("lora_scaling", 2.0)), fields.get("lora_rank"))
    told = {"lora": True, "lora_scaling": adapter.scaling, "lora_name": path.name}
    told |= {} if adapter.rank is None else {"lora_rank": adapter.rank}
    record = replace(source.record, config={**source.record.config, **told})
    return _adapted(replace(source, record=record), adapter)


def _adapted(source: Source, adapter: lora.Adapter) -> Source:
    stored = lora.merged(source.tensors, adapter, depth_weights(source.config))
    return replace(source, table=table_of("lm", source.config), stored=stored, adapter=adapter)


def depth_weights(config: lm.LMConfig) -> int:
    """Attention weights of every layer of the depth transformer."""
    return len(set(config.depth.step_weights(config.layout.dep_q))) if config.depth is not None else 1


def abstract(kind: str, config: Any, stacked: bool = False) -> dict[str, Any]:
    """Shapes and dtypes of the parameters of a model."""
    if kind == "lm":
        return lm.abstract(config, stacked=stacked)
    return jax.eval_shape(lambda key: nn.meta.unbox(codec.init(config, key)), jax.random.key(0))


def table_of(kind: str, config: Any) -> dict[str, Entry]:
    return lm_table(config) if kind == "lm" else mimi_table(config)


def open_source(path: str | Path, kind: str | None = None, config: Any = None) -> Source:
    """Open what is at `path`: a safetensors file or index, a directory of published or imported weights, or a run.

    Args:
        kind: "lm" or "codec": what is needed; by default what there is. A directory of a language model may lead to
            its codec.
        config: of the model of a lone file.

    Raises:
        DataError: nothing usable there, damaged or incomplete files, or tensors that do not fit the config.
        ConfigError: a config that this model family does not have.
    """
    path = Path(path)
    if path.is_dir() and (path / DESCRIPTION).exists():
        source = _imported(path) if _has(path, PARAMETERS) else _run(path)
    else:
        source = _published(path, kind, config)
    if kind == "codec" and source.kind == "lm" and source.codec is not None:
        return source.codec
    if kind is not None and source.kind != kind:
        words = {"lm": "a language model", "codec": "a codec"}
        raise DataError(f"{path} is {words[source.kind]}, {words[kind]} is needed; name the other one")
    return source


def _has(folder: Path, name: str) -> bool:
    return (folder / name).exists() or (folder / (name.removesuffix(".safetensors") + INDEX_SUFFIX)).exists()


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        DataError: it cannot be read, or is something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except ValueError as error:
        raise DataError(
            f"{path} is not JSON ({error}); a config is needed there, not weights: fetch it again"
        ) from None
    if not isinstance(found, dict):
        raise DataError(f"{path} is not the config of a model (a JSON object); fetch it again")
    return found


# --- ours -----------------------------------------------------------------------------------------------------------


def _class(kind: str, where: Path) -> type:
    classes = {"lm": lm.LMConfig, "codec": codec.MimiConfig}
    if kind not in classes:
        raise DataError(f"{where} names the kind {kind!r}; this version knows {', '.join(classes)}")
    return classes[kind]


def _imported(path: Path) -> Source:
    description, record = read_json(path / DESCRIPTION), read_json(path / RECORD)
    try:
        kind, fields = description["kind"], description["config"]
        extra = dict(open_tensors(path / EXTRA)) if (path / EXTRA).exists() else {}
        told = Record(
            record["format"], record["config"], record["dtypes"], extra, preprocessor=record.get("preprocessor", {})
        )
    except KeyError as error:
        raise DataError(f"{path} lacks {error} in {DESCRIPTION} or {RECORD}; import it again") from None
    config = from_json(_class(kind, path / DESCRIPTION), fields, DESCRIPTION)
    stored, table = open_tensors(path / PARAMETERS), same(abstract(kind, config))
    check_names_and_shapes(stored.path, stored.shapes, {name: entry.shape for name, entry in table.items()})
    source = Source(
        kind,
        config,
        Published(table_of(kind, config), stored, told.dtypes),
        told,
        path,
        table,
        stored,
        _imported(path / CODEC) if kind == "lm" and (path / CODEC).is_dir() else None,
        path / TOKENIZER if (path / TOKENIZER).exists() else None,
    )
    adapter = path / Path(str(told.config.get("lora_name") or ADAPTER)).name
    return with_adapter(source, adapter) if told.config.get("lora") else source


def _run(path: Path) -> Source:
    kind, config, params, _, tokenizer = load_run(path)
    flat = flatten_dict(params, sep="/")
    update = config.lora if kind == "lm" else None
    base = config if update is None else replace(config, lora=None)
    table, published = same(abstract(kind, base)), table_of(kind, base)
    source = Source(
        kind,
        base,
        Published(published, flat),
        Record("run"),
        path,
        table,
        Published(table, flat),
        tokenizer=tokenizer,
    )
    if update is None:
        return source
    pairs = {name: entry for name, entry in table_of(kind, config).items() if name not in published}
    told = {"lora": True, "lora_rank": update.rank, "lora_scaling": update.scaling, "lora_name": ADAPTER}
    source = replace(source, record=Record("run", told))
    return _adapted(source, lora.Adapter(Published(pairs, flat), update.scaling, path))


# --- published ------------------------------------------------------------------------------------------------------


def _published(path: Path, kind: str | None, config: Any) -> Source:
    folder = path if path.is_dir() else path.parent
    fields = completed(read_json(folder / CONFIG_FILE)) if (folder / CONFIG_FILE).is_file() else {}
    if hf_config.is_config(fields):
        return _huggingface(folder / MODEL_FILE if path.is_dir() else path, fields)
    if not path.is_dir():
        return _lone(path, fields, config)
    if "seanet" in fields:
        return _codec_file(folder / MODEL_FILE, config or mimi_config(fields, str(folder / CONFIG_FILE)), fields)
    if kind == "codec":
        if isinstance(fields.get("mimi_name"), str):
            return _codec_beside(folder, fields, config)
        if not _has(folder, MODEL_FILE) or _is_codec(open_tensors(folder / MODEL_FILE)):
            return _codec_file(folder / MODEL_FILE, config or MIMI, {})
    if not fields:
        if _has(folder, MODEL_FILE) and _is_codec(open_tensors(folder / MODEL_FILE)):
            return _codec_file(folder / MODEL_FILE, config or MIMI, {})
        raise DataError(f"{path} has no {CONFIG_FILE}; name a weight file, or a directory with its {CONFIG_FILE}")
    file = folder / Path(str(fields.get("moshi_name", MODEL_FILE))).name
    source = _lm_file(file, fields)
    mimi, tokenizer = _named(folder, fields, "mimi_name"), _named(folder, fields, "tokenizer_name")
    return replace(source, codec=_codec_beside(folder, fields, config) if mimi else None, tokenizer=tokenizer)


def _named(folder: Path, fields: Mapping[str, Any], name: str) -> Path | None:
    """A file that a config names and that is there; names may be addresses elsewhere."""
    value = fields.get(name)
    file = folder / Path(value).name if isinstance(value, str) else folder / TOKENIZER
    return file if file.is_file() and (isinstance(value, str) or name == "tokenizer_name") else None


def _is_codec(tensors: Any) -> bool:
    return any(name.startswith(("quantizer.", "encoder.", "decoder.model.")) for name in tensors.shapes)


def _lone(path: Path, fields: dict[str, Any], config: Any) -> Source:
    if path.exists() and not _is_codec(open_tensors(path)):
        both = kyutai.depth_steps(open_tensors(path)) == PERSONAPLEX["dep_q"]
        return _lm_file(path, fields or {**LEGACY_7B, "dep_q": PERSONAPLEX["dep_q"] if both else LEGACY_7B["dep_q"]})
    if path.exists() and any(name.startswith("encoder.layers.") for name in open_tensors(path)):
        return _huggingface(path, {"model_type": "mimi"})
    if isinstance(config, codec.MimiConfig):
        return _codec_file(path, config, {})
    if "seanet" in fields:
        return _codec_file(path, mimi_config(fields, str(path.parent / CONFIG_FILE)), fields)
    if fields.get("mimi_name") == path.name:
        return _codec_beside(path.parent, fields, None)
    return _codec_file(path, MIMI, {})


def _codec_beside(folder: Path, fields: Mapping[str, Any], config: codec.MimiConfig | None) -> Source:
    """The codec that a language model's config names, with the config that it names for it."""
    named = fields.get("mimi_config_name")
    own = read_json(folder / Path(named).name) if isinstance(named, str) else {}
    config = config or (mimi_config(own, str(folder / str(named))) if own else MIMI)
    return _codec_file(folder / Path(fields["mimi_name"]).name, config, own)


def _huggingface(path: Path, fields: Mapping[str, Any]) -> Source:
    """A model of Transformers, with the codec that is part of it."""
    file, beside = open_tensors(path), path.parent / PREPROCESSOR
    preprocessor = read_json(beside) if beside.is_file() else {}
    if fields["model_type"] == "mimi":
        config = hf_config.mimi_config(fields)
        hf_config.check_preprocessor(preprocessor, config)
        groups = huggingface.mimi_groups(config)
        check_names_and_shapes(path, file.shapes, theirs(groups))
        record = Record("huggingface", fields, preprocessor=preprocessor)
        return _opened("codec", config, View(file, groups, reading=True), record, path)
    config = hf_config.lm_config(fields)
    inner, prefix = hf_config.CODECS[fields["model_type"]]
    codec_config = hf_config.mimi_config(fields.get(inner, {}))
    hf_config.check_preprocessor(preprocessor, codec_config)
    groups, codec_groups = huggingface.lm_groups(config), huggingface.mimi_groups(codec_config, prefix)
    check_names_and_shapes(path, file.shapes, theirs(groups) | theirs(codec_groups))
    record = Record("huggingface", fields, preprocessor=preprocessor)
    codec_record = Record("huggingface", fields.get(inner, {}))
    mimi = _opened("codec", codec_config, View(file, codec_groups, reading=True), codec_record, path)
    source = _opened("lm", config, View(file, groups, reading=True), record, path)
    return replace(source, codec=mimi, tokenizer=_named(path.parent, {}, "tokenizer_name"))


def _codec_file(path: Path, config: codec.MimiConfig, fields: Mapping[str, Any]) -> Source:
    file = open_tensors(path)
    return _opened("codec", config, kyutai.fused(file, str(path)), Record(kyutai.spelling(file), fields), path)


def _lm_file(path: Path, fields: Mapping[str, Any]) -> Source:
    config, file = lm_config(fields), open_tensors(path)
    if mlx.is_file(file):
        groups = mlx.lm_groups(config)
        file = mlx.dequantised(file, theirs(groups), str(path))
        check_names_and_shapes(path, file.shapes, theirs(groups))
        return _opened("lm", config, View(file, groups, reading=True), Record("mlx", fields), path)
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
    if config.depth is None and not fields.get("depformer_multi_linear") and UNUSED in fused:
        extra[UNUSED] = fused[UNUSED]
    if fields.get("lora") and scaled:
        raise ConfigError(f"{path}: int8 weights with an adapter are not supported; use the bf16 weights")
    record = Record(kyutai.spelling(file), fields, extra=extra)
    source = _opened("lm", config, kyutai.dequantised(fused, str(path)), record, path)
    adapter = path.parent / Path(str(fields.get("lora_name") or ADAPTER)).name
    return with_adapter(source, adapter) if fields.get("lora") else source


def _opened(kind: str, config: Any, tensors: Any, record: Record, path: Path) -> Source:
    """Checks names and shapes, and settles the types."""
    table = table_of(kind, config)
    check_names_and_shapes(path, tensors.shapes, {name: entry.shape for name, entry in table.items()}, record.extra)
    odd = [name for name, dtype in tensors.dtypes.items() if dtype.name not in TYPES]
    if odd:
        raise DataError(f"{path}: {odd[0]} is {tensors.dtypes[odd[0]]}, must be one of {', '.join(TYPES)}; convert it")
    if kind == "lm":
        # Conditioners are float32 whatever the rest is.
        found = {tensors.dtypes[name].name for name in table if not name.startswith("condition_provider.")}
        dtype = found.pop() if len(found) == 1 else "float32"
        config = config.with_dtype(dtype, dtype)
    ours = shown(kind, config).dtypes
    dtypes = {name: tensors.dtypes[name].name for name in table if tensors.dtypes[name] != ours[name]}
    return Source(kind, config, tensors, replace(record, dtypes=dtypes), path, table, tensors)


def shown(kind: str, config: Any) -> Published:
    """The published tensors of a model as far as names, shapes and types go; nothing is allocated."""
    return Published(table_of(kind, config), _Shown(abstract(kind, config)))


class _Shown(dict):
    """A flat tree of shapes and dtypes where one of arrays is expected, for what can be said without them."""

    def __init__(self, tree: Mapping[str, Any]):
        super().__init__(flatten_dict(tree, sep="/"))
        self.dtypes = {path: np.dtype(leaf.dtype) for path, leaf in self.items()}
