"""What one model is used for: conversation, recognition, synthesis or translation.

Each is a small policy over the same generation step: pure functions of arrays with leading axis B that say what the
model is given, what its text token becomes before the audio of the frame is sampled, and when it is done. A policy that
has nothing to say leaves no trace in the compiled step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from moshijax.annotations import Frames, Seconds
from moshijax.errors import ConfigError
from moshijax.lm.config import LMConfig
from moshijax.tokens import EOS, UNGENERATED, ZERO

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Int

    Arrays = dict[str, Array]
    Specs = dict[str, tuple[tuple[int, ...], Any]]  # name -> shape and dtype


class _Policy:
    """What a policy may say; nothing unless it says otherwise."""

    def check(self, config: LMConfig) -> None:
        """Check that a model can be used this way.

        Raises:
          ConfigError: it cannot.
        """

    def input_specs(self, batch: int) -> Specs:
        """Return the inputs of every step beside those that all models have, as name -> (shape, dtype)."""
        return {}

    def init_state(self, batch: int) -> Arrays:
        """Return the policy's part of the state of rows that have not begun."""
        return {}

    def given(self, config: LMConfig, inputs: Arrays, given_BK: Any) -> Any:
        """Return the tokens of the given rows that the model takes in."""
        return given_BK

    def text(
        self, config: LMConfig, state: Arrays, inputs: Arrays, token_B: Int[Array, " B"], free_B: Bool[Array, " B"]
    ) -> tuple[Arrays, Int[Array, " B"], Arrays]:
        """Decide what the sampled text token becomes.

        Args:
          config: of the model.
          state: the policy's.
          inputs: of the step.
          token_B: the sampled text token.
          free_B: rows whose text is not forced; the state of the others stays as it is.

        Returns:
          The state, the token to use, and outputs of the step.
        """
        return state, token_B, {}

    def codes(self, config: LMConfig, offset_B: Int[Array, " B"], force_BQ: Int[Array, "B Q"]) -> Int[Array, "B Q"]:
        """Return the codes that are forced in this step, `UNGENERATED` where they are free."""
        return force_BQ

    def finish(
        self, config: LMConfig, state: Arrays, inputs: Arrays, text_B: Int[Array, " B"], free_B: Bool[Array, " B"]
    ) -> tuple[Arrays, Arrays]:
        """Take note of the text of the returned frame, `UNGENERATED` where there is none.

        Returns:
          The state, and outputs of the step.
        """
        return state, {}


@dataclass(frozen=True)
class Conversation(_Policy):
    """A conversation: the model hears the given rows and speaks for itself."""


@dataclass(frozen=True)
class Recognition(_Policy):
    """Audio in, text with word times out.

    Attributes:
      text_delay: seconds by which the text is behind the audio.
      silence: seconds of silence that the model needs to hear first.
    """

    text_delay: Seconds = 0.5
    silence: Seconds = 0.0

    def check(self, config: LMConfig) -> None:
        if config.layout.dep_q:
            raise ConfigError(f"recognition with {config.layout.dep_q} generated audio rows: use a layout without any")


@dataclass(frozen=True)
class Translation(_Policy):
    """Speech in, translated speech and text out, until the model has finished.

    In the frame after the last of the input `end_of_input` feeds the token `card` on all given rows; silence follows,
    and the row has `ended` when the model returns `EOS` (Hibiki, arXiv 2502.03382; `run_inference.py` of `moshi`).
    """

    def input_specs(self, batch: int) -> Specs:
        return {"end_of_input": ((batch,), np.bool_)}

    def init_state(self, batch: int) -> Arrays:
        return {"input_ended": jnp.zeros((batch,), bool)}

    def given(self, config: LMConfig, inputs: Arrays, given_BK: Array) -> Array:
        return jnp.where(inputs["end_of_input"][:, None], config.card, given_BK)

    def finish(
        self, config: LMConfig, state: Arrays, inputs: Arrays, text_B: Array, free_B: Array
    ) -> tuple[Arrays, Arrays]:
        input_ended = state["input_ended"] | (free_B & inputs["end_of_input"])
        return {"input_ended": input_ended}, {"ended": input_ended & (text_B == EOS)}


