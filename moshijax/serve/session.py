"""One caller, between a socket and the engine: what it says, what it hears, what was lost.

All queues are bounded, each by a stated rule:

- what the caller says: beyond `BACKLOG` frames that the engine has not taken, the oldest are dropped, and counted;
- what the caller writes: words beyond `WORDS` that the model has not begun are refused;
- what the caller hears: beyond `UNSENT` frames that the socket has not taken, the sound of the oldest is dropped, and
  counted; its words are kept.
"""

from __future__ import annotations

import dataclasses
import secrets
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moshijax.errors import ConfigError
from moshijax.runtime import Artifact, CallOptions, Row, Rows
from moshijax.runtime.hosting import ScriptWord

if TYPE_CHECKING:
    from jaxtyping import Float, Int

BACKLOG = 4  # frames: a caller is never heard later than this
WORDS = 4096  # minutes of speech
UNSENT = 12  # frames: about a second


@dataclass(frozen=True)
class Started:
    """The call has joined and its prompt is done: from now on the caller is heard."""


@dataclass(frozen=True)
class Said:
    """What the model said in one frame.

    Attributes:
      column: of the call's grid, from 0.
      pcm: float32 `[frame_size]`; None where the model does not speak, or the sound was dropped.
      text: what the frame adds to the text; "" for most frames.
      start, end: seconds of grid time to which the text belongs.
      token, codes: the column itself.
      extra_heads: `[H, V]`, probabilities of the model's extra heads, or None.
    """

    column: int
    pcm: Float[np.ndarray, " N"] | None
    text: str
    start: float
    end: float
    token: int
    codes: Int[np.ndarray, " K"]
    extra_heads: np.ndarray | None = None


@dataclass(frozen=True)
class Dropped:
    """Frames of the caller that were not heard, because they came too fast or too late."""

    frames: int


@dataclass(frozen=True)
class Interrupted:
    """Everything said before this was flushed, at the caller's request."""


@dataclass(frozen=True)
class Turn:
    """Whose turn it is in a half-duplex call.

    Attributes:
      phase: "listening", "answering" (nothing to be heard yet) or "speaking".
    """

    phase: str


@dataclass(frozen=True)
class Ended:
    """The call is over.

    Attributes:
      reason: as docs/protocol.md lists them: "complete", "idle", "time_limit", "shutdown", "error", ...
      message: what the caller is told, where something went wrong.
    """

    reason: str
    message: str = ""


Event = Started | Said | Dropped | Interrupted | Turn | Ended
Request = Callable[[Rows, Row], None]


@dataclass
class Counts:
    """Frames of one call: heard from the caller, dropped before the model heard them, sent, dropped before that."""

    heard: int = 0
    dropped: int = 0
    said: int = 0
    unsent: int = 0


