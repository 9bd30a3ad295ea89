"""The host side of each use of a model: what a call puts in, when it is over, and what it returns.

One class for each policy of `moshijax.lm.policies`, one object for each call. `Rows` asks it what goes into the next
step of its row and tells it what came out; `moshijax.runtime.play` asks it what an offline call hears and when to end.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moshijax.errors import ConfigError
from moshijax.runtime.artifact import Artifact

if TYPE_CHECKING:
    from jaxtyping import Float, Int

TRANSLATION_TAIL = 30.0  # seconds that a translation may still speak after its input


@dataclass(frozen=True)
class ScriptWord:
    """A word to speak.

    Attributes:
      text: as it is shown.
      pieces: its text tokens; a word without any is a pause.
      padding: frames after it without another word.
    """

    text: str
    pieces: tuple[int, ...]
    padding: int = 0


@dataclass(frozen=True)
class Call:
    """One finished call of T frames, in grid time: column t of everything belongs to the same 80 ms.

    Attributes:
      text_tokens, codes: int32 `[T]` and `[K, T]`, UNGENERATED where not ready (at most the first column).
      pcm: float32 `[T * frame_size]`, the model's voice; None for recognition.
      user: float32 `[T * frame_size]`, what it heard; None for synthesis.
      words: (word, start, end) in seconds where the model was told its words; None if they are in its text tokens.
      text_delay: seconds by which the text is behind the audio.
      extra_heads: `[T, H, V]`, probabilities of the extra heads, where the model has any.
      complete: a translation or synthesis finished within the time it had.
    """

    text_tokens: Int[np.ndarray, " T"]
    codes: Int[np.ndarray, "K T"]
    pcm: Float[np.ndarray, " N"] | None
    user: Float[np.ndarray, " N"] | None
    words: list[tuple[str, float, float]] | None = None
    text_delay: float = 0.0
    extra_heads: Float[np.ndarray, "T H V"] | None = None
    complete: bool = True


class Use:
    """Host side of a call that takes nothing but audio and has no end of its own; the base of all uses."""

    def __init__(self, artifact: Artifact):
        self.artifact = artifact
        self.sent = 0  # frames that were heard
        self.taken = 0  # words that the model has begun, pauses among them
        self.done, self.total = 0, 1  # progress of an offline call

    # In a step.

    def fill(self, inputs: dict[str, np.ndarray], slot: int, hears: bool) -> bool:
        """Put what the call gives to its next step into the inputs; return whether the step hears the row's audio."""
        return hears

    def read(self, outputs: dict[str, np.ndarray], slot: int, column: int) -> None:
        """Note what a step returned; `column` is the one that it sampled text for."""

    # From outside.

    def say(self, words: Sequence[ScriptWord], done: bool) -> None:
        """Take more words to speak.

        Raises:
          ConfigError: the artifact takes no words.
        """
        raise ConfigError(f"the layout of {self.artifact.path} takes no text in; only synthesis speaks words")

    def end_input(self) -> None:
        """Note that the input is over.

        Raises:
          ConfigError: the artifact does not translate.
        """
        raise ConfigError(f"{self.artifact.path} has no end of input: only translation does")

    def spoken(self) -> list[tuple[str, int]]:
        """Return the words that the model has begun to speak, with the grid columns in which it did."""
        return []

    def finished(self, column: int, index: int, ended: bool) -> bool:
        """Return whether the model has finished, in a live call, which has no recording that ends; as `over`."""
        return ended

    # Offline.

    def listen(self, waveform: Float[np.ndarray, " N"], tail_seconds: float | None = None) -> None:
        """Take the recording of a user, before the call is opened.

        Raises:
          ConfigError: the artifact takes no audio, or this is no waveform.
        """
        raise ConfigError(f"the layout of {self.artifact.path} takes no audio in; it cannot play a user's recording")

    def first_column(self, prompt_columns: int) -> int:
        """Return the grid column that the result begins with."""
        return prompt_columns

    def next_frame(self) -> np.ndarray:
        """Return what is heard in the next frame: silence."""
        return np.zeros(self.artifact.frame_size, np.float32)

    def over(self, column: int, index: int, ended: bool) -> bool:
        """Return whether the call is over after a frame.

        Args:
          column: the returned column of the result.
          index: the same column, counted on the grid.
          ended: whether the model says that it has finished.
        """
        raise NotImplementedError

    def result(self, columns: int) -> dict[str, Any]:
        """Return fields of the `Call` beside what its columns hold."""
        return {"user": None}