@dataclass(frozen=True)
class Synthesis(_Policy):
    """Words in, speech out (delayed streams, arXiv 2509.08753; the state machine of `models/tts.py` of `moshi`).

    The model says when a word begins, by EPAD where it could say PAD; the next word is then taken and its pieces are
    fed one per frame. Its audio follows `audio_delay` frames later; until then the audio rows are `ZERO`. A word comes
    as `word [B, W]` (pieces, then -1; a pause has none), `word_ahead [B, W]`, the pieces of the word `look_ahead`
    words later, and `word_padding [B]`, frames without another word after it. `word_waiting [B]` says that there is
    one, and `text_done [B]` that no more will come: the row has `ended` when the model asks for another.

    Attributes:
      audio_delay: frames by which the audio is behind the text.
      look_ahead: words by which the second text stream is ahead; 0: there is none.
      initial_padding: frames before the first word.
      max_padding: frames of PAD after which a word must begin.
      final_padding: frames after the end.
      max_pieces: W, pieces of the longest word.
      queue: room for pieces looked ahead at; a word waits while there is none.
      turn_tokens: a speaker's turn begins with a token for the speaker, BOS or EOS.
    """

    audio_delay: Frames = 16
    look_ahead: Frames = 0
    initial_padding: Frames = 2
    max_padding: Frames = 8
    final_padding: Frames = 4
    max_pieces: Frames = 32
    queue: Frames = 128
    turn_tokens: bool = False

    def __post_init__(self) -> None:
        for name in ("audio_delay", "look_ahead", "initial_padding", "max_padding", "final_padding"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)!r}: must be a whole number, 0 or more")
        if self.max_pieces < 1 or self.queue < self.max_pieces:
            raise ConfigError(f"max_pieces={self.max_pieces}, queue={self.queue}: must be positive, queue the larger")

    def check(self, config: LMConfig) -> None:
        if bool(self.look_ahead) != config.demux_text:
            raise ConfigError(
                f"look_ahead={self.look_ahead} with demux_text={config.demux_text}: a second text stream needs both"
            )
        if config.layout.given_rows or not config.layout.dep_q:
            raise ConfigError("synthesis takes no audio in and generates audio: every audio row must be generated")

    def input_specs(self, batch: int) -> Specs:
        word = ((batch, self.max_pieces), np.int32)
        specs = {
            "word": word,
            "word_padding": ((batch,), np.int32),
            "word_waiting": ((batch,), np.bool_),
            "text_done": ((batch,), np.bool_),
        }
        return {**specs, "word_ahead": word} if self.look_ahead else specs

    def init_state(self, batch: int) -> Arrays:
        number = jnp.zeros((batch,), jnp.int32)
        state = {
            "pieces": jnp.full((batch, self.max_pieces), -1, jnp.int32),
            "remaining_padding": number + self.initial_padding,
            "forced_padding": number + self.initial_padding,
            "ended": jnp.zeros((batch,), bool),
        }
        return {**state, "ahead": jnp.full((batch, self.queue), -1, jnp.int32)} if self.look_ahead else state

    def text(
        self, config: LMConfig, state: Arrays, inputs: Arrays, token_B: Array, free_B: Array
    ) -> tuple[Arrays, Array, Arrays]:
        pad, begin = config.pad_id, config.epad_id
        pieces, remaining, forced = state["pieces"], state["remaining_padding"], state["forced_padding"]
        # A word may begin once the last is out and its pause over, and must when there was padding for long enough.
        asked = (token_B == begin) | (remaining <= 0)
        asked = asked & (pieces[:, 0] < 0) & (forced <= 0)
        if self.look_ahead:
            asked = asked & ((_length(state["ahead"]) + self.max_pieces <= self.queue) | ~inputs["word_waiting"])
        taken = asked & inputs["word_waiting"]
        spoken = taken & (inputs["word"][:, 0] >= 0)
        ending = asked & ~inputs["word_waiting"] & inputs["text_done"]
        first_end = ending & ~state["ended"]

        pieces = jnp.where(spoken[:, None], inputs["word"], pieces)
        remaining = jnp.where(spoken, self.max_padding, remaining)
        forced = jnp.where(taken, inputs["word_padding"], forced)
        # (with a second stream the end is announced there as one more word)
        beginning = (spoken | first_end) if self.look_ahead else spoken
        remaining = jnp.where(beginning, remaining, jnp.maximum(remaining - 1, 0))
        forced = jnp.where(beginning, forced, jnp.maximum(forced - 1, 0))
        token, popped = _pop(pieces, pad)
        token = jnp.where(beginning, begin, token)
        pieces = jnp.where(beginning[:, None], pieces, popped)
        new = {"remaining_padding": remaining, "forced_padding": forced, "ended": state["ended"] | ending}

        if self.look_ahead:
            ahead = jnp.where(spoken[:, None], _append(state["ahead"], inputs["word_ahead"]), state["ahead"])
            marks = token == begin
            following, popped = _pop(pieces, pad)
            looked, rest = _pop(ahead, -1)
            second = jnp.where(marks, begin, looked)
            token = jnp.where(marks, following, token)
            pieces = jnp.where(marks[:, None], popped, pieces)
            new["ahead"] = jnp.where(marks[:, None], ahead, rest)
            token = config.mux(token, second)
        new["pieces"] = pieces
        new = {name: _where(free_B, new[name], old) for name, old in state.items()}
        return new, jnp.where(free_B, token, token_B), {"word_taken": free_B & taken, "ended": new["ended"]}

    def codes(self, config: LMConfig, offset_B: Array, force_BQ: Array) -> Array:
        delays = jnp.asarray([config.layout.delays[row] for row in config.layout.model_rows[1:]], jnp.int32)
        return jnp.where(offset_B[:, None] < delays + self.audio_delay, ZERO, force_BQ)


