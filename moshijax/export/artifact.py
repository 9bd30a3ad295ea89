"""Write the streaming artifact: exported programs, one weights file, text pieces and `artifact.json`.

`build` makes one from models, `rebuild` from another artifact; `write` is what both end in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import flax.linen as nn
import jax
import numpy as np
from jax import export as jax_export

import moshijax
from moshijax import codec, files, lm, lock
from moshijax.config_json import from_json, to_json
from moshijax.errors import ConfigError, DataError
from moshijax.export import weights as layout
from moshijax.export.step import PREFILL_LENGTHS, CallStep, Signature, flatten, nested
from moshijax.lm import policies, transforms
from moshijax.runtime import conditions as condition_values
from moshijax.runtime import manifest as manifests
from moshijax.runtime.schema import LARGEST_BATCH
from moshijax.tokens import BOS, EOS
from moshijax.weights import writer
from moshijax.weights.safetensors import TensorFile
from moshijax.weights.tensors import InMemory

if TYPE_CHECKING:
    Specs = dict[str, jax.ShapeDtypeStruct]

CONVERSATION = policies.Conversation()

# Defaults of the generator of `moshi` (`models/lm.py`).
SAMPLING = {"temperature": 0.8, "text_temperature": 0.7, "top_k": 250, "text_top_k": 25, "pad_bonus": 0.0}


class PureFunctions(Protocol):
    """The functions of an artifact; flat dicts of arrays everywhere. `moshijax.export.step.CallStep` is one.

    `programs` lists what is exported of them. Its names are methods: `init_state(batch)`, and otherwise
    `(weights, state, inputs) -> (state, outputs)`.
    """

    def programs(self, batches: Sequence[int]) -> tuple[Signature, ...]:
        """Return every program to export for these batch sizes."""
        ...

    def init_state(self, batch: int) -> dict[str, Any]:
        """Return the state of `batch` rows that have not begun."""
        ...

    def state_specs(self, program: Signature) -> Specs:
        """Return shapes and dtypes of the state of a program."""
        ...

    def input_specs(self, program: Signature) -> Specs:
        """Return shapes and dtypes of the inputs of a program."""
        ...


@dataclass(frozen=True)
class ArtifactParts:
    """Everything an artifact is written from.

    Attributes:
      functions: platform -> its functions.
      weights: flat name -> array as stored.
      compute_dtypes: platform -> {stored dtype: dtype that the programs take}.
      pieces: the text of every token id.
      description: the config, layout, audio, text and sampling sections of `artifact.json`.
      conditions: what a call is conditioned on by default, inputs of the program `condition` without their batch axis.
      tokenizer: bytes of a SentencePiece model, for artifacts that are given text.
    """

    functions: Mapping[str, PureFunctions]
    weights: Mapping[str, np.ndarray]
    compute_dtypes: Mapping[str, Mapping[str, str]]
    pieces: Sequence[str]
    description: Mapping[str, Any]
    conditions: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    tokenizer: bytes | None = None


def build(
    codec_model: tuple[codec.MimiConfig, Any],
    lm_model: tuple[lm.LMConfig, Any],
    pieces: Sequence[str],
    out_dir: str | Path,
    platforms: Sequence[str] = ("cpu",),
    batches: Sequence[int] = (1,),
    weights_dtype: str = "float32",
    cache_dtype: str | None = None,
    sampling: Mapping[str, float] | None = None,
    top_k_limit: int = 250,
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda message: None,
    *,
    policy: policies.Policy = CONVERSATION,
    guidance: lm.Guidance | None = None,
    conditions: Mapping[str, Any] | None = None,
    null_conditions: Mapping[str, Any] | None = None,
    tokenizer: bytes | None = None,
    prefill_lengths: Sequence[int] = PREFILL_LENGTHS,
) -> Path:
    """Export a codec and a language model as one artifact.

    Args:
      codec_model, lm_model: config and parameters, in either layout.
      pieces: the text of every token id, as SentencePiece writes it.
      out_dir: the directory to write; it must not exist unless `overwrite`.
      platforms: any of cpu, cuda, tpu; none of them has to be present here.
      batches: batch sizes of calls, one set of programs for each.
      weights_dtype: one of `export.weights.WEIGHT_DTYPES`, how the language model is stored. On cpu it is computed in
        float32 in any case, elsewhere in the stored type, or in bfloat16 with int8 weights. The codec is float32.
      cache_dtype: one of `attention.CACHE_DTYPES`, of the keys and values that calls keep; None: as the config says.
      sampling: the defaults of calls; the rest are those of `SAMPLING`.
      top_k_limit: the largest top_k that may be asked for.
      policy: what the model is used for.
      guidance: compiles classifier-free guidance in; its values are defaults.
      conditions, null_conditions: what calls are conditioned on, and the second halves of guided ones, unless told
        otherwise when they begin (`moshijax.runtime.conditions.arrays` says what values are); the others are absent. A
        sequence of vectors fixes the length of its conditioner where the model leaves it open.
      tokenizer: the SentencePiece model itself, so that text can be given to the artifact.
      progress: called with the name of every file before it is written.
      prefill_lengths: blocks in which a prompt is processed, in columns.

    Raises:
      ConfigError: models that do not fit each other, an unknown platform or type, or `out_dir` exists.
      MoshijaxError: it cannot be written.
    """
    check_request(platforms, batches)
    if weights_dtype not in layout.WEIGHT_DTYPES:
        raise ConfigError(f"weights_dtype={weights_dtype!r} must be one of {', '.join(layout.WEIGHT_DTYPES)}")
    codec_config, (lm_config, lm_params) = codec_model[0], transforms.for_calls(lm_model[0], nn.meta.unbox(lm_model[1]))
    if len(pieces) > lm_config.text_card:
        raise ConfigError(
            f"{len(pieces)} text pieces do not fit text_card={lm_config.text_card}; use the tokenizer of the model"
        )
    lm_config = _fixed_lengths(lm_config, conditions or {})
    if cache_dtype is not None:
        temporal = dataclasses.replace(lm_config.temporal, cache_dtype=cache_dtype)
        lm_config = dataclasses.replace(lm_config, temporal=temporal)
    computed = {platform: layout.compute_dtype(platform, weights_dtype) for platform in platforms}
    functions = {
        platform: CallStep(
            codec_config, lm_config.with_dtype(dtype, dtype), top_k_limit, policy, guidance, tuple(prefill_lengths)
        )
        for platform, dtype in computed.items()
    }
    conditioned = {"condition": conditions or {}, "null": null_conditions or {}}
    if guidance is None:
        if null_conditions:
            raise ConfigError(f"null conditions {sorted(null_conditions)} without guidance: give both, or neither")
        del conditioned["null"]
    table = conditioner_table(lm_config)
    weights = {
        **flatten(codec.inference_layout(*codec_model), "codec"),
        **layout.stored("lm", lm.abstract, lm_config, lm_params, weights_dtype),
    }
    parts = ArtifactParts(
        functions=functions,
        weights={name: np.asarray(value) for name, value in weights.items()},
        compute_dtypes={
            platform: {str(value.dtype): layout.program_dtype(platform, str(value.dtype)) for value in weights.values()}
            for platform in platforms
        },
        pieces=pieces,
        description={
            **_description(next(iter(functions.values())), codec_config, lm_config, sampling or {}),
            "conditions": table,
        },
        conditions={
            f"{kind}/{name}": array
            for kind, values in conditioned.items()
            for name, array in condition_values.all_arrays(table, values).items()
        },
        tokenizer=tokenizer,
    )
    return write(parts, out_dir, batches, overwrite, progress)


def rebuild(
    source: str | Path,
    out_dir: str | Path,
    platforms: Sequence[str] | None = None,
    batches: Sequence[int] | None = None,
    weights_dtype: str | None = None,
    cache_dtype: str | None = None,
    top_k_limit: int | None = None,
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda message: None,
) -> Path:
    """Export an artifact again from itself, for this jax; what is not given stays as it was.

    Raises:
      ConfigError: as `manifest.read` and `build`.
      DataError: as `manifest.check_file`, or its config is not of this version.
    """
    source = Path(source)
    manifest = manifests.read(source)
    config = _configs(source, manifest)
    pieces = manifests.read_pieces(source, manifest)
    weights = TensorFile(manifests.check_file(source, manifest, manifests.WEIGHTS))
    params = nested(dict(weights))
    table = manifest["conditions"]
    defaults = condition_values.load_defaults(source, manifest) if table else {}
    tokenizer = None
    if manifests.TOKENIZER in manifest["files"]:
        tokenizer = manifests.check_file(source, manifest, manifests.TOKENIZER).read_bytes()
    guidance = config["guidance"]
    return build(
        (config["codec"], params["codec"]),
        (config["lm"], params["lm"]),
        pieces,
        out_dir,
        platforms or manifest["platforms"],
        batches or manifest["batches"],
        weights_dtype or layout.dtype_of(params["lm"]["text_head"]["kernel"]),
        cache_dtype,
        manifest["sampling"]["defaults"],
        top_k_limit or manifest["sampling"]["top_k_limit"],
        overwrite,
        progress,
        policy=config["policy"],
        guidance=guidance,
        conditions=condition_values.values_of(table, defaults, "condition"),
        null_conditions=None if guidance is None else condition_values.values_of(table, defaults, "null"),
        tokenizer=tokenizer,
        prefill_lengths=manifest["lengths"]["prefill"],
    )


def _configs(source: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configs of an artifact: codec, lm, policy and guidance.

    Raises:
      DataError: they are not of this version.
    """
    hints = {"codec": codec.MimiConfig, "lm": lm.LMConfig, "policy": policies.Policy, "guidance": lm.Guidance | None}
    try:
        return {name: from_json(hint, manifest["config"][name], f"config.{name}") for name, hint in hints.items()}
    except ConfigError as error:
        raise DataError(f"{source / manifests.MANIFEST}: {error}; export it from its run again") from None


