"""`/v1/realtime`: JSON events both ways, in the manner of realtime APIs; docs/protocol.md describes them."""

from __future__ import annotations

import base64
import binascii
import json
import secrets
import time
from collections.abc import Awaitable
from typing import Any

import numpy as np

import moshijax
from moshijax.errors import ConfigError, MoshijaxError
from moshijax.runtime import Artifact, manifest, script
from moshijax.runtime.checks import check_sampling
from moshijax.serve import asked
from moshijax.serve.resample import Resampler
from moshijax.serve.session import Dropped, Ended, Event, Interrupted, Said, Started, Turn
from moshijax.serve.settings import Settings
from moshijax.serve.socket import Protocol

VERSION = 1
RATE = 24000  # of all audio on this socket, whatever the model's is
AUDIO = ("base64", "binary")


def describe(artifact: Artifact, settings: Settings) -> dict[str, Any]:
    """Return what callers may know of the model and of what they can ask for, as JSON values."""
    sampling = artifact.manifest["sampling"]
    return {
        "model": artifact.path.name,
        "version": moshijax.__version__,
        "protocol": VERSION,
        "sample_rate": RATE,
        "model_sample_rate": artifact.sample_rate,
        "frame_ms": round(1000 * artifact.frame_seconds),
        "delay_ms": round(1000 * artifact.frame_seconds * artifact.max_delay),
        "use": artifact.policy["type"].lower(),
        "audio_in": artifact.hears,
        "audio_out": artifact.speaks,
        "text_in": artifact.takes_words,
        "sampling": {
            name: {"default": sampling["defaults"][name], "min": low, "max": high}
            for name, (low, high) in sampling["limits"].items()
        },
        "voice_prompts": sorted(settings.prompts.voices),
        "text_prompts": dict(sorted(settings.prompts.texts.items())),
        "text_prompt": artifact.encodes and manifest.TOKENIZER in artifact.manifest["files"],
        "text_limit": settings.text_prompt,
        "call_seconds": settings.call_seconds,
    }