Policy = Conversation | Recognition | Synthesis | Translation


def reset(policy: Policy, state: Arrays, rows: Bool[Array, " B"]) -> Arrays:
    """Return the policy's state with the rows that are true at their start."""
    new = policy.init_state(rows.shape[0])
    return {name: _where(rows, new[name], old) for name, old in state.items()}


def _where(rows: Array, new: Array, old: Array) -> Array:
    return jnp.where(rows.reshape(-1, *(1,) * (new.ndim - 1)), new, old)


def _length(queue_BN: Array) -> Array:
    """Entries of a queue: those before the first -1."""
    return jnp.sum(queue_BN >= 0, axis=1)


def _pop(queue_BN: Array, empty: int) -> tuple[Array, Array]:
    """The first entry, or `empty`, and the queue without it."""
    first = queue_BN[:, 0]
    rest = jnp.concatenate([queue_BN[:, 1:], jnp.full_like(queue_BN[:, :1], -1)], axis=1)
    return jnp.where(first < 0, empty, first), rest


def _append(queue_BN: Array, more_BM: Array) -> Array:
    """The queue with more entries at its end."""
    place = jnp.arange(queue_BN.shape[1]) - _length(queue_BN)[:, None]
    found = jnp.take_along_axis(more_BM, jnp.clip(place, 0, more_BM.shape[1] - 1), axis=1)
    return jnp.where((place >= 0) & (place < more_BM.shape[1]), found, queue_BN)


def forced(force: Array, token: Array) -> Array:
    """Return the tokens to use where some are forced."""
    return jnp.where(force == UNGENERATED, token, force)
