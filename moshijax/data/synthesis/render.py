"""A dialogue to a recording and its sidecar; called in a process of its own, which then holds espeak-ng."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

from moshijax import optional
from moshijax.data.synthesis.dialogue import Dialogue
from moshijax.data.synthesis.mixing import SAMPLE_RATE, mix


def render(dialogue: Dialogue, seed: int, audio: Path, fingerprint: str) -> dict[str, Any]:
    """Writes the recording `audio` and the sidecar beside it; both appear only when complete.

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
    temporary = audio.with_suffix(f".{os.getpid()}.part")
    try:
        # libsndfile hides why a write failed, so it writes to memory.
        content = io.BytesIO()
        soundfile.write(content, samples, SAMPLE_RATE, format="WAV", subtype="PCM_16")
        temporary.write_bytes(content.getbuffer())
        os.replace(temporary, audio)
        temporary.write_text(json.dumps(sidecar, ensure_ascii=False), encoding="utf-8")
        os.replace(temporary, audio.with_suffix(".json"))
    finally:
        temporary.unlink(missing_ok=True)
    return {"duration": len(samples) / SAMPLE_RATE, "words": len(sidecar["alignments"])}
