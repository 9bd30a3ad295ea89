"""A dialogue to a recording and its sidecar; called in a separate process, which then holds espeak-ng."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from moshijax import files, optional
from moshijax.data.synthesis.dialogue import Dialogue
from moshijax.data.synthesis.mixing import SAMPLE_RATE, mix


def render(dialogue: Dialogue, seed: int, audio: Path, fingerprint: str) -> dict[str, Any]:
    """Write the recording `audio` and the sidecar beside it; both appear only when complete.

    Returns:
      {"duration": seconds, "words": their number}

    Raises:
      DataError: the dialogue cannot be spoken.
      MoshijaxError: espeak-ng is not installed.
      OSError: a file could not be written.
    """
    from moshijax.data.synthesis.engine import Engine

    soundfile = optional.load("soundfile")
    with Engine(seed) as engine:
        samples, sidecar = mix(dialogue, engine.speak, seed)
    sidecar["source"] = {"recipe": fingerprint}
    # libsndfile hides why a write failed, so it writes to memory.
    content = io.BytesIO()
    soundfile.write(content, samples, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    files.write(audio, content.getvalue())
    files.write(audio.with_suffix(".json"), json.dumps(sidecar, ensure_ascii=False))
    return {"duration": len(samples) / SAMPLE_RATE, "words": len(sidecar["alignments"])}
