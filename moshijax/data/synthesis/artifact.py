"""Speech by our own models: an artifact whose use is synthesis. It knows when it speaks each word, to 80 ms."""

from __future__ import annotations

from functools import cache
from typing import Any

from moshijax.data.synthesis.clips import Clip
from moshijax.data.synthesis.voices import ArtifactVoice
from moshijax.errors import ConfigError, DataError
from moshijax.runtime import artifact, prompt, script
from moshijax.runtime import conditions as condition_values
from moshijax.runtime.play import speak
from moshijax.runtime.rows import CallOptions, Rows


class ArtifactSynthesizer:
    """An artifact; see `clips.Synthesizer`."""

    def sound(self, text: str, voice: ArtifactVoice, seed: int) -> Clip:
        """Speak one utterance in one turn."""
        rows = _rows(voice.folder, bool(voice.prompt))
        options = CallOptions(seed, None, _conditions(voice), _prompt(voice))
        [call], _ = speak(rows, [script.words(rows.artifact, " ".join(text.split()))], [options])
        if not call.complete:
            raise DataError(f"{voice.folder} did not finish {text[:40]!r} in its time: write it in other words")
        return Clip(call.pcm, rows.artifact.sample_rate, tuple(call.words))


@cache
def _rows(folder: str, prompts: bool) -> Rows:
    """Return rows of an artifact, once per process.

    Raises:
      ConfigError: its use is not synthesis.
    """
    loaded = artifact.load(folder)
    if loaded.policy["type"] != "Synthesis":
        raise ConfigError(
            f"{folder} is for {loaded.policy['type']}, not for Synthesis: export a model that speaks texts"
        )
    return Rows(loaded, min(loaded.manifest["batches"]), prompts=prompts)


@cache
def _conditions(voice: ArtifactVoice) -> dict[str, Any]:
    return condition_values.parse(
        _rows(voice.folder, bool(voice.prompt)).artifact.manifest["conditions"], voice.conditions
    )


@cache
def _prompt(voice: ArtifactVoice) -> prompt.Prompt | None:
    if not voice.prompt:
        return None
    loaded = _rows(voice.folder, True).artifact
    return prompt.make(loaded, prompt.read_voice(voice.prompt, loaded.sample_rate), None)
