"""Where the words of a channel come from: a recogniser that hears it now, or files that another program wrote.

Everything that gives words and their times has the same small interface, `WordSource`, and everything after it (leaked
and imagined words, sidecars, reports) is the same for all: see `moshijax.data.transcribe`. Known texts are in
`moshijax.data.aligned`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from moshijax.data import audio, cutting
from moshijax.data.manifest import Item
from moshijax.data.recognizer import SAMPLE_RATE, Recognizer, TimedWord
from moshijax.data.signal import ENVELOPE_SECONDS
from moshijax.data.transcript import parse_alignments, read_sidecar
from moshijax.errors import DataError, require

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float


@dataclass(frozen=True)
class Channel:
    """A channel of a recording whose words are wanted.

    Attributes:
      item: of the manifest.
      number: of the channel in the file.
      alone: whether it is the only one that is used.
      info: of the recording.
      levels: RMS of every 20 ms of the channel.
    """

    item: Item
    number: int
    alone: bool
    info: audio.AudioInfo
    levels: Float[np.ndarray, " frames"]

    def pieces(self, longest: float) -> Iterator[tuple[float, Float[np.ndarray, " N"]]]:
        """Read the channel in pieces of at most `longest` seconds, cut where it is quiet; see `cutting`."""
        return self.read(cutting.cut(self.levels, round(longest / ENVELOPE_SECONDS)))

    def read(self, spans: Sequence[cutting.Span]) -> Iterator[tuple[float, Float[np.ndarray, " N"]]]:
        """Read stretches of the channel at `SAMPLE_RATE`: where each begins, in seconds, and its samples."""
        return cutting.pieces(self.item.audio, self.number, spans, SAMPLE_RATE, self.info.extent)


class WordSource(Protocol):
    """What gives the words of a channel.

    Attributes:
      version: of the program, as it is recorded with the words.
      settings: all that decides the words besides the files that are read, JSON values.
      kind: of the rejection of a recording that it cannot use.
      hears: whether it may take another speaker's voice, or noise, for words.
    """

    version: str
    settings: dict[str, Any]
    kind: str
    hears: bool

    def reads(self, item: Item) -> tuple[Path, ...]:
        """Return the paths of the files that decide the words of a recording, besides itself; some may not be there."""
        ...

    def words_of(self, channel: Channel, found: Counter[str]) -> Iterator[TimedWord]:
        """Yield the words of a channel with times of the recording, in any order, and count repairs in `found`.

        Raises:
          DataError: there are none to be had; the message names the file, and the recording is rejected.
        """
        ...


class Heard:
    """Words that a recogniser hears, piece by piece; see `WordSource`.

    Args:
      recognizer: that hears them.
      piece_seconds: that it hears at once, at most.
    """

    kind, hears = "recognizer", True

    def __init__(self, recognizer: Recognizer, piece_seconds: float = 30.0) -> None:
        require(1 <= piece_seconds <= 30, f"piece_seconds is {piece_seconds}: it must be from 1 to 30")
        self.recognizer, self.piece_seconds = recognizer, piece_seconds
        self.version = recognizer.version
        self.settings = {"recognizer": recognizer.settings, "piece_seconds": piece_seconds}

    def reads(self, item: Item) -> tuple[Path, ...]:
        """See `WordSource`."""
        return ()

    def words_of(self, channel: Channel, found: Counter[str]) -> Iterator[TimedWord]:
        """See `WordSource`; a word that begins or ends outside its piece is moved to the edge."""
        for begin, samples in channel.pieces(self.piece_seconds):
            last = len(samples) / SAMPLE_RATE
            for word in self.recognizer.words(samples, SAMPLE_RATE):
                check_times(word, f"recording {channel.item.audio}, after {begin:.2f} s: {self.version}")
                start, end = (min(max(time, 0.0), last) for time in (word.start, word.end))
                found["clamped"] += (start, end) != (word.start, word.end)
                yield word._replace(start=begin + start, end=begin + end)


class WordFiles:
    """Words that another program has written, a file for every channel; see `WordSource`.

    Any form that `moshijax.data.word_lists` knows, such as the output of whisperX, whisper-timestamped and
    faster-whisper. Channel 1 of `calls/one.wav` has `one.1.json` in the folder's `calls`, or the name that
    whisper-timestamped gives, `one.1.wav.words.json`; a recording of which one channel is used may omit the number.
    Speakers in the files mean nothing, as the channel says who speaks.

    Args:
      folder: of the files, which lie in it as the recordings do beside their manifest.
    """

    kind, hears = "transcript", True
    version = "word files"

    def __init__(self, folder: Path) -> None:
        require(folder.is_dir(), f"{folder} is no folder of word files: name the folder that the recogniser wrote to")
        self.folder = folder
        self.settings = {"recognizer": {"kind": "files"}}

    def reads(self, item: Item) -> tuple[Path, ...]:
        """See `WordSource`."""
        base = self.folder / item.id
        names = sorted(path.name for path in base.parent.glob("*.json")) if base.parent.is_dir() else []
        return tuple(base.with_name(name) for name in names if name.startswith(f"{base.name}."))

    def words_of(self, channel: Channel, found: Counter[str]) -> Iterator[TimedWord]:
        """See `WordSource`; times that are missing or reversed are estimated, as of a sidecar."""
        content = read_sidecar(self._file(channel))
        words, counts = parse_alignments(content["alignments"], channel.info.duration, None)
        found.update(counts)
        return (TimedWord(word.text, word.start, word.end, word.score) for word in words)

    def _file(self, channel: Channel) -> Path:
        base = self.folder / channel.item.id
        stems = [f"{base.name}.{channel.number}", *([base.name] if channel.alone else [])]
        suffixes = (".json", ".words.json", f"{channel.item.audio.suffix}.words.json", ".wav.words.json")
        names = dict.fromkeys(base.with_name(stem + suffix) for stem in stems for suffix in suffixes)
        there = [path for path in names if path.exists()]
        if len(there) == 1:
            return there[0]
        if there:
            raise DataError(f"{there[0]} and {there[1]} are both of channel {channel.number}: remove one of them")
        raise DataError(
            f"recording {channel.item.audio} has no word file for channel {channel.number}: "
            f"{next(iter(names))} does not exist (nor a name that other programs give); transcribe every channel"
        )


def check_times(word: TimedWord, who: str) -> None:
    """Check that the times of a word can be used.

    Raises:
      DataError: they are not finite, or not in order; the message begins with `who` gave them.
    """
    if not (math.isfinite(word.start) and math.isfinite(word.end) and word.start <= word.end):
        raise DataError(
            f"{who} gave {word.text!r} from {word.start} to {word.end} s: times must be finite and in order; use "
            "another recogniser"
        )
