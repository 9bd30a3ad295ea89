"""Synthesisers that give sound alone: their clips, kept by content, checked, and given word times."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from moshijax import files, optional
from moshijax.data.synthesis.hearing import ClipRejected, Listening, TimedText, check, word_times
from moshijax.data.synthesis.speech import Speech
from moshijax.errors import ConfigError


class Clip(NamedTuple):
    """What such a synthesiser gives.

    Attributes:
      samples: [N] float32 in [-1, 1].
      rate: in Hz.
      words: with times in seconds, where it knows them; the text between spaces need not be theirs.
    """

    samples: np.ndarray
    rate: int
    words: tuple[TimedText, ...] | None = None


class Synthesizer(Protocol):
    """Speaks a text."""

    def sound(self, text: str, voice: Any, seed: int) -> Clip:
        """Speak one utterance.

        Args:
          text: at least one word.
          voice: of the synthesiser's own class in `moshijax.data.synthesis.voices`.
          seed: of what it draws, if it takes one.

        Raises:
          DataError: this text, or this voice, cannot be spoken.
          MoshijaxError: the synthesiser fails.
        """
        ...


class ClipSpeaker:
    """A speaker (`speech.Speaker`) made of a synthesiser that gives sound.

    A clip is kept in a file whose name follows from voice, text and seed, and read from it again: nothing is spoken
    twice, neither after an interruption nor when the same words are said again.

    Args:
      synthesizer: that speaks.
      seed: the clip of a text is drawn from it and the text.
      folder: of the clips.
      listening: who hears them; None: nobody, and the synthesiser has to know when its words are spoken.
    """

    def __init__(self, synthesizer: Synthesizer, seed: int, folder: Path, listening: Listening | None) -> None:
        self._synthesizer, self._seed, self._folder, self._listening = synthesizer, seed, folder, listening

    def close(self) -> None:
        """Do nothing: what a synthesiser has loaded is kept for the next dialogue."""

    def speak(self, text: str, voice: Any) -> Speech:
        """Speak one utterance.

        Raises:
          ClipRejected: the clip is not fit for use.
          ConfigError: nobody knows when its words are spoken.
          DataError: the text cannot be spoken.
        """
        clip = self._clip(text, voice)
        check(clip.samples, clip.rate, text)
        words = clip.words
        if self._listening is not None:
            heard = self._listening.hear(clip.samples, clip.rate, text)
            words = heard if words is None else words
        if words is None:
            raise ConfigError(
                f"nobody knows when the words of {text[:40]!r} are spoken: add --listen, which hears them"
            )
        return Speech.of(clip.samples, clip.rate, word_times(text, words, clip.samples, clip.rate), ())

    def _clip(self, text: str, voice: Any) -> Clip:
        seeded = getattr(voice, "seeded", True)
        key = [type(voice).__name__, dataclasses.asdict(voice), text, self._seed if seeded else None]
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        path = self._folder / f"{digest[:32]}.flac"
        if not path.exists():
            made = self._synthesizer.sound(text, voice, int(digest[:8], 16))
            if not np.isfinite(made.samples).all():
                raise ClipRejected(
                    f"the clip of {text[:40]!r} holds values that are not finite: try again", "not_finite"
                )
            self._folder.mkdir(exist_ok=True)
            files.write_json(path.with_suffix(".json"), {"text": text, "words": made.words})
            files.write(path, _flac(made))
        samples, rate = optional.load("soundfile").read(path, dtype="float32")
        words = files.read_json(path.with_suffix(".json"), "clip")["words"]
        return Clip(samples, rate, None if words is None else tuple(map(tuple, words)))


def _flac(clip: Clip) -> bytes:
    content = io.BytesIO()
    optional.load("soundfile").write(
        content, np.clip(clip.samples, -1.0, 1.0), clip.rate, format="FLAC", subtype="PCM_16"
    )
    return content.getvalue()
