"""Known texts to words with times: forced alignment, in stretches that an aligner takes at once.

A passage whose times are known, such as a subtitle, is aligned between them. Of a longer one, or one without times,
such as a chapter, a recogniser first hears piece by piece what is said where.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from moshijax.data import cutting, known_text, matching
from moshijax.data.manifest import Item
from moshijax.data.recognizer import SAMPLE_RATE, Aligner, TimedWord
from moshijax.data.signal import ENVELOPE_SECONDS
from moshijax.data.word_sources import Channel
from moshijax.errors import DataError

REPORT = "align.report.json"
_LONGEST = 28.0  # seconds that are aligned at once
_AROUND = 0.5  # seconds by which the times of a passage may be off
_LEAST_HEARD = 0.5  # share of the words of a passage without times
_LONG_WORD = 3.0  # times the mean length of a letter that the first and the last word of a stretch may have


class Stretch(NamedTuple):
    """Words that are said between two levels of a channel, `cutting.Span`."""

    span: cutting.Span
    words: tuple[str, ...]


class Aligned:
    """Words of known texts, with the times at which they are said; see `moshijax.data.word_sources.WordSource`.

    Args:
      aligner: that finds the times.
    """

    kind, hears = "alignment", False

    def __init__(self, aligner: Aligner) -> None:
        self.aligner, self.version = aligner, aligner.version
        self.settings = {"aligner": aligner.settings}

    def reads(self, item: Item) -> tuple[Path, ...]:
        """See `WordSource`."""
        return known_text.files_of(item)

    def words_of(self, channel: Channel, found: Counter[str]) -> Iterator[TimedWord]:
        """See `WordSource`; `unspoken_word` counts words of the text that are not said."""
        passages = known_text.passages(channel.item, channel.number, channel.alone)
        stretches: list[Stretch] = []
        for passage, span in _placed(passages, channel):
            if passage.start is not None and (span[1] - span[0]) * ENVELOPE_SECONDS <= _LONGEST:
                stretches.append(Stretch(span, passage.words))
            else:
                stretches += self._heard(passage.words, span, channel, found)
        for stretch, (begin, samples) in zip(stretches, channel.read([s.span for s in stretches]), strict=True):
            for word in _limited(self.aligner.align(samples, SAMPLE_RATE, stretch.words)):
                yield word._replace(start=begin + word.start, end=begin + word.end)

    def _heard(
        self, words: Sequence[str], span: cutting.Span, channel: Channel, found: Counter[str]
    ) -> Iterator[Stretch]:
        """Yield which words are said in which piece of a span."""
        spans = [
            (first + span[0], stop + span[0])
            for first, stop in cutting.cut(channel.levels[slice(*span)], round(_LONGEST / ENVELOPE_SECONDS))
        ]
        heard: list[str] = []
        pieces: list[int] = []
        for number, (_, samples) in enumerate(channel.read(spans)):
            texts = [matching.plain(word.text) for word in self.aligner.words(samples, SAMPLE_RATE)]
            heard += texts
            pieces += [number] * len(texts)
        pairs = matching.match([matching.plain(word) for word in words], heard)
        if len(pairs) < _LEAST_HEARD * len(words):
            raise DataError(
                f"recording {channel.item.audio}: of the {len(words)} words of the text for channel {channel.number} "
                f"only {len(pairs)} are heard: check that text, language and recording belong together"
            )
        places = matching.places(len(words), pieces, pairs)
        found["unspoken_word"] += places.count(None)
        for number, piece in enumerate(spans):
            said = tuple(word for word, place in zip(words, places) if place == number)
            if said:
                yield Stretch(piece, said)


def _placed(
    passages: Sequence[known_text.Passage], channel: Channel
) -> Iterator[tuple[known_text.Passage, cutting.Span]]:
    """Yield passages with the levels between which they are said; those that overlap become one."""
    joined: list[known_text.Passage] = []
    for passage in passages:
        if passage.start is None:
            yield passage, (0, len(channel.levels))
            return
        if passage.start >= channel.info.duration:
            raise DataError(
                f"recording {channel.item.audio} lasts {channel.info.duration:.2f} s, and its text begins a passage at "
                f"{passage.start:.2f} s: check that they belong together"
            )
        last = joined[-1] if joined else None
        if last is not None and passage.start < last.end:
            both = dataclasses.replace(last, words=last.words + passage.words, end=max(last.end, passage.end))
            joined[-1] = both
        else:
            joined.append(passage)
    before = 0.0
    for number, passage in enumerate(joined):
        after = joined[number + 1].start if number + 1 < len(joined) else channel.info.duration
        start = max(passage.start - _AROUND, (before + passage.start) / 2 if number else 0.0)
        end = min(passage.end + _AROUND, (passage.end + after) / 2 if number + 1 < len(joined) else after)
        before = passage.end
        first, stop = round(start / ENVELOPE_SECONDS), min(round(end / ENVELOPE_SECONDS), len(channel.levels))
        yield passage, (first, max(stop, first + 1))


def _limited(words: Sequence[TimedWord]) -> list[TimedWord]:
    """Keep the first and the last word from taking in all that is around a stretch, such as noise."""
    found = list(words)
    inner = found[1:-1] or found
    seconds, letters = sum(word.end - word.start for word in inner), sum(len(word.text) for word in inner)
    rate = _LONG_WORD * seconds / letters

    def most(word: TimedWord) -> float:
        return max(rate * len(word.text), 5 * ENVELOPE_SECONDS)

    if len(found) > 2:
        found[0] = found[0]._replace(start=max(found[0].start, found[0].end - most(found[0])))
        found[-1] = found[-1]._replace(end=min(found[-1].end, found[-1].start + most(found[-1])))
    return found
