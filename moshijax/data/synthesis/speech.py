"""One spoken utterance with the times of its words and phonemes: what every synthesiser returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Span = tuple[str, int, int]  # text, first sample, sample after the last


@dataclass(frozen=True)
class Speech:
    """One spoken utterance.

    Attributes:
      samples: [N] float32 in [-1, 1].
      sample_rate: in Hz.
      words: (text, start, end) in seconds from the first sample; every token of the text between spaces is in exactly
        one of them, in order.
      phonemes: (symbol, start, end) in seconds.
    """

    samples: np.ndarray
    sample_rate: int
    words: tuple[tuple[str, float, float], ...]
    phonemes: tuple[tuple[str, float, float], ...]

    @classmethod
    def of(cls, samples: np.ndarray, sample_rate: int, words: Sequence[Span], phonemes: Sequence[Span]) -> Speech:
        """Return speech whose words and phonemes are given in samples."""

        def seconds(spans: Sequence[Span]) -> tuple[tuple[str, float, float], ...]:
            return tuple((text, start / sample_rate, end / sample_rate) for text, start, end in spans)

        return cls(samples, sample_rate, seconds(words), seconds(phonemes))


class Speaker(Protocol):
    """A seeded synthesiser: the same voices and texts in the same order give the same bytes in any process."""

    def speak(self, text: str, voice: Any) -> Speech:
        """Speak one utterance.

        Args:
          text: at least one word.
          voice: of the synthesiser's own class in `moshijax.data.synthesis.voices`.

        Raises:
          DataError: an unknown voice, or a text that cannot be spoken.
          MoshijaxError: the synthesiser fails.
        """
        ...

    def close(self) -> None:
        """Release what the speaker holds."""
        ...


def word_spans(tokens: Sequence[str], starts: Mapping[int, int], phonemes: Sequence[Span], total: int) -> list[Span]:
    """Return when each token is spoken.

    A token without a start of its own (a lone dash, or the second of two that are spoken as one) shares the time of the
    one before, by their number of letters.

    Args:
      tokens: of the text, between spaces.
      starts: index of a token -> sample at which it starts; at least one.
      phonemes: of the utterance, in order.
      total: samples of the utterance.
    """
    order = sorted(starts)
    words = []
    for number, first in enumerate(order):
        begin = 0 if number == 0 else first
        next_index = order[number + 1] if number + 1 < len(order) else len(tokens)
        next_start = starts[next_index] if number + 1 < len(order) else total
        group = tokens[begin:next_index]
        inside = [(a, b) for _, a, b in phonemes if starts[first] <= a < next_start]
        start = inside[0][0] if inside else starts[first]
        end = min(inside[-1][1] if inside else next_start, next_start)
        letters = np.cumsum([0] + [max(1, sum(c.isalnum() for c in token)) for token in group])
        edges = start + (end - start) * letters // letters[-1]
        words += [(token, int(a), int(b)) for token, a, b in zip(group, edges[:-1], edges[1:], strict=True)]
    return words