def _fixed_lengths(config: lm.LMConfig, conditions: Mapping[str, Any]) -> lm.LMConfig:
    """Return the model with conditioners of open length as long as the vectors that were given for them."""

    def fixed(c: Any) -> Any:
        if isinstance(c, lm.TensorConditioner) and c.length is None and conditions.get(c.name) is not None:
            return dataclasses.replace(c, length=len(condition_values.vectors(conditions[c.name])[0]))
        return c

    return dataclasses.replace(config, conditioners=tuple(map(fixed, config.conditioners)))


def conditioner_table(config: lm.LMConfig) -> dict[str, dict[str, Any]]:
    """Return what `artifact.json` says about every conditioner: its attribute values, or the shape of its vectors."""
    return {
        c.name: {"length": c.length, "dim": c.dim}
        if isinstance(c, lm.TensorConditioner)
        else {"bins": c.bins, "values": c.values and list(c.values)}
        for c in config.conditioners
    }


def _description(
    step: CallStep, codec_config: codec.MimiConfig, lm_config: lm.LMConfig, sampling: Mapping[str, float]
) -> dict[str, Any]:
    """Return the sections of `artifact.json` that describe the models."""
    layout = lm_config.layout

    def stream(row: int, s: lm.Stream) -> dict[str, Any]:
        name = f"{s.speaker} text" if s.kind == "text" else f"{s.speaker} codebook {s.codebook}"
        card = lm_config.text_card if s.kind == "text" else lm_config.card
        return {"name": name, **{k: v for k, v in to_json(s).items() if k != "type"}, "card": card}

    top_k = min(step.top_k_limit, lm_config.card)
    text_top_k = min(step.top_k_limit, lm_config.text_vocab)
    defaults = {**SAMPLING, **sampling}
    defaults["top_k"], defaults["text_top_k"] = min(defaults["top_k"], top_k), min(defaults["text_top_k"], text_top_k)
    limits: dict[str, list] = {
        "temperature": [0, None],
        "text_temperature": [0, None],
        "top_k": [0, top_k],
        "text_top_k": [0, text_top_k],
        "pad_bonus": [None, None],
    }
    if step.guidance is not None:
        defaults["guidance"], limits["guidance"] = step.guidance.coefficient, [0, None]
    return {
        "config": {
            "codec": to_json(codec_config),
            "lm": to_json(lm_config),
            "policy": to_json(step.policy),
            "guidance": to_json(step.guidance),
        },
        "layout": {"max_delay": layout.max_delay, "streams": [stream(k, s) for k, s in enumerate(layout.streams)]},
        "audio": {
            "sample_rate": codec_config.sample_rate,
            "frame_size": codec_config.frame_size,
            "frame_rate": codec_config.frame_rate,
        },
        "text": {"special": {"pad": lm_config.pad_id, "epad": lm_config.epad_id, "bos": BOS, "eos": EOS}},
        "sampling": {
            "defaults": defaults,
            "limits": limits,
            "top_k_limit": step.top_k_limit,
        },
    }


