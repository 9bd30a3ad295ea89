"""An artifact of calls on this machine: its programs, its audio, its text and the rows of its grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from moshijax import optional
from moshijax.errors import ConfigError
from moshijax.runtime import conditions, manifest
from moshijax.runtime.programs import Programs, opened
from moshijax.tokens import UNGENERATED, ZERO


def load(path: str | Path, platform: str | None = None, verify: bool = True) -> Artifact:
    """Load an artifact for this machine: its weights go onto the device, its programs are compiled when asked for.

    Args:
      path: the directory that `moshijax export` wrote.
      platform: cpu, cuda or tpu; by default what jax finds here.
      verify: False skips the sha256 of the files, which takes seconds per 10 GB; sizes are always compared.

    Raises:
      ConfigError: not an artifact, or not made for this platform or version of jax.
      DataError: a file is missing or damaged.
    """
    path = Path(path)
    description = manifest.read(path)
    if description["config"]["policy"]["type"] == manifest.ANSWER:
        raise ConfigError(
            f"{path} answers questions one by one and takes no calls; run it with `moshijax run`, or "
            "moshijax.runtime.answers.load"
        )
    return Artifact(path, description, opened(path, description, platform), verify)


class Artifact(Programs):
    """A loaded artifact: one set of weights on the device, whatever number of batch sizes its programs serve.

    Attributes:
      sample_rate, frame_size, frame_seconds: of its audio; a frame is one step.
      max_delay: frames between a column of the grid being heard and returned.
      streams: the rows of the grid, as `artifact.json` describes them.
      policy: what the model is used for, as `artifact.json` describes it.
      hears, speaks, takes_words: whether a step takes PCM in, gives PCM out, and takes words to say.
      encodes: whether a call can begin with a voice.
      constants: what prompts encode once and keep, such as the codes of silence.
    """

    compared = ("step",)
    sampled = "step"

    def __init__(self, path: Path, description: dict[str, Any], platform: str, verify: bool = True):
        super().__init__(path, description, platform, verify)
        self.sample_rate: int = description["audio"]["sample_rate"]
        self.frame_size: int = description["audio"]["frame_size"]
        self.frame_seconds = self.frame_size / self.sample_rate
        self.max_delay: int = description["layout"]["max_delay"]
        self.streams: list[dict[str, Any]] = description["layout"]["streams"]
        self.policy: dict[str, Any] = description["config"]["policy"]
        self.hears = "pcm" in description["inputs"]["step"]
        self.speaks = "pcm" in description["outputs"]["step"]
        self.takes_words = "word" in description["inputs"]["step"]
        self.encodes = "encode" in description["inputs"]
        self.conditions = conditions.load_defaults(path, description, verify) if description["conditions"] else {}
        self.constants: dict[Any, np.ndarray] = {}
        self._tokenizer: Any = None

    def tokenize(self, text: str) -> list[int]:
        """Return the pieces of a text.

        Raises:
          ConfigError: the artifact has no tokenizer.
          MoshijaxError: sentencepiece is not installed.
        """
        if manifest.TOKENIZER not in self.manifest["files"]:
            raise ConfigError(f"{self.path} has no tokenizer, it takes no text; export it again with --tokenizer")
        if self._tokenizer is None:
            sentencepiece = optional.load("sentencepiece")
            self._tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(self.file(manifest.TOKENIZER)))
        return list(self._tokenizer.encode(text))

    def _neutral(self, name: str) -> float:
        """Return the value of an input that asks for nothing."""
        if name in ("given", "force_text", "force_codes", "voice"):
            return UNGENERATED
        return ZERO if name in ("word", "word_ahead") else super()._neutral(name)
