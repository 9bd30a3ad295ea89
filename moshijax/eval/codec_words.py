"""Words that a recogniser hears in recordings through a codec, by the number of codebooks."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moshijax import codec
from moshijax.data.manifest import read_manifest
from moshijax.data.recognizer import SAMPLE_RATE
from moshijax.errors import DataError
from moshijax.eval.evaluation import ProgressFn, silent
from moshijax.eval.heard import with_words
from moshijax.eval.word_errors import normalize, word_errors
from moshijax.runtime import audio

if TYPE_CHECKING:
    from moshijax.codec import MimiConfig
    from moshijax.data.recognizer import Whisper


def errors(
    config: MimiConfig,
    params: dict[str, Any],
    counts: tuple[int, ...],
    manifest: str | Path,
    recognizer: Whisper,
    most: int,
    progress: ProgressFn = silent,
) -> dict[str, dict[str, tuple[float, float]]]:
    """Return the wrong words and the words of every recording: for "recording", and for "<n>_codebooks".

    Args:
      config, params: of the codec.
      counts: numbers of codebooks to decode from.
      manifest: of recordings whose left channel has words in a sidecar.
      recognizer: that hears whole channels.
      most: recordings, the first ones with words.
      progress: told the recordings heard.

    Raises:
      DataError: no recording has words.
    """
    items = list(islice(with_words(read_manifest(manifest).items), most))
    if not items:
        raise DataError(f"{manifest}: no transcript has a word of the model's speaker, so there is nothing to hear")
    params = codec.inference_layout(config, params)
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for number, (item, said, recording) in enumerate(items):
        clips = {"recording": (recording, SAMPLE_RATE)}
        pcm = audio.read_channel(item.audio, config.sample_rate, "left")
        codes = codec.encode(config, params, pcm[None])
        for n in counts:
            decoded = np.asarray(codec.decode(config, params, codes[:, :n]))[0, : len(pcm)]
            clips[f"{n}_codebooks"] = decoded, config.sample_rate
        words = normalize(said)
        for what, (clip, rate) in clips.items():
            wrong = word_errors(words, normalize(recognizer.hear(clip, rate)))
            found.setdefault(what, {})[item.id] = float(wrong), float(len(words))
        progress(number + 1, len(items), "recordings heard")
    return found