class Conversation(Use):
    """A call that lasts as long as the recording that it hears."""

    silence = 0.0  # seconds to be heard before the recording
    text_delay = 0.0

    def __init__(self, artifact: Artifact):
        super().__init__(artifact)
        self.forced: Mapping[int, int] = {}  # column after a prompt -> text token that is written there

    def fill(self, inputs: dict[str, np.ndarray], slot: int, hears: bool) -> bool:
        """Force the text of the column that the step samples, one ahead of what it hears."""
        if hears and (token := self.forced.get(self.sent + 1)) is not None:
            inputs["force_text"][slot] = token
        return hears

    def listen(self, waveform: Float[np.ndarray, " N"], tail_seconds: float | None = None) -> None:
        """Take a recording of any length; `tail_seconds` of silence after it leave time for a late answer.

        Raises:
          ConfigError: this is no waveform `[N]`.
        """
        rate, size = self.artifact.sample_rate, self.artifact.frame_size
        waveform = np.asarray(waveform, np.float32)
        if waveform.ndim != 1 or not len(waveform):
            raise ConfigError(f"a user waveform must be [N] with N > 0, got {list(waveform.shape)}")
        before, after = round(self.silence * rate), round(self.tail(tail_seconds) * rate)
        self.user = np.pad(waveform, (before, after + -(len(waveform) + before + after) % size))
        self.frames = self.total = len(self.user) // size

    def tail(self, seconds: float | None) -> float:
        """Return the seconds of silence after the recording."""
        return seconds or 0.0

    def next_frame(self) -> np.ndarray:
        """Return the next user frame; silence while the last delayed columns are still coming out."""
        start = self.sent * self.artifact.frame_size
        frame = self.user[start : start + self.artifact.frame_size]
        return frame if len(frame) else super().next_frame()

    def over(self, column: int, index: int, ended: bool) -> bool:
        """Return whether the column of the last frame is there."""
        self.done = min(self.sent, self.total)
        return column >= self.frames - 1

    def result(self, columns: int) -> dict[str, Any]:
        """Return what was heard."""
        return {"user": self.user, "text_delay": self.text_delay}


class Recognition(Conversation):
    """A call that hears a recording, with the silence that the model needs before it and after it.

    The silence after it gives the late text time to come out.
    """

    def __init__(self, artifact: Artifact):
        super().__init__(artifact)
        self.silence = artifact.policy["silence"]
        self.text_delay = artifact.policy["silence"] + artifact.policy["text_delay"]

    def tail(self, seconds: float | None) -> float:
        """Return the seconds of silence after the recording: by default the delay of the text and a second."""
        return self.artifact.policy["text_delay"] + 1.0 if seconds is None else seconds


class Translation(Conversation):
    """A call that hears a recording, then silence until the model has finished."""

    def __init__(self, artifact: Artifact):
        super().__init__(artifact)
        self.ending = self.ended = False  # to be told in the next step; told
        self.complete = False

    def fill(self, inputs: dict[str, np.ndarray], slot: int, hears: bool) -> bool:
        """Tell the model that the input is over, in the next step that would hear; it hears no audio then."""
        hears = super().fill(inputs, slot, hears)
        if not (self.ending and hears):
            return hears
        inputs["end_of_input"][slot] = True
        self.ending, self.ended = False, True
        return False

    def end_input(self) -> None:
        """Note that the input is over."""
        self.ending = not self.ended

    def listen(self, waveform: Float[np.ndarray, " N"], tail_seconds: float | None = None) -> None:
        """Take a recording; `tail_seconds` are what the translation may take after it (`TRANSLATION_TAIL`)."""
        super().listen(waveform)
        seconds = TRANSLATION_TAIL if tail_seconds is None else tail_seconds
        self.patience = round(seconds / self.artifact.frame_seconds)

    def next_frame(self) -> np.ndarray:
        """Return the next user frame; after the last, end the input."""
        if self.sent == self.frames:
            self.end_input()
        return super().next_frame()

    def over(self, column: int, index: int, ended: bool) -> bool:
        """Return whether the model has finished, or has had its time."""
        self.done, self.complete = min(self.sent, self.total), ended
        return ended or column >= self.frames + self.patience

    def result(self, columns: int) -> dict[str, Any]:
        """Return what was heard, as long as the answer."""
        length = columns * self.artifact.frame_size
        user = np.pad(self.user, (0, max(0, length - len(self.user))))[:length]
        return {"user": user, "complete": self.complete}