class Session:
    """One caller. Its methods may be called from any thread.

    Args:
      artifact: that answers.
      wake: tells the engine that there is something to do.
      notify: tells the socket that there are events; called from the engine's thread, must not block.
      clock: the engine's.

    Attributes:
      id: unguessable name.
      options: how the call begins; None until it is opened.
      ended: why the call is over; None while it is not.
      counts: frames heard, said and lost.
      interruptions: how often the caller interrupted; sound from before the last one is not delivered.
      hushed: the caller has said everything; the model hears silence from now on.
      words_begun: words of a synthesis that the model has begun, pauses among them; the engine counts them.
    """

    def __init__(
        self,
        artifact: Artifact,
        wake: Callable[[Session], None],
        notify: Callable[[], None],
        clock: Callable[[], float],
    ):
        self.artifact, self.id = artifact, secrets.token_hex(8)
        self.options: CallOptions | None = None
        self.ended: Ended | None = None
        self.counts = Counts()
        self.interruptions = 0
        self.hushed = False
        self.words_begun = 0
        self._words = 0  # that the caller has given
        self._wake, self._notify, self._clock, self._lock = wake, notify, clock, threading.Lock()
        self._partial = np.zeros(0, np.float32)
        self._frames: deque[tuple[np.ndarray, float]] = deque()  # with the time when they came
        self._lead = round(artifact.policy.get("silence", 0.0) / artifact.frame_seconds)
        self._requests: list[Request] = []
        self._events: deque[Event] = deque()
        self._unsent = 0

    # ---- the socket's side ---------------------------------------------------------------------------------------

    def open(self, options: CallOptions) -> None:
        """Let the call begin; only once."""
        self.options = options
        self._wake(self)

    def hear(self, pcm: Float[np.ndarray, " N"], dropped: int = 0) -> None:
        """Take any number of the caller's samples, float32 in [-1, 1] at the artifact's rate; NaN is silence.

        Args:
          pcm: the samples.
          dropped: frames before them that were left out, as they could not be heard in time.
        """
        size = self.artifact.frame_size
        with self._lock:
            stream = np.concatenate([self._partial, pcm]) if len(self._partial) else pcm
            if not np.isfinite(stream.sum()):  # (also where the sum is too large, which does no harm)
                stream = np.nan_to_num(stream, posinf=1.0, neginf=-1.0)
            whole = len(stream) - len(stream) % size
            self._partial = stream[whole:]
            now = self._clock()
            self._frames.extend((frame, now) for frame in stream[:whole].reshape(-1, size))
            while len(self._frames) > BACKLOG:
                self._frames.popleft()
                dropped += 1
            self.counts.dropped += dropped
        if dropped:
            self.post(Dropped(dropped))
        if whole:
            self._wake(self)

    def end_input(self) -> None:
        """Note that the caller of a translation has said everything."""
        self.hushed = True
        self._wake(self)

    def say(self, words: Sequence[ScriptWord], done: bool) -> None:
        """Give a synthesis more words to speak; `done`: they are the last.

        Raises:
          ConfigError: more than `WORDS` would wait.
        """
        with self._lock:
            waiting = self._words - self.words_begun
            if waiting + len(words) > WORDS:
                raise ConfigError(
                    f"{waiting} words wait to be spoken, and at most {WORDS} may: these {len(words)} are not taken; "
                    "send them again when some have been spoken"
                )
            self._words += len(words)
        self.request(lambda rows, row: rows.say(row, words, done))

    def request(self, request: Request) -> None:
        """Let the engine do something with the row before its next step."""
        with self._lock:
            self._requests.append(request)
        self._wake(self)

    def interrupt(self) -> None:
        """Flush what the model has said and the socket has not taken, and whatever is under way."""
        with self._lock:
            self.interruptions += 1
            self._unsent = 0
            kept = [_without_sound(event) for event in self._events]
            self._events = deque(event for event in kept if event is not None)
            self._events.append(Interrupted())
        self._notify()

    def close(self, reason: str, message: str = "") -> None:
        """End the call; closing again does nothing. Its slot is free within a tick."""
        with self._lock:
            if self.ended is not None:
                return
            self.ended = Ended(reason, message)
            self._events.append(self.ended)
        self._notify()
        self._wake(self)

    def take_events(self) -> list[Event]:
        """Return what has happened since the last time, in order."""
        with self._lock:
            events, self._events, self._unsent = list(self._events), deque(), 0
        return events

    # ---- the engine's side ---------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Whole frames that the caller has said and the model has not heard, with the silence that it needs first."""
        return self._lead + len(self._frames)

    @property
    def leading(self) -> bool:
        """Whether the silence that the model needs before the caller is not over."""
        return self._lead > 0

    def take_frame(self) -> tuple[Float[np.ndarray, " N"], float | None]:
        """Return what the model hears next, and when it came; silence before the caller begins and after the last."""
        with self._lock:
            if not self._lead and self._frames:
                self.counts.heard += 1
                return self._frames.popleft()
            self._lead = max(0, self._lead - 1)
        return np.zeros(self.artifact.frame_size, np.float32), None

    def take_requests(self) -> list[Request]:
        """Return what the engine is to do with the row."""
        with self._lock:
            requests, self._requests = self._requests, []
        return requests

    def post(self, event: Event, interruptions: int | None = None) -> None:
        """Put an event into the caller's queue.

        Args:
          event: what happened.
          interruptions: of this session when the step began that said it; if there are more now, its sound is dropped.
        """
        with self._lock:
            if self.ended is not None:
                return
            if interruptions is not None and interruptions != self.interruptions:
                event = _without_sound(event)
            if event is None:
                return
            self._events.append(event)
            if isinstance(event, Said) and event.pcm is not None:
                self.counts.said += 1
                self._unsent += 1
                if self._unsent > UNSENT:
                    self._drop_oldest_sound()
        self._notify()

    def _drop_oldest_sound(self) -> None:
        for place, event in enumerate(self._events):
            if isinstance(event, Said) and event.pcm is not None:
                self.counts.unsent += 1
                self._unsent -= 1
                kept = _without_sound(event)
                if kept is None:
                    del self._events[place]
                else:
                    self._events[place] = kept
                return


def _without_sound(event: Event) -> Event | None:
    """Return an event without its sound; None if nothing is left of it."""
    if not isinstance(event, Said) or event.pcm is None:
        return event
    return dataclasses.replace(event, pcm=None) if event.text or event.extra_heads is not None else None
