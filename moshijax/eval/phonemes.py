"""The ABX error of a codec's first level, on recordings whose sidecars list phonemes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from moshijax import codec
from moshijax.codec import MimiConfig
from moshijax.data import audio
from moshijax.data.manifest import Item
from moshijax.data.transcript import read_sidecar
from moshijax.eval.abx import AbxResult, Token, abx, cut, triphones
from moshijax.nn.vq import codebook_tables


def phonemes_of(item: Item) -> list | None:
    """Return the list "phonemes" [symbol, [start, end], speaker] of a recording's sidecar, if it has one."""
    if not item.sidecar.is_file():
        return None
    found = read_sidecar(item.sidecar).get("phonemes")
    return found if isinstance(found, list) else None


def measure_abx(config: MimiConfig, params: dict[str, Any], items: Sequence[Item]) -> AbxResult:
    """Return the ABX error of the first level, quantised, on two-channel recordings.

    Recordings without phonemes in their sidecars are left out.

    Raises:
      DataError: a recording or sidecar cannot be used.
    """
    table = np.asarray(codebook_tables(params["codebooks"]["quantizer"]["semantic"])[0])
    layout, tokens = codec.inference_layout(config, params), []
    for item in items:
        places = triphones(phonemes_of(item) or ())
        if not places:
            continue
        signal = audio.read(item.audio, config.sample_rate)
        for label in sorted({place.speaker for place in places}):
            channel = 0 if label == "SPEAKER_MAIN" else 1
            frames = table[np.asarray(codec.encode(config, layout, signal[None, :, channel], num_codebooks=1))[0, 0]]
            for place in places:
                if place.speaker == label:
                    own = place._replace(speaker=f"{item.id} {label}")
                    tokens.append(Token(own, cut(place, frames, config.frame_rate)))
    return abx(tokens)
