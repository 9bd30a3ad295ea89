"""From recordings to grids to batches. Nothing is imported until it is used."""

from __future__ import annotations

import importlib
from typing import Any

_PLACES = {
    "AudioData": "windows",
    "GridData": "grids",
    "TextData": "packed_text",
    "TextPlacement": "interleave",
    "Tokenizer": "text",
    "audio_batches": "windows",
    "grid_batches": "grids",
    "place_text": "interleave",
    "read_manifest": "manifest",
    "synthesize": "synthesis",
    "text_batches": "packed_text",
    "train_tokenizer": "text",
}

__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(f"moshijax.data.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'moshijax.data' has no attribute {name!r}")
