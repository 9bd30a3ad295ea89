"""The engine: one thread that owns the rows, and gives every caller's frames to one step of all of them.

When a tick is due:

- at the latest one frame after the last one, if anybody has a frame to be heard; `GRACE` later if somebody's frame is
  still expected and the step leaves the time, so that a frame a little late does not wait for the tick after;
- at once if everybody who speaks has one: nobody is waited for;
- at once if somebody has several, and the step will be over before the others' next tick: lost time is caught up.

A caller takes part in a tick if there is a frame to be heard, and pauses otherwise. Nobody is heard faster than
`FASTEST` for longer than `BURST` frames, so that a caller who sends too fast costs the others nothing; what is too much
is dropped in the session's queue. The results of a tick are posted as soon as they are there; if the next tick is due
before that, it is submitted first, so that the device does not wait for the host.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from moshijax.errors import MoshijaxError
from moshijax.runtime import Artifact, Frame, Row, Rows
from moshijax.runtime.answers import AnswerArtifact
from moshijax.runtime.hosting import Use, use_of
from moshijax.runtime.rows import Tick
from moshijax.runtime.text import Pieces
from moshijax.runtime.turns import Taken, TurnRows
from moshijax.serve.session import Said, Session, Started, Turn
from moshijax.serve.stats import Stats

FASTEST = 1.05  # times real time, for clocks that are not ours
BURST = 8  # frames heard at once after a stall
GRACE = 0.25  # frames for which a tick waits for callers whose frame is late
SILENT = 1.5  # frames after which a caller who says nothing is not waited for

log = logging.getLogger("moshijax.serve")


class Busy(MoshijaxError):
    """Every slot has a caller.

    Attributes:
      callers: how many there are.
    """

    def __init__(self, callers: int):
        super().__init__(f"all {callers} slots are taken; call again later")
        self.callers = callers


@dataclass(eq=False)
class _Call:
    """A session that has a row."""

    session: Session
    row: Row
    use: Use
    first: int  # the grid column in which the call begins, after its prompt
    pieces: Pieces
    allowance: float  # frames that may be heard at once
    refilled: float  # when it was last added to
    begun: int = 0  # words of a synthesis that were announced
    spoke: float = -np.inf  # when it last had a frame
    started: bool = False
    told: bool = False  # that the caller has said everything
    phase: str = ""  # of a half-duplex call, as the caller knows it

    def refill(self, now: float, frame_seconds: float) -> None:
        """Add the frames that may be heard since the last time."""
        more = (now - self.refilled) / frame_seconds * FASTEST
        self.allowance, self.refilled = max(self.allowance, min(BURST, self.allowance + more)), now


class _Part(NamedTuple):
    """A call's part in a tick: how often it had been interrupted, and when its frame came, if it has one."""

    call: _Call
    interruptions: int
    arrived: float | None


@dataclass(frozen=True)
class _UnderWay:
    """A tick whose results are not posted."""

    tick: Tick | Taken
    parts: list[_Part]
    submitted: float


