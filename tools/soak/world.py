"""Simulated time: the real engine and sessions, a clock that stands still, and callers who follow a script."""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from collections.abc import Callable

import numpy as np

from moshijax.runtime import Artifact, CallOptions, Rows
from moshijax.runtime.play import play
from moshijax.runtime.prompt import Prompt
from moshijax.runtime.rows import UNDER_WAY
from moshijax.serve.engine import Engine
from moshijax.serve.session import Dropped, Ended, Said, Session, Started

SCALE = 128  # of sound in eight bits
SAMPLED = {"temperature": 0.9, "text_temperature": 0.9, "top_k": 20, "text_top_k": 20}


class _Engine(Engine):
    """The engine, on a device that takes a stated time for a step."""

    def __init__(self, world: World, artifact: Artifact, batch: int):
        super().__init__(artifact, batch, clock=lambda: world.now)
        self.world, self.free = world, 0.0  # when the device has done what it was given

    def _post(self) -> None:
        self.free = max(self.free, self._under_way[0].submitted) + self.world.step_seconds
        self.world.now = max(self.world.now, self.free)
        super()._post()


class World:
    """Callers, an engine and the time.

    Args:
      artifact: that answers.
      batch: its slots.
      step_seconds: how long the device takes for a step.
    """

    def __init__(self, artifact: Artifact, batch: int, step_seconds: float = 0.03):
        self.artifact, self.now, self.step_seconds = artifact, 0.0, step_seconds
        self.frame = artifact.frame_seconds
        self.engine = _Engine(self, artifact, batch)
        self.engine.load()
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()

    def at(self, time: float, action: Callable[[], None]) -> None:
        """Do something at a time."""
        heapq.heappush(self._agenda, (time, next(self._count), action))

    def run(self, until: float) -> None:
        """Let time pass."""
        while True:
            while self._agenda and self._agenda[0][0] <= self.now:
                heapq.heappop(self._agenda)[2]()
            wait = self.engine.step()
            if wait == 0.0:
                continue
            coming = self._agenda[0][0] if self._agenda else until
            self.now = min(until, coming, np.inf if wait is None else self.now + max(wait, 1e-6))
            if self.now >= until:
                return


class Caller:
    """One call: what was said into it, what the model heard of that, and what it answered.

    Args:
      world: that it takes place in.
      seed: of its sound and its sampling.
      prompt: that it begins with, or its columns `[K, T]`.
    """

    def __init__(self, world: World, seed: int, prompt: Prompt | np.ndarray | None = None):
        self.world, self.random = world, np.random.RandomState(seed)
        self.options = CallOptions(seed, SAMPLED, prompt=prompt)
        self.session: Session = world.engine.admit(self._hear)
        self.started = self.ended = None
        self.heard: list[np.ndarray] = []
        self.said: list[Said] = []
        self.times: list[float] = []
        self.dropped = 0
        self.captured: dict[bytes, float] = {}  # when each frame was spoken, whenever it was sent
        self.delays: list[tuple[float, float]] = []  # (time of the answer, how long after the frame was spoken)
        take = self.session.take_frame

        def take_frame():
            frame, arrived = take()
            self.heard.append((frame * SCALE).astype(np.int8))
            return frame, arrived

        self.session.take_frame = take_frame
        self.session.open(self.options)

    def sound(self) -> np.ndarray:
        """The next frame that the caller speaks, in eight bits."""
        return (self.random.randn(self.world.artifact.frame_size) * 0.3 * SCALE).clip(-SCALE, SCALE - 1).astype(np.int8)

    def speak(self, start: float, end: float, pace: float = 1.0, jitter: float = 0.0) -> None:
        """Send a frame every 80 ms / pace, each up to `jitter` seconds late."""
        for number in range(int((end - start) / self.world.frame * pace + 1e-6)):
            time = start + number * self.world.frame / pace
            self.world.at(time + self.random.uniform(0, jitter) if jitter else time, lambda t=time: self.send(t))

    def send(self, captured: float, frames: int = 1) -> None:
        """Send frames now, the first of which was spoken at a time."""
        sound = [self.sound() for _ in range(frames)]
        for number, frame in enumerate(sound):
            self.captured[frame.tobytes()] = captured + number * self.world.frame
        self.session.hear(pcm(sound))

    def leave(self) -> None:
        """Hang up."""
        self.session.close("client_left")

    def codes(self) -> np.ndarray:
        """What the model answered, `[K, T]`."""
        return np.stack([said.codes for said in self.said], axis=1)

    def _hear(self) -> None:
        for event in self.session.take_events():
            if isinstance(event, Started):
                self.started = self.world.now
            elif isinstance(event, Dropped):
                self.dropped += event.frames
            elif isinstance(event, Ended):
                self.ended = event
            elif isinstance(event, Said):
                self.said.append(dataclasses.replace(event, pcm=None))
                self.times.append(self.world.now)
                # Column n of the answer was decided when frame n + delay had been heard.
                heard = self.heard[event.column + self.world.artifact.max_delay - 1].tobytes()
                if heard in self.captured:
                    self.delays.append((self.world.now, self.world.now - self.captured.pop(heard)))