def check_request(platforms: Sequence[str], batches: Sequence[int]) -> None:
    """Check the platforms and sizes that an artifact is requested for.

    Raises:
      ConfigError: unknown platforms, or batch sizes that are not positive.
    """
    for platform in platforms:
        if platform not in manifests.PLATFORMS:
            raise ConfigError(f"unknown platform {platform!r}; choose from {', '.join(manifests.PLATFORMS)}")
    if not platforms or not batches or not 1 <= min(batches) <= max(batches) <= LARGEST_BATCH:
        raise ConfigError(
            f"platforms={list(platforms)}, batches={list(batches)}: name at least one of each, batches > 0 and at most "
            f"{LARGEST_BATCH}"
        )


def write(
    parts: ArtifactParts,
    out_dir: str | Path,
    batches: Sequence[int] = (1,),
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda message: None,
) -> Path:
    """Export every program for every platform and batch size and write the artifact directory.

    It is written to a temporary directory beside `out_dir` and renamed when complete. `progress` is told of every file.

    Raises:
      ConfigError: `out_dir` exists and `overwrite` is false.
      MoshijaxError: the disk is full, or the path cannot be written.
    """
    out_dir = Path(out_dir)
    check_request(tuple(parts.functions), batches)
    files.check_folder(out_dir, new=not overwrite)
    if out_dir.exists() and any(out_dir.iterdir()) and not (out_dir / manifests.MANIFEST).is_file():
        raise ConfigError(f"{out_dir} exists and is not an artifact; choose another path")
    with lock.beside(out_dir), files.staged_directory(out_dir, replace=overwrite) as staging:
        progress(manifests.WEIGHTS)
        writer.write(staging / manifests.WEIGHTS, InMemory(parts.weights))
        files.write_json(staging / manifests.TEXT_PIECES, list(parts.pieces))
        if parts.conditions:
            writer.write(staging / manifests.CONDITIONS, InMemory(parts.conditions))
        if parts.tokenizer is not None:
            (staging / manifests.TOKENIZER).write_bytes(parts.tokenizer)
        exported: dict[str, jax_export.Exported] = {}
        lengths: dict[str, list[int]] = {}
        for platform, functions in parts.functions.items():
            weight_specs = {
                name: jax.ShapeDtypeStruct(value.shape, parts.compute_dtypes[platform][str(value.dtype)])
                for name, value in parts.weights.items()
            }
            for program in functions.programs(batches):
                file = manifests.program_file(program.name, platform, program.batch, program.length)
                progress(file)
                exported[program.name] = export_program(program, functions, platform, weight_specs)
                (staging / file).write_bytes(exported[program.name].serialize())
                if program.length is not None:
                    lengths[program.name] = sorted({*lengths.get(program.name, []), program.length})
        description = {
            "format": manifests.FORMAT,
            "schema_version": manifests.SCHEMA_VERSION,
            "moshijax_version": moshijax.__version__,
            "jax": {
                "exported_with": jax.__version__,
                "calling_convention_version": exported["init_state"].calling_convention_version,
                "tried": list(manifests.TRIED_JAX),
            },
            "platforms": list(parts.functions),
            "batches": sorted(set(batches)),
            "lengths": lengths,
            **parts.description,
            **_interface(exported),
            "weights": {
                "file": manifests.WEIGHTS,
                "program_dtypes": {platform: dict(map_) for platform, map_ in parts.compute_dtypes.items()},
                "tensors": {
                    name: {"shape": list(value.shape), "dtype": str(value.dtype)}
                    for name, value in parts.weights.items()
                },
            },
        }
        description["files"] = {path.name: manifests.file_record(path) for path in sorted(staging.iterdir())}
        files.write_json(staging / manifests.MANIFEST, description)
    return out_dir


