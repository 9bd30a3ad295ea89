"""The process that holds espeak-ng: JSON requests on stdin, one JSON reply a line on stdout.

Started by `moshijax.data.synthesis.run`; it exits when its input closes.
"""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import soundfile

from moshijax.data.synthesis.dialogue import dialogue_from_dict
from moshijax.data.synthesis.engine import Engine
from moshijax.data.synthesis.mixing import SAMPLE_RATE, mix
from moshijax.errors import MoshijaxError


def render(request: dict[str, Any]) -> dict[str, Any]:
    """Synthesises one dialogue to `request['audio']` and the sidecar beside it; both appear only when complete."""
    dialogue = dialogue_from_dict(request["dialogue"])
    audio_path = Path(request["audio"])
    with Engine(request["seed"]) as engine:
        audio, sidecar = mix(dialogue, engine.speak, request["seed"])
    sidecar["source"] = {"recipe": request["fingerprint"]}
    temporary = audio_path.with_suffix(f".{os.getpid()}.part")
    try:
        # libsndfile hides why a write failed, so it writes to memory.
        content = io.BytesIO()
        soundfile.write(content, audio, SAMPLE_RATE, format="WAV", subtype="PCM_16")
        temporary.write_bytes(content.getbuffer())
        os.replace(temporary, audio_path)
        temporary.write_text(json.dumps(sidecar, ensure_ascii=False), encoding="utf-8")
        os.replace(temporary, audio_path.with_suffix(".json"))
    finally:
        temporary.unlink(missing_ok=True)
    return {"duration": len(audio) / SAMPLE_RATE, "words": len(sidecar["alignments"])}


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever the library prints must not mix with the replies
    for line in sys.stdin:
        try:
            reply = render(json.loads(line))
        except (MoshijaxError, OSError) as error:
            reply = {"error": str(error), "fatal": isinstance(error, OSError) or error.exit_code != 3}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
