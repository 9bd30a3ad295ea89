"""`/api/chat`: the binary protocol of the PyTorch package `moshi`, so that its clients connect unchanged.

Every message is binary and begins with its kind; sound is one Ogg stream of Opus at 24 kHz in each direction (`rust/
protocol.md` and `moshi/moshi/server.py` of kyutai-labs/moshi).
"""

from __future__ import annotations

import math
import secrets
from typing import Any

import numpy as np
import sphn
from aiohttp import web

from moshijax.errors import ConfigError
from moshijax.runtime import Artifact, CallOptions
from moshijax.runtime.checks import check_sampling, split_seed
from moshijax.serve.door import refusal
from moshijax.serve.resample import Resampler
from moshijax.serve.session import Ended, Event, Said, Started
from moshijax.serve.socket import Protocol

HANDSHAKE, AUDIO, TEXT, CONTROL, METADATA, ERROR, PING = range(7)
RATE = 24000
PACKET = 960  # samples: an Opus packet of 40 ms

#: Names of the protocol's query parameters, and ours. Those that are missing are known to its clients, and not used.
QUERY = {
    "text_temperature": ("text_temperature", float),
    "text_topk": ("text_top_k", int),
    "audio_temperature": ("temperature", float),
    "audio_topk": ("top_k", int),
    "pad_mult": ("pad_bonus", float),
}
SEEDS = ("audio_seed", "text_seed")


def options_of(artifact: Artifact, query: dict[str, str]) -> CallOptions:
    """Return how a call begins, from the parameters of its request.

    Raises:
      ConfigError: a value that is no number, or out of range.
    """
    sampling: dict[str, float] = {}
    for name, (ours, kind) in QUERY.items():
        if name in query:
            sampling[ours] = _number(name, query[name], kind)
            try:
                check_sampling(artifact, {ours: sampling[ours]})
            except ConfigError as error:
                raise ConfigError(str(error).replace(ours, name, 1)) from None
    # (the protocol's clients send -1 or nothing for "any")
    seeds = [_number(name, query[name], int) for name in SEEDS if name in query]
    seed = next((seed for seed in seeds if seed >= 0), secrets.randbits(32))
    split_seed(seed)
    return CallOptions(seed, sampling)


def _number(name: str, text: str, kind: type) -> Any:
    try:
        value = kind(text)
        if len(text) < 32 and math.isfinite(value):
            return value
    except ValueError:
        pass
    raise ConfigError(f"{name}={text[:32]} must be a number")


class Moshi(Protocol):
    """One call in the protocol of Moshi."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self._options = options_of(self.artifact, dict(self.request.query))
        self._reader, self._writer = sphn.OpusStreamReader(RATE), sphn.OpusStreamWriter(RATE)
        self._down, self._up = Resampler(RATE, self.artifact.sample_rate), Resampler(self.artifact.sample_rate, RATE)
        self._left = np.zeros(0, np.float32)  # less than a packet

    @staticmethod
    def check(request: web.Request, artifact: Artifact) -> web.Response | None:
        """Refuse parameters that cannot be used, and models that do not converse in sound."""
        if not (artifact.hears and artifact.speaks):
            return refusal(400, "use", "this protocol is for models that hear and speak; use /v1/realtime")
        try:
            options_of(artifact, dict(request.query))
        except ConfigError as error:
            return refusal(400, "invalid_value", str(error))
        return None

    async def begin(self) -> None:
        """Let the call begin; the caller is told when it is heard."""
        self.session.open(self._options)

    async def tell(self, event: Event) -> None:
        """Send what the protocol has a message for."""
        if isinstance(event, Started):
            await self.send(bytes([HANDSHAKE]))
        elif isinstance(event, Said):
            if event.pcm is not None and (ogg := await self.in_thread(self._encode, event.pcm)):
                await self.send(bytes([AUDIO]) + ogg)
            if event.text:
                await self.send(bytes([TEXT]) + event.text.encode())
        elif isinstance(event, Ended) and event.message:
            await self.complain(event.reason, event.message)

    async def complain(self, code: str, message: str, field: str | None = None) -> None:
        """Send an error."""
        await self.send(bytes([ERROR]) + message.encode())

    async def take_text(self, message: str) -> None:
        """Refuse: the protocol has no text frames."""
        await self.mistake("text", "this protocol takes binary messages alone")

    async def take_bytes(self, message: bytes) -> None:
        """Take sound; empty messages and other kinds are ignored, as the protocol demands."""
        if not message or message[0] != AUDIO:
            return
        try:
            pcm = await self.in_thread(self._reader.append_bytes, message[1:])
        except ValueError as error:
            # The reader is lost in the stream; a new one waits for the next beginning of one.
            self._reader = sphn.OpusStreamReader(RATE)
            return await self.mistake("opus", f"the sound is no Ogg stream of Opus: {error}")
        if len(pcm):
            newest, dropped = self.newest(pcm, RATE)
            self.session.hear(self._down(newest), dropped)

    def _encode(self, pcm: np.ndarray) -> bytes:
        """Return the Ogg pages of a frame, which is in packets that Opus allows."""
        stream = np.concatenate([self._left, self._up(pcm)])
        whole = len(stream) - len(stream) % PACKET
        self._left = stream[whole:]
        return b"".join(self._writer.append_pcm(packet) for packet in stream[:whole].reshape(-1, PACKET))