class Engine:
    """Calls of one artifact in real time.

    `start` runs it in a thread of its own; a simulation calls `load`, `step` and `unload` itself, in one thread.

    Args:
      artifact: what answers.
      batch: how many callers at once.
      prompts: whether calls may have prompts.
      block: frames of a prompt that are processed between two ticks.
      clock: seconds; only differences count.

    Attributes:
      batch: how many callers at once.
      stats: what `/metrics` shows.
      ready: calls can be taken.
      failure: what ended the engine's thread, if anything has.
      step_seconds: how long the last step took.
    """

    def __init__(
        self,
        artifact: Artifact | AnswerArtifact,
        batch: int,
        *,
        prompts: bool = True,
        block: int = 16,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.artifact, self.batch, self.stats, self.ready = artifact, batch, Stats(artifact.frame_seconds), False
        self.failure: BaseException | None = None
        self._prompts, self._block, self._clock = prompts, block, clock
        self._woken, self._stopping = threading.Event(), False
        self._lock = threading.Lock()
        self._admitted: set[Session] = set()
        self._changed: deque[Session] = deque()  # sessions that want the engine's attention
        self._calls: dict[Session, _Call] = {}
        self._under_way: deque[_UnderWay] = deque()
        self._missing: set[Session] = set()  # whose frame is expected
        self._quiet_until = -np.inf  # nothing is due before, unless there are news
        self._next = -np.inf  # when the next tick is due at the latest
        self.step_seconds = 0.0
        self._thread: threading.Thread | None = None
        self._on_change: Callable[[], None] = lambda: None

    # ---- from any thread -----------------------------------------------------------------------------------------

    @property
    def callers(self) -> int:
        """How many slots are taken."""
        return len(self._admitted)

    def admit(self, notify: Callable[[], None] = lambda: None) -> Session:
        """Take a slot for a new caller.

        Args:
          notify: see `Session`.

        Raises:
          Busy: there is none.
        """
        with self._lock:
            if len(self._admitted) >= self.batch:
                self.stats.refused += 1
                raise Busy(len(self._admitted))
            session = Session(self.artifact, self.attend, notify, self._clock)
            self._admitted.add(session)
        self.stats.calls += 1
        return session

    def attend(self, session: Session) -> None:
        """Let the engine look at a session: it has opened, said something, or ended."""
        self._changed.append(session)
        self._woken.set()

    def start(self, on_change: Callable[[], None] = lambda: None) -> None:
        """Load, then tick, in a thread of its own; `on_change` is called there once it is ready, and if it fails."""
        self._on_change = on_change
        self._thread = threading.Thread(target=self._run, name="moshijax-engine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End all calls, and the thread."""
        for session in list(self._admitted):
            session.close("shutdown")
        self._stopping = True
        self._woken.set()
        if self._thread is not None:
            self._thread.join()

    # ---- in the engine's thread ----------------------------------------------------------------------------------

    def load(self) -> None:
        """Compile everything that a call can need, and run the step."""
        if isinstance(self.artifact, AnswerArtifact):
            self.rows = TurnRows(self.artifact, self.batch)
        else:
            self.rows = Rows(self.artifact, self.batch, prompts=self._prompts, block=self._block, blocks_per_tick=0)
        row = self.rows.open()
        pcm_BN = np.zeros((self.batch, self.artifact.frame_size), np.float32) if self.artifact.hears else None
        for _ in range(3):
            began = self._clock()
            self.rows.step(pcm_BN)
            self.step_seconds = self._clock() - began
        self.rows.close(row)
        self.ready = True

    def step(self) -> float | None:
        """Do the next thing that can be done now.

        Returns:
          Seconds for which nothing will be due unless somebody asks for attention: 0 if there is more to do at once,
          None if nothing will be.
        """
        news, now = self._look_at_sessions(), self._clock()
        if not news and now < self._quiet_until:
            return self._quiet_until - now
        self._quiet_until = -np.inf
        taking_part, wait = self._due(now)
        if taking_part:
            self._submit(now, taking_part)
        if self._under_way and (not taking_part or len(self._under_way) > 1):
            self._post()
        elif not taking_part and wait is None and self._is_preparing():
            self._advance_prompts()  # (otherwise one block with every tick)
        elif not taking_part:
            self._quiet_until = -np.inf if wait is None else now + wait
            return wait
        return 0.0

    def _advance_prompts(self) -> None:
        """Go through a block of a prompt; where that fails, the call of the prompt ends, and no other."""
        try:
            self.rows.advance_prompts()
        except Exception:
            lost = [session for session, call in self._calls.items() if not self.rows.is_open(call.row)]
            if not lost:
                raise
            for session in lost:
                log.exception("call %s: its prompt could not be prepared", session.id)
                session.close("error", "the prompt could not be prepared")
                self._release(session)

    def _is_preparing(self) -> bool:
        return any(not self.rows.is_prepared(call.row) for call in self._calls.values())

    def _run(self) -> None:
        try:
            self.load()
            self._on_change()
            while not self._stopping or self._admitted:
                wait = self.step()
                if wait != 0.0 and not self._stopping:
                    self._woken.wait(wait)
                self._woken.clear()
        except BaseException as error:
            self.failure, self.ready = error, False
            log.exception("the engine stopped")
            for session in list(self._admitted):
                session.close("error", "the server has failed; call again later")
            self._on_change()

    def _look_at_sessions(self) -> bool:
        """Open and close rows, and do what sessions ask for.

        Returns:
          Whether a tick may be due sooner than was thought. A frame that was expected changes nothing unless it is the
          last one: so callers who wake the engine one after the other cost one look at all of them.
        """
        news = False
        while self._changed:
            session = self._changed.popleft()
            expected = session in self._missing and session.waiting == 1
            self._missing.discard(session)
            news = news or not expected or not self._missing
            if session.ended is not None:
                self._release(session)
            elif session.options is not None:
                if session not in self._calls:
                    self._open(session)
                self._ask(session)
        return news

    def _open(self, session: Session) -> None:
        use = use_of(self.artifact)
        try:
            row = self.rows.open(session.options, use)
        except MoshijaxError as error:
            session.close("error", str(error))
            return
        first = use.first_column(session.options.prompt_columns)
        allowance = BURST + session.waiting
        self._calls[session] = _Call(session, row, use, first, Pieces(self.artifact), allowance, self._clock())

    def _ask(self, session: Session) -> None:
        call = self._calls.get(session)
        for request in session.take_requests() if call else ():
            try:
                request(self.rows, call.row)
            except MoshijaxError as error:
                session.close("error", str(error))

    def _release(self, session: Session) -> None:
        call = self._calls.pop(session, None)
        if call is not None:
            self.rows.close(call.row)
        with self._lock:
            if session in self._admitted:
                self._admitted.remove(session)
                self.stats.ended(session)

    # When a tick is due, and who takes part.

    def _due(self, now: float) -> tuple[list[_Call], float | None]:
        """Return who takes part in a tick now, and how long nothing will be due if that is nobody."""
        frame, ready, waits, self._missing = self.artifact.frame_seconds, [], [], set()
        for call in self._calls.values():
            call.refill(now, frame)
            hears, waiting = self.rows.hears_next(call.row), call.session.waiting
            if call.session.ended is not None or not self.rows.is_prepared(call.row):
                continue
            if hears and waiting and call.allowance < 1:
                waits.append((1 - call.allowance) * frame / FASTEST)
            elif waiting or call.session.hushed or not hears:
                ready.append(call)
            if hears and not call.session.hushed and not waiting and now - call.spoke < SILENT * frame:
                self._missing.add(call.session)
        if not ready:
            return [], min(waits, default=None)
        waited_for = self._missing and self.step_seconds <= (1 - GRACE) * frame
        due = self._next + GRACE * frame if waited_for else self._next
        if now >= due:
            self._next = now + frame if now - due > frame else self._next + frame
            return ready, 0.0
        speaking = [call for call in ready if call.session.waiting]
        if speaking and not self._missing:
            self._next = now + frame
            return speaking, 0.0
        if any(call.session.waiting > 1 for call in speaking) and now + self.step_seconds <= self._next:
            return speaking, 0.0
        return [], min([due - now, *waits])

    # A tick.

    def _submit(self, now: float, calls: list[_Call]) -> None:
        active_B, pcm_BN, parts = np.zeros(self.batch, bool), None, []
        if self.artifact.hears:
            pcm_BN = np.zeros((self.batch, self.artifact.frame_size), np.float32)
        for call in calls:
            session, active_B[call.row], arrived = call.session, True, None
            if self.rows.hears_next(call.row):
                if session.hushed and not session.waiting and not call.told:
                    call.told = True
                    self.rows.end_input(call.row)
                if session.waiting:
                    call.allowance, call.spoke = call.allowance - 1, now
                pcm_BN[call.row], arrived = session.take_frame()
            parts.append(_Part(call, session.interruptions, arrived))
        self._under_way.append(_UnderWay(self.rows.submit(pcm_BN, active_B), parts, now))
        self._advance_prompts()

    def _post(self) -> None:
        """Wait for the first tick under way, and give everybody what the model said to them."""
        under_way = self._under_way.popleft()
        frame = under_way.tick.result()
        now = self._clock()
        for call, interruptions, arrived in under_way.parts:
            if call.session in self._calls:
                self._say(call, frame, interruptions)
                if arrived is not None:
                    self.stats.delayed(now - arrived)
        self.step_seconds = now - under_way.submitted
        self.stats.tick(self.step_seconds, len(under_way.parts))

    def _say(self, call: _Call, frame: Frame, interruptions: int) -> None:
        session, row, index = call.session, call.row, int(frame.index[call.row])
        session.words_begun = call.use.taken
        if not call.started and not session.leading and (self.rows.hears_next(row) or not self.artifact.hears):
            call.started = True
            session.post(Started())
        if frame.turns is not None:
            if frame.turns.cut[row]:
                session.interrupt()
                interruptions = session.interruptions
            if frame.turns.phase[row] != call.phase:
                call.phase = frame.turns.phase[row]
                session.post(Turn(call.phase))
        column = index - call.first
        if column >= 0:
            text, start, end = self._text(call, column, frame)
            said = Said(
                column,
                None if frame.pcm is None else frame.pcm[row],
                text,
                start,
                end,
                int(frame.text_token[row]),
                frame.codes[row],
                None if frame.extra_heads is None else frame.extra_heads[row],
            )
            session.post(said, interruptions)
        if call.use.finished(column, index, frame.ended is not None and bool(frame.ended[row])):
            session.close("complete")

    def _text(self, call: _Call, column: int, frame: Frame) -> tuple[str, float, float]:
        """Return the text that a frame adds, and the seconds to which it belongs."""
        seconds = self.artifact.frame_seconds
        if frame.turns is not None:
            return frame.turns.text[call.row], column * seconds, (column + 1) * seconds
        if self.artifact.takes_words:
            new, call.begun = call.use.spoken()[call.begun :], len(call.use.spoken())
            starts = [index - (call.first - self.artifact.policy["audio_delay"]) for _, index in new]
            start = starts[0] * seconds if starts else column * seconds
            return "".join(f" {word}" for word, _ in new), start, start + seconds
        start = column * seconds - getattr(call.use, "text_delay", 0.0)
        return call.pieces.feed(int(frame.text_token[call.row])), max(0.0, start), max(0.0, start + seconds)
