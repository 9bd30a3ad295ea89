"""Calls that take turns: the caller speaks, then the model (half duplex), with the interface of `Rows`.

A row listens until its caller's turn is over: he was silent for `PAUSE` after he had spoken, ends it himself, or has
filled the clip that the model hears. Then it answers, token by token between the ticks, and speaks as the ticks go. A
caller who speaks into the answer stops it at once: what was not spoken is dropped, and what he says is the beginning of
his next turn. Every row has caches of its own; rows that answer at the same time take turns on the device.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from moshijax.errors import ConfigError, DataError, MoshijaxError
from moshijax.runtime.answers import AnswerArtifact, AnswerOptions, Answers, Piece
from moshijax.runtime.checks import check_sampling, split_seed
from moshijax.runtime.hosting import Use
from moshijax.runtime.rows import CallOptions, Frame, Row, Turns
from moshijax.tokens import UNGENERATED

#: Seconds of silence that end a turn, and of speech that begin one or stop an answer.
PAUSE, SPEECH = 0.7, 0.24
#: Seconds before the first speech that belong to a turn.
BEFORE = 0.4
#: A frame is speech if it is louder than this, relative to full scale, and than so many times the quietest of late.
LOUD, ABOVE_NOISE = 10 ** (-45 / 20), 3.0
#: Of a tick, the part in which answers are made.
SHARE = 0.5
#: Seconds of sound made ahead of what is spoken; more is made when there is need.
AHEAD = 2.0
LISTENING, ANSWERING, SPEAKING = "listening", "answering", "speaking"


class SpeechDetector:
    """Tells speech from silence, frame by frame, by loudness above the noise of the place."""

    def __init__(self) -> None:
        self._noise = LOUD / ABOVE_NOISE

    def __call__(self, frame_N: np.ndarray) -> bool:
        """Return whether a frame is speech."""
        loudness = float(np.sqrt(np.mean(np.square(frame_N, dtype=np.float64))))
        speech = loudness > max(LOUD, ABOVE_NOISE * self._noise)
        # Quieter places are believed at once, louder ones slowly: within seconds, as speech has pauses.
        self._noise = loudness if loudness < self._noise else self._noise * 1.005 + 1e-7
        return speech


@dataclass(eq=False)
class _Turn:
    """A row: what its caller is saying, and what is being said to him."""

    row: Row
    options: AnswerOptions
    answers: Answers
    detector: SpeechDetector = field(default_factory=SpeechDetector)
    heard: list[np.ndarray] = field(default_factory=list)  # frames of this turn
    begun: bool = False  # there was speech in it
    loud: int = 0  # frames of speech in a row
    quiet: int = 0  # frames of silence in a row
    pieces: Iterator[Piece] | None = None  # what is left of the answer
    sound: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))  # made, not spoken
    text: list[str] = field(default_factory=list)  # likewise
    joined: bool = False  # a tick has passed, as in every call before anything is heard
    frames: int = 0  # that were returned
    count: int = 0  # answers

    @property
    def phase(self) -> str:
        """What the row does: listening, answering (nothing to be heard yet) or speaking."""
        if len(self.sound):
            return SPEAKING
        return LISTENING if self.pieces is None else ANSWERING

    def stop(self) -> None:
        """Drop what is left of an answer."""
        self.pieces, self.sound, self.text = None, self.sound[:0], []


@dataclass(frozen=True)
class Taken:
    """A tick of these rows, which is over when it is submitted.

    Attributes:
      heard: bool `[B]`, the rows whose frame was heard.
      frame: what it returned.
    """

    heard: np.ndarray
    frame: Frame

    def result(self) -> Frame:
        """Return what the tick returned."""
        return self.frame


class TurnRows:
    """Rows of half-duplex calls; see `moshijax.runtime.rows.Rows` for the methods that both have.

    Args:
      artifact: answers the questions.
      batch: how many callers, each with caches of his own.
      clock: seconds; only differences count.
    """

    def __init__(self, artifact: AnswerArtifact, batch: int, clock: Callable[[], float] = time.perf_counter):
        self.artifact, self.batch, self._clock = artifact, batch, clock
        self._answers = [Answers(artifact) for _ in range(batch)]
        self._turns: dict[int, _Turn] = {}
        self._serial = itertools.count()
        self._next = 0  # the row that makes the next piece

    def open(self, options: CallOptions | None = None, use: Use | None = None) -> Row:
        """Start a call in a free row.

        Raises:
          ConfigError: an option out of range, or one that half-duplex calls do not have.
          MoshijaxError: every row is open.
        """
        options = options or CallOptions()
        if options.prompt is not None or options.conditions:
            raise ConfigError(f"{self.artifact.path} has its prompt in it: omit prompts and conditions")
        check_sampling(self.artifact, options.sampling or {})
        split_seed(options.seed)
        free = [slot for slot in range(self.batch) if slot not in self._turns]
        if not free:
            raise MoshijaxError(f"all {self.batch} rows are open; close one, or serve more calls")
        row = Row(free[0], next(self._serial))
        self._turns[row.slot] = _Turn(row, AnswerOptions(options.seed, options.sampling), self._answers[row.slot])
        return row

    def close(self, row: Row) -> None:
        """End a call and free its row; closing twice does nothing."""
        if self.is_open(row):
            del self._turns[row.slot]

    def is_open(self, row: Row) -> bool:
        """Return whether the call of this handle has not been closed."""
        turn = self._turns.get(row.slot)
        return turn is not None and turn.row == row

    def is_prepared(self, row: Row) -> bool:
        """Return True: there are no prompts to wait for."""
        return True

    def hears_next(self, row: Row) -> bool:
        """Return whether the call has joined, with its first tick, which hears nothing.

        Raises:
          ConfigError: the row is closed.
        """
        return self._turn(row).joined

    def advance_prompts(self, blocks: int = 1) -> bool:
        """Return False: there are no prompts to go through."""
        return False

    def end_turn(self, row: Row) -> None:
        """Let the caller's turn be over, if he has said anything."""
        turn = self._turn(row)
        if turn.pieces is None and turn.begun:
            self._answer(turn)

    def interrupt(self, row: Row) -> None:
        """Drop what is left of an answer, and listen."""
        turn = self._turn(row)
        turn.stop()
        turn.heard, turn.begun, turn.loud, turn.quiet = [], False, 0, 0

    def submit(self, pcm_BN: np.ndarray, active_B: np.ndarray | None = None) -> Taken:
        """Hear a frame of every row, go on with answers, and say what there is to say."""
        started, active = self._clock(), np.ones(self.batch, bool) if active_B is None else active_B
        live = np.zeros(self.batch, bool)
        live[list(self._turns)] = True
        live &= active
        heard, cut = live.copy(), np.zeros(self.batch, bool)
        for slot in np.flatnonzero(live).tolist():
            heard[slot] = self._turns[slot].joined
            self._turns[slot].joined = True
        for slot in np.flatnonzero(heard).tolist():
            cut[slot] = self._hear(self._turns[slot], np.nan_to_num(pcm_BN[slot]))
        self._go_on(started)
        pcm, said = np.zeros((self.batch, self.artifact.frame_size), np.float32), [""] * self.batch
        index, phases = np.full(self.batch, -1), [LISTENING] * self.batch
        for slot in np.flatnonzero(heard).tolist():
            turn = self._turns[slot]
            phases[slot], index[slot], turn.frames = turn.phase, turn.frames, turn.frames + 1
            here, turn.sound = np.split(turn.sound, [self.artifact.frame_size])
            pcm[slot, : len(here)] = here
            said[slot], turn.text = "".join(turn.text), []
        nothing = np.full((self.batch, 1), UNGENERATED, np.int32)
        frame = Frame(
            *(pcm, nothing[:, 0], nothing, heard, index, heard),
            seconds=self._clock() - started,
            turns=Turns(said, phases, cut),
        )
        return Taken(heard, frame)

    def step(self, pcm_BN: np.ndarray, active_B: np.ndarray | None = None) -> Frame:
        """Return `submit(pcm_BN, active_B).result()`."""
        return self.submit(pcm_BN, active_B).result()

    def _turn(self, row: Row) -> _Turn:
        if not self.is_open(row):
            raise ConfigError("the row is closed; open another")
        return self._turns[row.slot]

    def _hear(self, turn: _Turn, frame_N: np.ndarray) -> bool:
        """Take a frame of the caller; return whether it stopped an answer."""
        seconds, size = self.artifact.frame_seconds, self.artifact.frame_size
        speech = turn.detector(frame_N)
        turn.loud, turn.quiet = (turn.loud + 1, 0) if speech else (0, turn.quiet + 1)
        turn.heard.append(frame_N)
        spoke = turn.loud >= round(SPEECH / seconds)
        if turn.phase != LISTENING:
            turn.heard = turn.heard[-round((BEFORE + SPEECH) / seconds) :]
            if spoke:
                turn.stop()
                turn.begun = True
            return spoke
        turn.begun = turn.begun or spoke
        if not turn.begun:
            turn.heard = turn.heard[-round((BEFORE + SPEECH) / seconds) :]
        elif turn.quiet >= round(PAUSE / seconds) or (len(turn.heard) + 1) * size > self.artifact.clip:
            self._answer(turn)
        return False

    def _answer(self, turn: _Turn) -> None:
        """Begin the answer to what was heard."""
        question = np.concatenate(turn.heard)[: self.artifact.clip]
        options = AnswerOptions((turn.options.seed + turn.count) % 2**64, turn.options.sampling)
        turn.heard, turn.begun, turn.loud, turn.quiet = [], False, 0, 0
        turn.count += 1
        try:
            turn.pieces = turn.answers.answer(question, options)
        except DataError:  # too short to be a question
            turn.pieces = None

    def _go_on(self, started: float) -> None:
        """Make pieces of answers, each row in turn, until the tick's share is spent or there is enough."""
        until, enough = started + SHARE * self.artifact.frame_seconds, AHEAD * self.artifact.sample_rate
        while True:
            order = [(self._next + i) % self.batch for i in range(self.batch)]
            needy = (slot for slot in order if slot in self._turns and self._turns[slot].pieces is not None)
            slot = next((slot for slot in needy if len(self._turns[slot].sound) < enough), None)
            if slot is None:
                return
            turn, self._next = self._turns[slot], slot + 1
            piece = next(turn.pieces)
            turn.sound, turn.text = np.concatenate([turn.sound, piece.pcm]), [*turn.text, piece.text]
            if piece.last:
                turn.pieces = None
            if self._clock() >= until:
                return