class Realtime(Protocol):
    """One call in JSON events."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self._asked: dict[str, Any] = {}  # what the caller has set before the call began
        self._binary = False
        self._down, self._up = Resampler(RATE, self.artifact.sample_rate), Resampler(self.artifact.sample_rate, RATE)

    # ---- to the caller -------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Say what the model is and what can be set."""
        session = {"id": self.session.id, **describe(self.artifact, self.settings)}
        await self._event("session.created", session=session)

    async def tell(self, event: Event) -> None:
        """Send one or two events for one of the session's."""
        if isinstance(event, Said):
            await self._say(event)
        elif isinstance(event, Started):
            await self._event("session.started", session=self._settings())
        elif isinstance(event, Dropped):
            await self._event("input_audio_buffer.dropped", frames=event.frames)
        elif isinstance(event, Turn):
            await self._event("turn.changed", phase=event.phase)
        elif isinstance(event, Interrupted):
            await self._event("response.cancelled")
        elif isinstance(event, Ended):
            counts, frame = self.session.counts, self.artifact.frame_seconds
            if event.message:
                await self.complain(event.reason, event.message)
            seconds = max(counts.heard, counts.said) * frame
            await self._event(
                "session.ended",
                reason=event.reason,
                seconds=round(seconds, 3),
                frames_dropped=counts.dropped,
                frames_unsent=counts.unsent,
            )

    async def complain(self, code: str, message: str, field: str | None = None) -> None:
        """Send an `error` event."""
        kind = "server_error" if code == "error" else "invalid_request_error"
        await self._event("error", error={"type": kind, "code": code, "message": message, "param": field})

    async def _say(self, said: Said) -> None:
        if said.text:
            start, end = (round(1000 * seconds) for seconds in (said.start, said.end))
            at = self._ms(said)
            await self._event("response.text.delta", delta=said.text, start_ms=start, end_ms=end, at_ms=at)
        if said.extra_heads is not None:
            await self._event("response.heads", values=np.round(said.extra_heads, 4).tolist(), start_ms=self._ms(said))
        if said.pcm is not None:
            samples = (np.clip(self._up(said.pcm), -1, 1) * 32767).astype("<i2").tobytes()
            if self._binary:
                await self.send(samples)
            else:
                audio = base64.b64encode(samples).decode()
                await self._event("response.audio.delta", audio=audio, start_ms=self._ms(said))

    def _ms(self, said: Said) -> int:
        return round(1000 * said.column * self.artifact.frame_seconds)

    async def _event(self, kind: str, **values: Any) -> None:
        await self.send(json.dumps({"type": kind, **values}, separators=(",", ":")))

    def _settings(self) -> dict[str, Any]:
        """Return what is set, with the defaults of the rest."""
        return {
            "audio": "binary" if self._binary else "base64",
            **check_sampling(self.artifact, asked.sampling_of(self._asked)),
            **{key: self._asked.get(key) for key in ("seed", "text_prompt", "voice_prompt")},
        }

    # ---- from the caller -----------------------------------------------------------------------------------------

    async def take_bytes(self, message: bytes) -> None:
        """Take PCM16."""
        await self._attempt(self._hear(message), "audio")

    async def take_text(self, message: str) -> None:
        """Take one event."""
        try:
            event = json.loads(message)
        except (ValueError, RecursionError):
            return await self.mistake("invalid_json", "the message is not JSON")
        if not isinstance(event, dict) or not isinstance(event.get("type"), str):
            return await self.mistake("invalid_event", "an event must be a JSON object with a string `type`")
        handler = self._handlers.get(event["type"])
        if handler is None:
            known = ", ".join(self._handlers)
            return await self.mistake("unknown_event", f"unknown event {event['type'][:64]!r}; known: {known}", "type")
        await self._attempt(handler(self, event), "session" if "session" in event else None)

    async def _attempt(self, work: Awaitable[None], field: str | None) -> None:
        """Do what a message asks for, and tell the caller if it cannot be done."""
        try:
            await work
        except ConfigError as error:
            await self.mistake("invalid_value", str(error), field)
        except MoshijaxError as error:
            await self.mistake("failed", str(error))

    async def _update(self, event: dict[str, Any]) -> None:
        wanted = event.get("session")
        if not isinstance(wanted, dict):
            raise ConfigError("session.update needs a `session` object")
        begun = self.session.options is not None
        fixed = sorted(set(wanted) - {"audio"})
        if begun and fixed:
            raise ConfigError(f"{', '.join(map(repr, fixed))} cannot change after the call has begun; only `audio` can")
        if wanted.get("audio") not in (None, *AUDIO):
            raise ConfigError(f"audio must be one of {', '.join(AUDIO)}")
        new = {key: value for key, value in wanted.items() if key != "audio" and value is not None}
        asked.check(self.artifact, self.settings, new)
        merged = {key: value for key, value in (self._asked | new).items() if wanted.get(key, value) is not None}
        if new.keys() & set(asked.TEXTS):  # refused now, not with the first sound
            await self.in_thread(asked.options_of, self.artifact, self.settings, merged)
        self._asked = merged
        if "audio" in wanted:
            self._binary = wanted["audio"] == "binary"
        await self._event("session.updated", session=self._settings())

    async def _start(self, event: dict[str, Any] | None = None) -> None:
        """Let the call begin, if it has not."""
        if self.session.options is not None:
            return
        self._asked.setdefault("seed", secrets.randbits(32))
        options = await self.in_thread(asked.options_of, self.artifact, self.settings, self._asked)
        self.session.open(options)

    async def _append(self, event: dict[str, Any]) -> None:
        audio = event.get("audio")
        try:
            samples = base64.b64decode(audio, validate=True)
        except (binascii.Error, ValueError, TypeError):
            raise ConfigError("audio must be base64 of PCM16, little-endian") from None
        await self._hear(samples)

    async def _hear(self, samples: bytes) -> None:
        if not self.artifact.hears:
            return await self.mistake("no_audio_in", "this model takes no audio; send `input_text.append`", "audio")
        if len(samples) % 2:
            return await self.mistake("odd_audio", f"{len(samples)} bytes are no whole PCM16 samples", "audio")
        if self.session.hushed:
            return await self.mistake("input_ended", "the input was committed; no audio is taken after it", "audio")
        await self._start()
        newest, dropped = self.newest(np.frombuffer(samples, "<i2"), RATE)
        self.session.hear(self._down(newest.astype(np.float32) / 32768), dropped)

    async def _commit(self, event: dict[str, Any]) -> None:
        use = self.artifact.policy["type"]
        if use == manifest.ANSWER:
            return self.session.request(lambda rows, row: rows.end_turn(row))
        if use != "Translation":
            raise ConfigError("only a translation has an end of input; a conversation lasts until the caller leaves")
        await self._start()
        self.session.end_input()

    async def _say_text(self, event: dict[str, Any]) -> None:
        text, done = event.get("text"), event.get("done", False)
        if not self.artifact.takes_words:
            raise ConfigError("this model takes no text; send `input_audio_buffer.append`")
        if not isinstance(text, str) or len(text) > self.settings.text_prompt or not isinstance(done, bool):
            raise ConfigError(f"input_text.append needs `text` of at most {self.settings.text_prompt} characters")
        words = await self.in_thread(script.words, self.artifact, text)
        await self._start()
        self.session.say(words, done)

    async def _interrupt(self, event: dict[str, Any]) -> None:
        self.session.interrupt()
        if self.artifact.policy["type"] == manifest.ANSWER:
            self.session.request(lambda rows, row: rows.interrupt(row))

    async def _ping(self, event: dict[str, Any]) -> None:
        number = event.get("id")
        known = number if isinstance(number, str | int | float) else None
        await self._event("pong", id=known, server_ms=round(1000 * time.time()))

    async def _leave(self, event: dict[str, Any]) -> None:
        self.session.close("complete")

    _handlers = {
        "session.update": _update,
        "session.start": _start,
        "session.end": _leave,
        "input_audio_buffer.append": _append,
        "input_audio_buffer.commit": _commit,
        "input_text.append": _say_text,
        "response.cancel": _interrupt,
        "ping": _ping,
    }
