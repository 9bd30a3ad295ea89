"""Live calls: the rows of a batch, which open and close at any time, one step of all of them per tick.

    rows = Rows(load("artifact"), batch=4)
    row = rows.open(CallOptions(seed=7, sampling={"temperature": 0.0}))
    tick = rows.submit(pcm_BN)                # numpy [4, frame_size] in [-1, 1]; returns at once
    frame = tick.result()                     # waits for the device
    frame.pcm[row], frame.text_token[row], frame.ready[row]
    rows.close(row)

Never more than one `step` is run per tick. A call joins in the next one, which only primes the model: the row's audio
of that tick is not heard (`Tick.heard` says so), and must be sent again. A prompt is encoded and processed in
blocks, by programs of one row, in between the ticks; the call joins when it is done. So nobody waits for anybody.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from moshijax.errors import ConfigError, DataError, MoshijaxError
from moshijax.runtime import conditions
from moshijax.runtime.artifact import Artifact
from moshijax.runtime.checks import check_sampling, split_seed
from moshijax.runtime.hosting import ScriptWord, Use, use_of
from moshijax.runtime.prompt import Prompt, PromptSteps
from moshijax.tokens import UNGENERATED

#: Ticks that may be under way, their results not fetched; a synthesis is offered words for as many.
UNDER_WAY = 3


@dataclass(frozen=True)
class CallOptions:
    """How a call begins.

    Attributes:
      seed: any integer of up to 64 bits.
      sampling: any of temperature, text_temperature, top_k, text_top_k, pad_bonus, and guidance where the artifact has
        it; the rest are the artifact's defaults.
      conditions: {name: value} as `moshijax.runtime.conditions.arrays` takes them; the rest are the defaults.
      prompt: what the call begins with: a `Prompt`, or int32 `[K, T]`, columns of the grid, not delayed. UNGENERATED
        entries are left to the model, a text of ZERO is none.
      null_until: columns at the beginning that guidance hides from the unconditioned half; a `Prompt` knows them.
    """

    seed: int = 0
    sampling: Mapping[str, float] | None = None
    conditions: Mapping[str, Any] | None = None
    prompt: Prompt | np.ndarray | None = None
    null_until: int = 0

    @property
    def prompt_columns(self) -> int:
        """Columns of the grid before what the call returns."""
        if isinstance(self.prompt, Prompt):
            return self.prompt.length
        return 0 if self.prompt is None else np.shape(self.prompt)[1]


@dataclass(frozen=True)
class Row:
    """A call's place in the batch, usable as an index: `frame.pcm[row]`. A closed row's handle stays closed.

    Attributes:
      slot: place in the batch.
      serial: number of the call, which no other call of these rows has.
    """

    slot: int
    serial: int

    def __index__(self) -> int:
        return self.slot


@dataclass(frozen=True)
class Turns:
    """What half-duplex calls (`moshijax.runtime.turns`) add to a `Frame`, a value per row.

    Attributes:
      text: what was added to the answer.
      phase: "listening", "answering" or "speaking".
      cut: bool `[B]`, the caller's speech stopped an answer.
    """

    text: list[str]
    phase: list[str]
    cut: np.ndarray


@dataclass(frozen=True)
class Frame:
    """What one tick returned, on the host.

    Attributes:
      pcm: float32 `[B, frame_size]`, zero where not ready; None where the layout has no audio out.
      text_token, codes: int32 `[B]` and `[B, K]`, UNGENERATED (-2) where not ready.
      ready: bool `[B]`, the row returned a column.
      index: `[B]`, the grid column it returned; it counts from the beginning of a prompt.
      heard: bool `[B]`, the row took in its audio of this tick.
      seconds: wall time from the beginning of `submit` until the outputs were here.
      ended: bool `[B]`, a synthesis or translation took a step and has finished; None for other uses.
      extra_heads: `[B, H, V]`, probabilities of the model's extra heads, or None.
      turns: of half-duplex calls.
    """

    pcm: np.ndarray | None
    text_token: np.ndarray
    codes: np.ndarray
    ready: np.ndarray
    index: np.ndarray
    heard: np.ndarray
    seconds: float
    ended: np.ndarray | None = None
    extra_heads: np.ndarray | None = None
    turns: Turns | None = None


@dataclass(eq=False)
class Tick:
    """One tick under way.

    Attributes:
      rows: that it belongs to.
      heard: bool `[B]`, the rows that take in their audio of this tick; known before the result is.
      stepped: slot -> the call that took a step, and how many steps it has executed.
      outputs: on the device; None where no row took a step.
      started: when `submit` began.
      frame: the result, once it is here.
    """

    rows: Rows
    heard: np.ndarray
    stepped: dict[int, tuple[_OpenCall, int]]
    outputs: dict[str, Any] | None
    started: float
    frame: Frame | None = None

    def result(self) -> Frame:
        """Wait for the device and return the outputs, fetched in one transfer."""
        self.rows.check_thread()
        while self.frame is None:
            self.rows.fetch_next()
        return self.frame


@dataclass(eq=False)
class _OpenCall:
    """Host-side record of an open row."""

    row: Row
    options: CallOptions
    conditions: dict[str, np.ndarray]  # inputs of the program `condition`
    use: Use
    prompt: PromptSteps | None = None  # what its first steps are told
    preparation: Iterator[None] | None = None  # the work of its prompt that is left
    placed: bool = False  # its state is in the batch, with conditions and prompt
    steps: int = field(default=0)  # executed steps since it began


class Rows:
    """The rows of one batch: calls open and close in them while all take a step together.

    One thread owns them: the one that made them. Everything that a call can need is compiled here.

    Args:
      artifact: what `moshijax.runtime.load` returned.
      batch: how many rows, one of the artifact's batch sizes.
      prompts: False compiles less; then no call may have a prompt.
      block: the longest block of a prompt, in frames, that is processed at once between two ticks.
      blocks_per_tick: blocks that `submit` goes through; an engine that knows its slack sets 0 and calls
        `advance_prompts` itself.

    Raises:
      ConfigError: the artifact was not made for this batch size.
      DataError: a program's file is missing or damaged.
    """

    def __init__(
        self, artifact: Artifact, batch: int, *, prompts: bool = True, block: int = 64, blocks_per_tick: int = 1
    ):
        self.artifact, self.batch = artifact, batch
        self._step = artifact.program("step", batch)
        self._blocks: dict[int, Any] = {}
        if prompts:
            lengths = artifact.lengths("prefill")
            fitting = [length for length in lengths if length <= block] or lengths[:1]
            self._blocks = {length: artifact.program("prefill", 1, length) for length in fitting}
            for length in artifact.lengths("encode"):
                artifact.program("encode", 1, length)
        if artifact.conditions:
            artifact.program("condition")
        if prompts or artifact.conditions:
            self._place = artifact.program("place", batch)
            artifact.program("init_state", 1)
        self._blocks_per_tick = blocks_per_tick
        self._neutral = self._step.inputs()
        names = ("seed", "null_until", *artifact.manifest["sampling"]["limits"])
        # Replaced by `open`, never written to: a step under way may still read them.
        self._settings = {name: self._neutral.pop(name) for name in names if name in self._neutral}
        self._state = artifact.init_state(batch)
        self._calls: dict[int, _OpenCall] = {}
        self._serial = itertools.count()
        self._under_way: deque[Tick] = deque()
        self._owner = threading.get_ident()

    # ---- calls ---------------------------------------------------------------------------------------------------

    @property
    def free_rows(self) -> int:
        """How many more calls can be opened."""
        return self.batch - len(self._calls)

    def open(self, options: CallOptions | None = None, use: Use | None = None) -> Row:
        """Start a call in a free row; nothing is run yet.

        Args:
          options: seed, sampling, conditions and prompt of the call.
          use: its host side, if it was prepared before.

        Raises:
          ConfigError: an option out of range.
          MoshijaxError: every row is open.
        """
        self.check_thread()
        options = options or CallOptions()
        settings = {"seed": split_seed(options.seed), **check_sampling(self.artifact, options.sampling or {})}
        table, values = self.artifact.manifest["conditions"], dict(self.artifact.conditions)
        for name, value in (options.conditions or {}).items():
            arrays = conditions.arrays(table, name, value)
            values |= {f"condition/{key}": array for key, array in arrays.items()}
        prompt, settings["null_until"] = None, options.null_until
        if isinstance(options.prompt, Prompt):
            settings["null_until"] = options.prompt.hidden
        elif options.prompt is not None:
            prompt = PromptSteps(self.artifact, options.prompt)
        if options.prompt is not None and not self._blocks:
            raise ConfigError("these rows take no prompts: make them with prompts=True")
        if not self.free_rows:
            raise MoshijaxError(f"all {self.batch} rows are open; close one, or load the artifact with a larger batch")
        slot = next(slot for slot in range(self.batch) if slot not in self._calls)
        call = _OpenCall(Row(slot, next(self._serial)), options, values, use or use_of(self.artifact), prompt)
        if options.prompt is not None:
            call.preparation = self._prepare(call)
        for name in self._settings:
            changed = self._settings[name].copy()
            changed[slot] = settings[name]
            self._settings[name] = changed
        self._calls[slot] = call
        return call.row

    def close(self, row: Row) -> None:
        """End a call and free its row. Closing twice does nothing."""
        self.check_thread()
        if self.is_open(row):
            del self._calls[row.slot]

    def is_open(self, row: Row) -> bool:
        """Return whether the call of this handle has not been closed."""
        call = self._calls.get(row.slot)
        return call is not None and call.row == row

    def is_prepared(self, row: Row) -> bool:
        """Return whether nothing of a call's prompt is left, so that it takes part in ticks.

        Raises:
          ConfigError: the row is closed.
        """
        return self._call(row).preparation is None

    def hears_next(self, row: Row) -> bool:
        """Return whether the next step of a call would take in its audio: it primes no more, and was told its prompt.

        Raises:
          ConfigError: the row is closed.
        """
        call = self._call(row)
        given = 1 if call.prompt is None else max(1, call.prompt.given.shape[1])
        return self.artifact.hears and call.preparation is None and call.steps >= given

    def say(self, row: Row, words: Sequence[ScriptWord], done: bool = False) -> None:
        """Give a call of a synthesis artifact more words; `done`: they are the last.

        Raises:
          ConfigError: the row is closed, the artifact takes no words, or a word does not fit.
        """
        self._call(row).use.say(words, done)

    def spoken(self, row: Row) -> list[tuple[str, int]]:
        """Return the words that the model has begun, with the grid columns in which it did."""
        return self._call(row).use.spoken()

    def end_input(self, row: Row) -> None:
        """Tell a translation in its next step that its input is over.

        Raises:
          ConfigError: the row is closed, or the artifact does not translate.
        """
        self._call(row).use.end_input()

    # ---- ticks ---------------------------------------------------------------------------------------------------

    def submit(self, pcm_BN: np.ndarray | None = None, active_B: np.ndarray | None = None) -> Tick:
        """Send one frame of every open row to the device and return at once.

        The next tick can be submitted before the result of this one is fetched, up to `UNDER_WAY` of them; one more
        waits for the first.

        Args:
          pcm_BN: float32 `[B, frame_size]` in [-1, 1], closed rows ignored; omitted if the layout has no audio in.
          active_B: bool `[B]`; rows that are false are paused.

        Raises:
          ConfigError: no row is open, or a wrong shape.
          DataError: samples that are not finite.
        """
        started = time.perf_counter()
        self.check_thread()
        if not self._calls:
            raise ConfigError("no row is open; call rows.open() before rows.submit()")
        live = np.zeros(self.batch, bool)
        live[[slot for slot, call in self._calls.items() if call.preparation is None]] = True
        if active_B is not None:
            live &= np.asarray(active_B, bool)
        inputs = {name: value.copy() for name, value in self._neutral.items()} | self._settings
        if self.artifact.hears:
            inputs["pcm"] = self._checked(pcm_BN, live)
        while len(self._under_way) >= UNDER_WAY:
            self.fetch_next()
        heard, outputs = np.zeros(self.batch, bool), None
        for slot in np.flatnonzero(live).tolist():
            heard[slot] = self._fill(inputs, slot, self._calls[slot])
        if live.any():
            inputs["active"] = live
            self._state, outputs = self._step(self.artifact.weights, self._state, inputs)
        stepped = {slot: (call, call.steps) for slot, call in self._calls.items()}
        tick = Tick(self, heard, {s: c for s, c in stepped.items() if live[s]}, outputs, started)
        self._under_way.append(tick)
        self.advance_prompts(self._blocks_per_tick)
        return tick

    def step(self, pcm_BN: np.ndarray | None = None, active_B: np.ndarray | None = None) -> Frame:
        """Return `submit(pcm_BN, active_B).result()`: one frame, waited for."""
        return self.submit(pcm_BN, active_B).result()

    def advance_prompts(self, blocks: int = 1) -> bool:
        """Go through blocks of the prompts of calls that have not joined yet, the first opened first.

        Returns:
          Whether there is more to do.

        Raises:
          Exception: what the preparation of a call raised. Its row is closed; the others continue.
        """
        self.check_thread()
        waiting = sorted((call for call in self._calls.values() if call.preparation), key=lambda c: c.row.serial)
        for call in waiting:
            while blocks > 0 and call.preparation is not None:
                blocks -= 1
                try:
                    next(call.preparation)
                except StopIteration:
                    call.preparation = None
                except Exception:
                    self.close(call.row)
                    raise
        return any(call.preparation for call in waiting)

    def fetch_next(self) -> None:
        """Wait for the first tick under way and keep its frame."""
        tick = self._under_way.popleft()
        outputs = self._nothing() if tick.outputs is None else jax.device_get(tick.outputs)
        index, stepped = np.full(self.batch, -1), np.zeros(self.batch, bool)
        for slot, (call, steps) in tick.stepped.items():
            stepped[slot] = True
            index[slot] = steps - 1 - self.artifact.max_delay
            call.use.read(outputs, slot, steps - 1)
        tick.outputs = None
        tick.frame = Frame(
            pcm=outputs.get("pcm"),
            text_token=outputs["text_token"],
            codes=outputs["codes"],
            ready=outputs["ready"],
            index=index,
            heard=tick.heard,
            seconds=time.perf_counter() - tick.started,
            ended=outputs["ended"] & stepped if "ended" in outputs else None,
            extra_heads=outputs.get("extra_heads"),
        )

    def check_thread(self) -> None:
        """Refuse another thread than the owner.

        Raises:
          MoshijaxError: it is another one.
        """
        if threading.get_ident() != self._owner:
            raise MoshijaxError(
                "rows belong to the thread that made them; call them there, and hand audio over through a queue"
            )

    # ---- inside --------------------------------------------------------------------------------------------------

    def _call(self, row: Row) -> _OpenCall:
        self.check_thread()
        if not self.is_open(row):
            raise ConfigError("the row is closed; open another")
        return self._calls[row.slot]

    def _checked(self, pcm_BN: np.ndarray | None, live: np.ndarray) -> np.ndarray:
        """Return the audio of the live rows, zeros elsewhere."""
        pcm_BN = np.asarray(pcm_BN, np.float32)
        if pcm_BN.shape != (self.batch, self.artifact.frame_size):
            raise ConfigError(f"pcm must be [{self.batch}, {self.artifact.frame_size}], got {list(pcm_BN.shape)}")
        bad = live & ~np.isfinite(pcm_BN).all(axis=1)
        if bad.any():
            raise DataError(f"pcm of row {int(bad.argmax())} holds NaN or Inf; samples must be finite, in [-1, 1]")
        return np.where(live[:, None], pcm_BN, np.float32(0))

    def _fill(self, inputs: dict[str, np.ndarray], slot: int, call: _OpenCall) -> bool:
        """Put what a call gives to its next step into the inputs; return whether the row's audio is heard."""
        if not call.placed:
            call.placed = True
            if self.artifact.conditions:
                self._put(slot, self._conditioned(call))
            else:
                inputs["reset"][slot] = True
        call.steps += 1
        told = call.prompt
        # The first step hears nothing: what it is given is not looked at.
        hears = self.artifact.hears and call.steps > 1
        if told is not None:
            step = call.steps - 1
            if step < told.forced:
                inputs["force_text"][slot], inputs["force_codes"][slot] = told.text[step], told.codes[:, step]
            if step < told.given.shape[1] and self.artifact.hears:
                inputs["given"][slot], hears = told.given[:, step], False
        return call.use.fill(inputs, slot, hears)

    def _prepare(self, call: _OpenCall) -> Iterator[None]:
        """Encode the prompt of a call, go through it, and put the row into the batch; yields after each block."""
        artifact, weights = self.artifact, self.artifact.weights
        if call.prompt is None:
            columns = yield from call.options.prompt.columns(artifact)
            call.prompt = PromptSteps(artifact, columns)
        state = self._conditioned(call)
        while call.steps < call.prompt.certain:
            left = call.prompt.certain - call.steps
            # The shortest block that holds what is left, else the longest.
            holding = [length for length in self._blocks if length >= left]
            program = self._blocks[min(holding) if holding else max(self._blocks)]
            inputs = call.prompt.block(program.inputs(), call.steps)
            if "null_until" in inputs:
                inputs["null_until"][:] = self._settings["null_until"][call.row.slot]
            state, _ = program(weights, state, inputs)
            call.steps += int(inputs["length"][0])
            if call.steps < call.prompt.certain:
                yield
        self._put(call.row.slot, state)
        call.placed = True

    def _conditioned(self, call: _OpenCall) -> Any:
        """Return the state of one row that has not begun, with the conditions of a call."""
        state = self.artifact.init_state()
        if self.artifact.conditions:
            program = self.artifact.program("condition")
            inputs = {name: value[None] for name, value in call.conditions.items()}
            state, _ = program(self.artifact.weights, state, inputs)
        return state

    def _put(self, slot: int, row: Mapping[str, Any]) -> None:
        """Put the state of one row into the batch."""
        inputs = {"slot": np.int32(slot), **{f"row/{name}": value for name, value in row.items()}}
        self._state, _ = self._place(self.artifact.weights, self._state, inputs)

    def _nothing(self) -> dict[str, np.ndarray]:
        """Return the outputs of a tick in which no row took a step."""
        return {
            name: np.full(
                (self.batch, *spec["shape"][1:]),
                UNGENERATED if name in ("text_token", "codes") else 0,
                spec["dtype"],
            )
            for name, spec in self.artifact.manifest["outputs"]["step"].items()
        }
