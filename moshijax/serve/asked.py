"""What a caller asks for before a call begins: seed, sampling and prompts, by name."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Mapping
from typing import Any

from moshijax.errors import ConfigError
from moshijax.runtime import Artifact, CallOptions, prompt
from moshijax.runtime.checks import check_sampling, split_seed
from moshijax.serve.settings import Settings

TEXTS = ("text_prompt", "voice_prompt")


def check(artifact: Artifact, settings: Settings, asked: Mapping[str, Any]) -> None:
    """Check what a caller asks for.

    Raises:
      ConfigError: an unknown name, or a value of the wrong type or out of range.
    """
    for key, value in asked.items():
        if key == "seed":
            if type(value) is not int:
                raise ConfigError("seed must be a whole number")
            split_seed(value)
        elif key == "text_prompt":
            limit = settings.text_prompt
            if not isinstance(value, str) or not 0 < len(value) <= limit:
                raise ConfigError(f"text_prompt must be a text of 1 to {limit} characters")
        elif key == "voice_prompt":
            if not isinstance(value, str) or value not in settings.prompts.voices:
                known = ", ".join(sorted(settings.prompts.voices)) or "none"
                raise ConfigError(f"voice_prompt must be the name of a voice of this server; there are: {known}")
        elif isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
            raise ConfigError(f"{key[:64]} must be a number")
        elif artifact.manifest["inputs"][artifact.sampled].get(key, {}).get("dtype") == "int32" and value != int(value):
            raise ConfigError(f"{key} must be a whole number, not {value}")
    check_sampling(artifact, sampling_of(asked))


def sampling_of(asked: Mapping[str, Any]) -> dict[str, float]:
    """Return the part that is sampling."""
    return {key[:64]: value for key, value in asked.items() if key not in ("seed", *TEXTS)}


def options_of(artifact: Artifact, settings: Settings, asked: Mapping[str, Any]) -> CallOptions:
    """Return how a call begins; the seed is drawn if none was asked for. A prompt takes milliseconds to make.

    Args:
      artifact: that answers.
      settings: of the server, which name the voices.
      asked: checked.

    Raises:
      ConfigError: a prompt that the artifact cannot take.
    """
    voice = settings.prompts.voices.get(asked.get("voice_prompt"))
    begins = prompt.make(artifact, voice, asked.get("text_prompt"))
    return CallOptions(asked.get("seed", secrets.randbits(32)), sampling_of(asked), prompt=begins)