def pcm(frames: list[np.ndarray]) -> np.ndarray:
    """Return frames in eight bits as samples in [-1, 1]."""
    return np.concatenate(frames).astype(np.float32) / SCALE


def check_alone(rows: Rows, callers: list[Caller]) -> None:
    """Check that the model answered what it answers to the same sound in other slots, beside other callers.

    Raises:
      AssertionError: it did not.
    """
    for start in range(0, len(callers), rows.batch):
        some = callers[start : start + rows.batch][::-1]
        calls, _ = play(rows, [pcm(caller.heard) for caller in some], [caller.options for caller in some])
        for caller, call in zip(some, calls, strict=True):
            answered = len(caller.said)
            np.testing.assert_array_equal(caller.codes(), call.codes[:, :answered])
            # What was heard and not answered was under way when the caller left.
            assert call.codes.shape[1] - answered <= UNDER_WAY, (call.codes.shape, answered)


def columns(length: int, seed: int) -> np.ndarray:
    """A prompt of any tokens, all of them known."""
    return np.random.RandomState(seed).randint(4, 32, (7, length)).astype(np.int32)


def script(world: World, lines: int, end: float, seed: int) -> list[Caller]:
    """Let callers ring one after the other on as many lines, talk, stall, and leave; returns them as they come."""
    random, callers = np.random.RandomState(seed), []

    def ring(line: int) -> None:
        number = len(callers)
        prompt = columns(random.randint(3, 40), number) if random.rand() < 0.4 else None
        caller = Caller(world, 100 + number, prompt)
        callers.append(caller)
        start, length = world.now + random.uniform(0, 0.3), random.uniform(4, 20)
        stop = min(start + length, end - 0.5)
        middle = random.uniform(start, stop)
        caller.speak(start, middle, jitter=random.choice([0.0, 0.05]))
        if random.rand() < 0.5:  # a stall, after which everything comes at once
            stall = random.uniform(0.2, 3)
            missed = 1 + int(stall / world.frame)
            world.at(
                middle + stall,
                lambda captured=middle: caller.session.ended or caller.send(captured, missed),
            )
            middle += stall
        caller.speak(middle + 0.1, stop)
        world.at(max(stop, middle + 0.2) + random.uniform(0, 0.3), lambda: hang_up(caller, line))

    def hang_up(caller: Caller, line: int) -> None:
        caller.leave()
        if world.now < end - 8:
            world.at(world.now + random.uniform(0.05, 1), lambda: ring(line))

    for line in range(lines):
        world.at(world.now + random.uniform(0, 2), lambda line=line: ring(line))
    return callers
