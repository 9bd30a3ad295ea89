"""A dialogue to a recording and its sidecar; called in a separate process, which then holds the synthesisers."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from moshijax import files, optional
from moshijax.data.synthesis.clips import ClipSpeaker, Synthesizer
from moshijax.data.synthesis.dialogue import Dialogue
from moshijax.data.synthesis.hearing import Listening, check
from moshijax.data.synthesis.mixing import SAMPLE_RATE, mix
from moshijax.data.synthesis.speech import Speaker, Speech
from moshijax.data.synthesis.voices import CosyVoice, EndpointVoice, EspeakVoice, HibariVoice, Voice


@contextmanager
def speaking(seed: int, clips: Path, listening: Listening | None = None) -> Iterator[Callable[[str, Voice], Speech]]:
    """Yield `speak(text, voice)`, which checks what it returns; a voice's synthesiser is opened when it first speaks.

    Args:
      seed: of the synthesisers.
      clips: folder for what may be asked for once only.
      listening: hears every clip again; None: only length and level are checked.
    """
    speakers: dict[type, Speaker] = {}

    def speak(text: str, voice: Voice) -> Speech:
        kind = type(voice)
        if kind not in speakers:
            speakers[kind] = opened.enter_context(closing(_speaker(voice, seed, clips, listening)))
        speech = speakers[kind].speak(text, voice)
        if isinstance(voice, EspeakVoice | HibariVoice):  # (others have been checked before their words had times)
            check(speech.samples, speech.sample_rate, text)
            if listening is not None:
                listening.hear(speech.samples, speech.sample_rate, text)
        return speech

    with ExitStack() as opened:
        yield speak


def _speaker(voice: Voice, seed: int, clips: Path, listening: Listening | None) -> Speaker:
    if isinstance(voice, EspeakVoice):
        from moshijax.data.synthesis.espeak import Espeak

        return Espeak(seed)
    if isinstance(voice, HibariVoice):
        from moshijax.data.synthesis.hibari import Hibari

        return Hibari(seed)
    return ClipSpeaker(_synthesizer(voice), seed, clips, listening)


def _synthesizer(voice: Voice) -> Synthesizer:
    if isinstance(voice, EndpointVoice):
        from moshijax.data.synthesis.remote import Remote

        return Remote()
    if isinstance(voice, CosyVoice):
        from moshijax.data.synthesis.cosyvoice import CosyVoiceSynthesizer

        return CosyVoiceSynthesizer()
    from moshijax.data.synthesis.artifact import ArtifactSynthesizer

    return ArtifactSynthesizer()


def render(
    dialogue: Dialogue, seed: int, audio: Path, fingerprint: str, clips: Path, listening: Listening | None
) -> dict[str, Any]:
    """Write the recording `audio` and the sidecar beside it; both appear only when complete.

    Returns:
      {"duration": seconds, "words": their number}

    Raises:
      DataError: the dialogue cannot be spoken.
      MoshijaxError: the synthesiser of a voice is not installed.
      OSError: a file could not be written.
    """
    soundfile = optional.load("soundfile")
    with speaking(seed, clips, listening) as speak:
        samples, sidecar = mix(dialogue, speak, seed)
    sidecar["source"] = {"recipe": fingerprint}
    # libsndfile hides why a write failed, so it writes to memory.
    content = io.BytesIO()
    soundfile.write(content, samples, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    files.write(audio, content.getvalue())
    files.write(audio.with_suffix(".json"), json.dumps(sidecar, ensure_ascii=False))
    return {"duration": len(samples) / SAMPLE_RATE, "words": len(sidecar["alignments"])}