class Synthesis(Use):
    """A call that speaks words, until the model has asked for one after the last and its voice has caught up."""

    def __init__(self, artifact: Artifact):
        super().__init__(artifact)
        self.words: list[ScriptWord] = []
        self.total = 0
        self.text_done = False  # no more words will come
        self.begun: list[tuple[str, int]] = []
        self.last: int | None = None

    def say(self, words: Sequence[ScriptWord], done: bool) -> None:
        """Take more words to speak; `done`: they are the last.

        Raises:
          ConfigError: a word with more pieces than the artifact takes, or with unknown ones.
        """
        card, limit = self.artifact.streams[0]["card"], self.artifact.policy["max_pieces"]
        for word in words:
            if len(word.pieces) > limit:
                raise ConfigError(
                    f"the word {word.text!r} has {len(word.pieces)} pieces, the artifact takes {limit}; break it up"
                )
            if word.pieces and not 0 <= min(word.pieces) <= max(word.pieces) < card:
                raise ConfigError(f"the word {word.text!r} holds pieces outside 0 to {card - 1}")
        self.words += words
        self.total += sum(bool(word.pieces) for word in words)
        self.text_done = done

    def fill(self, inputs: dict[str, np.ndarray], slot: int, hears: bool) -> bool:
        """Offer the next words, each with the one that the second text stream sees ahead of it.

        Several, because the steps under way may take some of them.
        """
        look_ahead, offered = self.artifact.policy["look_ahead"], inputs["word"].shape[1]
        inputs["word_number"][slot], inputs["text_done"][slot] = self.taken, self.text_done
        for place, word in enumerate(self.words[self.taken : self.taken + offered]):
            coming = self._coming(self.taken + place + 1, look_ahead)
            # With more words to come, a word waits for the one to look ahead at.
            inputs["word_waiting"][slot, place] = self.text_done or len(coming) == look_ahead
            inputs["word"][slot, place, : len(word.pieces)] = word.pieces
            inputs["word_padding"][slot, place] = word.padding
            if look_ahead and len(coming) == look_ahead:
                inputs["word_ahead"][slot, place, : len(coming[-1])] = coming[-1]
        return hears

    def _coming(self, first: int, count: int) -> list[tuple[int, ...]]:
        """Return the pieces of so many words from one on, pauses not counted; fewer where there are no more."""
        spoken = (word.pieces for word in map(self.words.__getitem__, range(first, len(self.words))) if word.pieces)
        return list(itertools.islice(spoken, count))

    def read(self, outputs: dict[str, np.ndarray], slot: int, column: int) -> None:
        """Count the word that the step took."""
        if outputs["word_taken"][slot]:
            word, self.taken = self.words[self.taken], self.taken + 1
            if word.pieces:
                self.begun.append((word.text, column))

    def spoken(self) -> list[tuple[str, int]]:
        """Return the words that the model has begun to speak, with the grid columns in which it did."""
        return list(self.begun)

    def first_column(self, prompt_columns: int) -> int:
        """Return the column after the prompt's sound, which is as much behind its text as all sound."""
        delay = self.artifact.policy["audio_delay"]
        self.prefix = max(0, prompt_columns - delay)
        return self.prefix + delay

    def over(self, column: int, index: int, ended: bool) -> bool:
        """Return whether the voice has come to the end of the words."""
        self.done = len(self.begun)
        if self.last is None and ended:
            self.last = index + self.artifact.max_delay - self.prefix + self.artifact.policy["final_padding"]
        return self.last is not None and column >= self.last - 1

    def finished(self, column: int, index: int, ended: bool) -> bool:
        """Return whether the voice has come to the end of the words."""
        return self.over(column, index, ended)

    def result(self, columns: int) -> dict[str, Any]:
        """Return the words with their times."""
        frame = self.artifact.frame_seconds
        starts = [(column - self.prefix) * frame for _, column in self.begun]
        ends = [*starts[1:], (self.last - self.artifact.policy["final_padding"]) * frame]
        words = [(word, round(start, 4), round(end, 4)) for (word, _), start, end in zip(self.begun, starts, ends)]
        return {"user": None, "words": words}


class Answer(Use):
    """A half-duplex call, which lasts until its caller leaves (`moshijax.runtime.turns`)."""


USES = {use.__name__: use for use in (Answer, Conversation, Recognition, Synthesis, Translation)}


def use_of(artifact: Artifact) -> Use:
    """Return the host side of a new call of an artifact."""
    return USES[artifact.policy["type"]](artifact)