def export_program(
    program: Signature, functions: PureFunctions, platform: str, weight_specs: Mapping[str, Any]
) -> jax_export.Exported:
    """Export one program for one platform, and prove that every state array is donated.

    Args:
      program: which.
      functions: it is a method of these.
      platform: cpu, cuda or tpu.
      weight_specs: flat name -> shape and dtype of the weights it takes.
    """
    if program.name == "init_state":
        return jax_export.export(jax.jit(lambda: functions.init_state(program.batch)), platforms=(platform,))()
    state_specs, inputs = functions.state_specs(program), functions.input_specs(program)
    # What a program overwrites without a look at it is donated too, so it must not be dropped as unused.
    function = jax.jit(getattr(functions, program.name), donate_argnums=1, keep_unused=True)
    exported = jax_export.export(function, platforms=(platform,))(weight_specs, state_specs, inputs)
    new_state, _ = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    for key, spec in state_specs.items():
        if (new_state[key].shape, new_state[key].dtype) != (spec.shape, spec.dtype):
            raise AssertionError(f"{program.name} changes state {key} from {spec} to {new_state[key]}")
    donated = exported.mlir_module().count("tf.aliasing_output")
    sized = sum(spec.size > 0 for spec in state_specs.values())
    if not sized <= donated <= len(state_specs):  # (an array without values may be donated or not)
        raise AssertionError(f"{program.name} donates {donated} of {sized} state arrays")
    return exported


def _interface(exported: Mapping[str, jax_export.Exported]) -> dict[str, Any]:
    """Return names, shapes (None = batch) and dtypes of state, inputs and outputs, of the longest blocks."""

    def rows(specs: Specs) -> dict[str, Any]:
        return {
            name: {"shape": [None, *spec.shape[1:]] if spec.shape else [], "dtype": str(spec.dtype)}
            for name, spec in specs.items()
        }

    inputs, outputs = {}, {}
    for name in (name for name in exported if name != "init_state"):
        args, _ = jax.tree.unflatten(exported[name].in_tree, exported[name].in_avals)
        _, out = jax.tree.unflatten(exported[name].out_tree, exported[name].out_avals)
        inputs[name], outputs[name] = rows(args[2]), rows(out)
    first = exported["init_state"]
    state = rows(jax.tree.unflatten(first.out_tree, first.out_avals))
    if "place" in inputs:  # (what it takes beside the slot is the state of one row)
        inputs["place"] = {name: spec for name, spec in inputs["place"].items() if not name.startswith("row/")}
    return {"state": state, "inputs": inputs, "outputs": outputs}
