"""`/v1/telephony`: media streams of telephone platforms, G.711 in packets of 20 ms, as JSON over a WebSocket.

The messages are those of Twilio's bidirectional Media Streams, which other platforms speak too:

    platform: {"event": "connected", ...}
    platform: {"event": "start", "streamSid": ID, "start": {"mediaFormat": {"encoding": "audio/x-mulaw", ...},
                                                            "customParameters": {"seed": "7", ...}}}
    platform: {"event": "media", "streamSid": ID, "media": {"track": "inbound", "payload": BASE64}}
    server:   {"event": "media", "streamSid": ID, "media": {"payload": BASE64}}
    platform: {"event": "stop", ...}

They have no word for an error: it goes to the log, and where it ends the call its reason is that of the close. Text of
the model is not sent.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
from typing import Any

import numpy as np
from aiohttp import web

from moshijax import g711
from moshijax.errors import ConfigError
from moshijax.runtime import Artifact
from moshijax.serve import asked
from moshijax.serve.door import refusal
from moshijax.serve.resample import Resampler
from moshijax.serve.session import Event, Said
from moshijax.serve.socket import Protocol

#: Without meaning here: greetings, digits, and marks that were reached.
IGNORED = ("connected", "dtmf", "mark")
LAWS = {f"audio/x-{law.name}": law for law in (g711.MU_LAW, g711.A_LAW)}

log = logging.getLogger("moshijax.serve")


class Telephony(Protocol):
    """One call of a telephone platform."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        rate = self.artifact.sample_rate
        self._up, self._down = Resampler(g711.RATE, rate), Resampler(rate, g711.RATE)
        self._law = g711.MU_LAW
        self._stream: str | None = None  # its id, once it has started
        self._packets = b""  # encoded, less than a packet

    @staticmethod
    def check(request: web.Request, artifact: Artifact) -> web.Response | None:
        """Refuse models that do not converse in sound."""
        if artifact.hears and artifact.speaks:
            return None
        return refusal(400, "use", "this protocol is for models that hear and speak; use /v1/realtime")

    # ---- to the platform -----------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Wait for the platform to begin."""

    async def tell(self, event: Event) -> None:
        """Send what the model said, one message per packet."""
        if not isinstance(event, Said) or event.pcm is None:
            return
        data = self._packets + self._law.encode(self._down(event.pcm))
        whole = len(data) - len(data) % g711.PACKET
        self._packets = data[whole:]
        for start in range(0, whole, g711.PACKET):
            payload = base64.b64encode(data[start : start + g711.PACKET]).decode()
            await self.send(json.dumps({"event": "media", "streamSid": self._stream, "media": {"payload": payload}}))

    async def complain(self, code: str, message: str, field: str | None = None) -> None:
        """Log the error."""
        log.warning("call %s: %s: %s", self.session.id, code, message)

    # ---- from the platform ---------------------------------------------------------------------------------------

    async def take_bytes(self, message: bytes) -> None:
        """Refuse it."""
        await self.mistake("invalid_json", "a media stream has no binary messages")

    async def take_text(self, message: str) -> None:
        """Take one message."""
        try:
            event = json.loads(message)
        except (ValueError, RecursionError):
            return await self.mistake("invalid_json", "the message is not JSON")
        kind = event.get("event") if isinstance(event, dict) else None
        try:
            if kind == "start":
                await self._start(event)
            elif kind == "media":
                self._hear(event)
            elif kind == "stop":
                self.session.close("complete")
            elif kind not in IGNORED:
                raise ConfigError(f"unknown event {str(kind)[:64]!r}; known: start, media, stop, {', '.join(IGNORED)}")
        except ConfigError as error:
            await self.mistake("invalid_value", str(error))

    async def _start(self, message: dict[str, Any]) -> None:
        if self._stream is not None:
            raise ConfigError(f"the stream {self._stream} has started already; open a connection for each")
        start, stream = _part(message, "start"), message.get("streamSid")
        if not isinstance(stream, str) or not 0 < len(stream) <= 128:
            raise ConfigError("start needs a `streamSid` of 1 to 128 characters")
        form = _part(start, "mediaFormat")
        law = LAWS.get(str(form.get("encoding")))
        if law is None or form.get("sampleRate") != g711.RATE or form.get("channels") != 1:
            raise ConfigError(
                f"mediaFormat {json.dumps(form)[:128]} cannot be used; one channel of {' or '.join(LAWS)} at "
                f"{g711.RATE} Hz can"
            )
        wanted = _parameters(start.get("customParameters"))
        asked.check(self.artifact, self.settings, wanted)
        options = await self.in_thread(asked.options_of, self.artifact, self.settings, wanted)
        self._law, self._stream = law, stream
        self.session.open(options)

    def _hear(self, message: dict[str, Any]) -> None:
        if self._stream is None:
            raise ConfigError("media came before start")
        media = _part(message, "media")
        if media.get("track", "inbound") != "inbound":
            raise ConfigError(f"track {str(media['track'])[:64]!r} is not heard; stream the inbound track alone")
        try:
            data = base64.b64decode(media.get("payload"), validate=True)
        except (binascii.Error, ValueError, TypeError):
            raise ConfigError("media needs a `payload` of base64") from None
        samples, dropped = self.newest(np.frombuffer(data, np.uint8), g711.RATE)
        self.session.hear(self._up(self._law.decode(samples)), dropped)


def _part(message: dict[str, Any], name: str) -> dict[str, Any]:
    part = message.get(name)
    if not isinstance(part, dict):
        raise ConfigError(f"the message needs an object `{name}`")
    return part


def _parameters(given: Any) -> dict[str, Any]:
    """Return the parameters of a stream, which are all strings, as what they stand for."""
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise ConfigError("customParameters must be an object")
    return {key: value if key in asked.TEXTS else _number(value) for key, value in given.items()}


def _number(value: Any) -> Any:
    for kind in (int, float):
        try:
            return kind(value) if isinstance(value, str) and len(value) < 32 else value
        except ValueError:
            pass
    return value
