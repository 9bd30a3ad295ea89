"""A recogniser of our own: an exported artifact whose use is recognition, run as `moshijax run` does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import moshijax
from moshijax import optional
from moshijax.data.recognizer import TimedWord
from moshijax.data.records import digest
from moshijax.errors import ConfigError
from moshijax.runtime import artifact as artifacts
from moshijax.runtime import manifest
from moshijax.runtime.play import play
from moshijax.runtime.rows import CallOptions, Rows
from moshijax.runtime.text import words_of

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float


class ArtifactRecognizer:
    """A recognition artifact; see `moshijax.data.recognizer.Recognizer`.

    A piece is heard as a call of its own, text sampled at temperature 0, with the silence around it and the time after
    it that the artifact asks for. Words have no scores.

    Args:
      path: folder that `moshijax export` wrote.
      platform: cpu, cuda or tpu.

    Raises:
      ConfigError: it is no artifact for recognition, or not one for this platform.
      DataError: a file is missing or damaged.
    """

    def __init__(self, path: Path, platform: str = "cpu") -> None:
        use = manifest.read(path)["config"]["policy"]["type"]
        if use != "Recognition":
            raise ConfigError(f"{path} is an artifact for {use.lower()}: name one that was exported for recognition")
        self.artifact = artifacts.load(path, platform)
        self._rows = Rows(self.artifact, min(self.artifact.manifest["batches"]))
        self.version = f"moshijax {moshijax.__version__}"
        self.settings = {
            "kind": "artifact", "files": digest(self.artifact.manifest["files"]), "temperature": 0.0,
        }  # fmt: skip

    def words(self, samples: Float[np.ndarray, " N"], rate: int) -> list[TimedWord]:
        """Return the words of a piece; see `Recognizer`."""
        if rate != self.artifact.sample_rate:
            samples = optional.load("soxr").resample(samples, rate, self.artifact.sample_rate)
        [call], _ = play(self._rows, [samples], [CallOptions(0, {"text_temperature": 0.0})])
        last = len(samples) / self.artifact.sample_rate
        found = words_of(self.artifact, call.text_tokens, call.text_delay)
        # A piece cut short may be completed by text after the end of its sound.
        return [TimedWord(word, min(start, last), min(end, last), None) for word, start, end in found]
