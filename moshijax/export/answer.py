"""The artifact of a LLaMA-Omni: `build` makes one from models, `rebuild` from another artifact."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

from moshijax.config_json import from_json, to_json
from moshijax.data.byte_pairs import piece_bytes
from moshijax.errors import ConfigError, DataError
from moshijax.export import weights as layout
from moshijax.export.answer_step import PREFILL_LENGTHS, SAMPLING, AnswerStep
from moshijax.export.artifact import ArtifactParts, check_request, write
from moshijax.export.step import flatten, nested
from moshijax.omni import answer
from moshijax.omni import config as omni
from moshijax.omni.config import OmniConfig
from moshijax.omni.prompt import QUESTION, SYSTEM, Prompt, make_prompt
from moshijax.omni.spectrogram import HOP, SAMPLE_RATE
from moshijax.omni.vocoder import VocoderConfig
from moshijax.runtime import manifest as manifests
from moshijax.runtime.manifest import ANSWER
from moshijax.weights.safetensors import TensorFile

#: Of the published demo: units before a piece of sound is made, and tokens of an answer.
OMEGA, TOKENS = 40, 512
#: Ids at which a Llama 3 stops.
STOPS = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
FRAME_RATE = 12.5


@dataclass(frozen=True)
class AnswerText:
    """What an artifact keeps of a tokenizer.

    Attributes:
      prompt: what stands around a question.
      stop: ids that end an answer.
      pieces: the bytes of every id, each as the character of that number; "" for special ids.
    """

    prompt: Prompt
    stop: tuple[int, ...]
    pieces: tuple[str, ...]


def answer_text(tokenizer: Any, system: str = SYSTEM, question: str = QUESTION) -> AnswerText:
    """Return what an artifact keeps of a tokenizer (`moshijax.omni.prompt.load_tokenizer`).

    Args:
      tokenizer: of the text model.
      system, question: of the prompt, as the model was trained with it.
    """
    described = json.loads(tokenizer.to_str())
    special = {token["id"] for token in described["added_tokens"] if token["special"]}
    vocabulary = {number: piece for piece, number in tokenizer.get_vocab(with_added_tokens=True).items()}
    as_bytes = piece_bytes if "ByteLevel" in json.dumps(described) else _bytes_of_marks
    pieces = tuple(
        "" if number in special or number not in vocabulary else as_bytes(vocabulary[number]).decode("latin-1")
        for number in range(max(vocabulary) + 1)
    )
    stop = tuple(number for token in STOPS if (number := tokenizer.token_to_id(token)) is not None)
    return AnswerText(make_prompt(tokenizer, system, question), stop, pieces)


def _bytes_of_marks(piece: str) -> bytes:
    """Return the bytes of a piece of SentencePiece."""
    if len(piece) == 6 and piece.startswith("<0x"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace("\u2581", " ").encode()


def build(
    omni_model: tuple[OmniConfig, Any],
    vocoder_model: tuple[VocoderConfig, Any],
    text: AnswerText,
    out_dir: str | Path,
    platforms: Sequence[str] = ("cpu",),
    weights_dtype: str = "float32",
    *,
    tokens: int = TOKENS,
    omega: int = OMEGA,
    trim: bool = False,
    sampling_defaults: Mapping[str, float] | None = None,
    top_k_limit: int = 250,
    prefill_lengths: Sequence[int] = PREFILL_LENGTHS,
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda message: None,
) -> Path:
    """Export a LLaMA-Omni and its vocoder as one artifact.

    Args:
      omni_model, vocoder_model: config and parameters, in either layout.
      text: `answer_text` of the model's tokenizer.
      out_dir: the directory to write; it must not exist unless `overwrite`.
      platforms: any of cpu, cuda, tpu; none of them has to be present here.
      weights_dtype: one of `export.weights.WEIGHT_DTYPES`, how the model is stored. On cpu it is computed in float32
        in any case, elsewhere in the stored type, or in bfloat16 with int8 weights. The vocoder is float32.
      tokens: the longest answer, for which the caches have room.
      omega: units before a piece of sound is made, unless told otherwise.
      trim: the model was trained on embeddings of the recording alone, not on all of a padded clip.
      sampling_defaults: any of text_temperature and text_top_k; by default the most likely token is chosen.
      top_k_limit: the largest text_top_k that may be asked for.
      prefill_lengths: blocks in which a prompt is processed.
      overwrite: replace an artifact.
      progress: called with the name of every file before it is written.

    Raises:
      ConfigError: parts that do not fit each other, unknown platforms or types, or `out_dir` exists.
      DataError: as `export.weights.stored`.
      MoshijaxError: it cannot be written.
    """
    check_request(platforms, (1,))
    if weights_dtype not in layout.WEIGHT_DTYPES:
        raise ConfigError(f"weights_dtype={weights_dtype!r} must be one of {', '.join(layout.WEIGHT_DTYPES)}")
    (config, params), (voice, voice_params) = omni_model, vocoder_model
    rows = answer.speech_rows(config)
    _check(config, voice, text, tokens, omega)
    room = len(text.prompt.before) + rows + len(text.prompt.after) + tokens
    config = replace(
        config,
        text=replace(config.text, stack=replace(config.text.stack, context=room)),
        decoder=replace(config.decoder, stack=replace(config.decoder.stack, context=tokens * config.decoder.upsample)),
    )
    weights = layout.stored("omni", omni.abstract, config, params, weights_dtype)
    weights |= {name: np.asarray(value) for name, value in flatten(nn.meta.unbox(voice_params), "vocoder").items()}
    computed = {platform: layout.compute_dtype(platform, weights_dtype) for platform in platforms}
    functions = {
        platform: AnswerStep(config.with_dtype(dtype, dtype), voice, top_k_limit, tuple(prefill_lengths))
        for platform, dtype in computed.items()
    }
    top_k = min(top_k_limit, config.text.vocab)
    parts = ArtifactParts(
        functions=functions,
        weights=weights,
        compute_dtypes={
            platform: {str(value.dtype): layout.program_dtype(platform, str(value.dtype)) for value in weights.values()}
            for platform in platforms
        },
        pieces=text.pieces,
        description={
            "config": {"omni": to_json(config), "vocoder": to_json(voice), "policy": {"type": ANSWER}},
            "audio": {
                "sample_rate": SAMPLE_RATE,
                "frame_size": round(SAMPLE_RATE / FRAME_RATE),
                "frame_rate": FRAME_RATE,
            },
            "text": {"stop": list(text.stop)},
            "prompt": {
                "before": list(text.prompt.before),
                "after": list(text.prompt.after),
                "rows": rows,
                "row_samples": 2 * HOP * config.adapter.stacked,
                "trim": trim,
            },
            "answer": {"clip": answer.clip_samples(config), "tokens": tokens, "omega": omega},
            "voice": {
                "units": voice.units,
                "hop": voice.hop,
                "reach_units": voice.receptive_units,
                "reach_frames": voice.receptive_frames,
            },
            "sampling": {
                "defaults": {**SAMPLING, **(sampling_defaults or {})},
                "limits": {"text_temperature": [0, None], "text_top_k": [0, top_k]},
                "top_k_limit": top_k_limit,
            },
        },
    )
    return write(parts, out_dir, (1,), overwrite, progress)


def rebuild(
    source: str | Path,
    out_dir: str | Path,
    platforms: Sequence[str] | None = None,
    weights_dtype: str | None = None,
    *,
    top_k_limit: int | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> Path:
    """Export an artifact again from itself, for this jax; what is not given stays as it was.

    Raises:
      ConfigError: as `manifest.read` and `build`.
      DataError: as `manifest.check_file`, or its config is not of this version.
    """
    source = Path(source)
    manifest = manifests.read(source)
    try:
        config = from_json(OmniConfig, manifest["config"]["omni"], "config.omni")
        voice = from_json(VocoderConfig, manifest["config"]["vocoder"], "config.vocoder")
    except ConfigError as error:
        raise DataError(f"{source / manifests.MANIFEST}: {error}; export it from its source again") from None
    params = nested(dict(TensorFile(manifests.check_file(source, manifest, manifests.WEIGHTS))))
    said, sampled = manifest["prompt"], manifest["sampling"]
    prompt = Prompt(tuple(said["before"]), tuple(said["after"]))
    return build(
        (config, params["omni"]),
        (voice, params["vocoder"]),
        AnswerText(prompt, tuple(manifest["text"]["stop"]), tuple(manifests.read_pieces(source, manifest))),
        out_dir,
        platforms or manifest["platforms"],
        weights_dtype or layout.dtype_of(params["omni"]["decoder"]["output_proj"]["kernel"]),
        **{name: manifest["answer"][name] for name in ("tokens", "omega")},
        trim=said["trim"],
        sampling_defaults=sampled["defaults"],
        top_k_limit=sampled["top_k_limit"] if top_k_limit is None else top_k_limit,
        prefill_lengths=manifest["lengths"]["prefill"],
        progress=progress,
    )


def _check(config: OmniConfig, voice: VocoderConfig, text: AnswerText, tokens: int, omega: int) -> None:
    """Check that the parts fit each other.

    Raises:
      ConfigError: they do not.
    """
    vocab, ids = config.text.vocab, (*text.prompt.before, *text.prompt.after, *text.stop)
    if len(text.pieces) > vocab or max(ids) >= vocab:
        raise ConfigError(
            f"a tokenizer of {max(len(text.pieces), max(ids) + 1)} ids does not fit the text model, which has {vocab}; "
            "use the tokenizer of the text model"
        )
    if not text.stop:
        raise ConfigError(f"the tokenizer has none of {', '.join(STOPS)}: no answer would end; use that of a Llama 3")
    if voice.units != config.decoder.units:
        raise ConfigError(
            f"the vocoder has {voice.units} units, the speech decoder {config.decoder.units}; use the vocoder of these "
            "units"
        )
    if voice.sample_rate != SAMPLE_RATE:
        raise ConfigError(f"the vocoder speaks at {voice.sample_rate} Hz: must be {SAMPLE_RATE}, the rate of questions")
    if tokens < 1 or omega < 1:
        raise ConfigError(f"tokens={tokens}, omega={omega}: must be 1 or more")
