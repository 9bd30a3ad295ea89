"""Speech from an HTTP end-point of the OpenAI style: `POST URL/audio/speech`.

The request is {"model", "input", "voice", "response_format": "wav", "speed"}, as in OpenAI's reference of the API; many
servers take it, those of Kokoro, Chatterbox, vLLM and LocalAI among them. The reply is a sound file. It has no times of
words, which a recogniser finds afterwards.
"""

from __future__ import annotations

import io

from moshijax import optional
from moshijax.data.endpoint import Endpoint
from moshijax.data.synthesis.clips import Clip
from moshijax.data.synthesis.voices import EndpointVoice
from moshijax.errors import MoshijaxError


class Remote:
    """A synthesiser behind HTTP; see `clips.Synthesizer`."""

    def sound(self, text: str, voice: EndpointVoice, seed: int) -> Clip:
        """Ask for a clip; the seed is not used, since the end-point takes none."""
        body = {
            "model": voice.model, "input": text, "voice": voice.voice, "response_format": "wav", "speed": voice.speed,
        }  # fmt: skip
        content = Endpoint(voice.url, voice.key).post("audio/speech", body)
        soundfile = optional.load("soundfile")
        try:
            samples, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise MoshijaxError(
                f"{voice.url} answered with {len(content)} bytes that are no sound ({error}), {content[:60]!r}: it "
                "must know the response format wav"
            ) from None
        return Clip(samples[:, 0], rate)
