"""What is known to be said in a recording, without times of words: books, subtitles, transcripts by utterance.

Beside `calls/one.wav` lies one of

- `one.stm`: NIST's lines `one channel speaker start end [<label>] words`, with the channel as 1, 2 or A, B;
- `one.srt` or `one.vtt`: subtitles;
- `one.txt`: the words alone.

The last three are of one channel: of one out of several they carry its number, as in `one.1.srt`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moshijax import files
from moshijax.annotations import shown
from moshijax.data.manifest import Item
from moshijax.data.word_lists import lines_of_recording
from moshijax.errors import DataError

_SUFFIXES = (".srt", ".vtt", ".txt")
_STM = ".stm"
_CHANNELS = {"1": 0, "2": 1, "A": 0, "B": 1}
_TIME = r"(?:(\d+):)?(\d+):(\d+)[,.](\d+)"
_CUE = re.compile(rf"\s*{_TIME}\s+-->\s+{_TIME}")
_TAG = re.compile(r"<[^<>]*>|\{\\[^{}]*\}")  # of formats, karaoke and speakers
#: What transcribers write beside words: sounds in brackets, and the marks of doubt around words, which stay.
_NOT_SAID = re.compile(r"\[[^\[\]]*\]|\(\(\s*\)\)|\{[^{}]*\}|<[^<>]*>")
_DOUBT = re.compile(r"\(\(|\)\)")
_IGNORED = ("IGNORE_TIME_SEGMENT_IN_SCORING", "INTER_SEGMENT_GAP")


@dataclass(frozen=True)
class Passage:
    """Words that are said one after the other by one speaker.

    Attributes:
      words: as they are written, without space.
      start: in seconds, or None: not known.
      end: in seconds, or None.
    """

    words: tuple[str, ...]
    start: float | None = None
    end: float | None = None


def files_of(item: Item) -> tuple[Path, ...]:
    """Return the paths of the files of known text beside a recording that are there."""
    stem = item.audio.stem
    pattern = re.compile(rf"{re.escape(stem)}(\.\d+)?({'|'.join(map(re.escape, _SUFFIXES))})|{re.escape(stem)}\.stm")
    folder = item.audio.parent
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return tuple(folder / name for name in there if pattern.fullmatch(name))


def passages(item: Item, channel: int, alone: bool) -> list[Passage]:
    """Read what is said on a channel, in order of time.

    Args:
      item: of the manifest.
      channel: its number.
      alone: whether it is the only one that is used.

    Raises:
      DataError: there is no text, more than one, or one of another form; the message names it.
    """
    stem = item.audio.stem
    names = [stem + _STM, *(f"{stem}.{channel}{suffix}" for suffix in _SUFFIXES)]
    if alone:
        names += [stem + suffix for suffix in _SUFFIXES]
    found = [path for path in files_of(item) if path.name in names]
    if not found:
        raise DataError(
            f"recording {item.audio} has no text for channel {channel}: none of {', '.join(names)} is beside it"
        )
    if len(found) > 1:
        raise DataError(f"{found[0]} and {found[1].name} are both of channel {channel}: remove one of them")
    path = found[0]
    if path.suffix == _STM:
        return _read_stm(path, channel)
    text = files.read_text(path, "text")
    return _read_subtitles(path, text) if path.suffix in (".srt", ".vtt") else _plain(text)


def said(text: str) -> tuple[str, ...]:
    """Return the words of a text that are said: noises in brackets are none, and marks of doubt are left out."""
    return tuple(_DOUBT.sub(" ", _NOT_SAID.sub(" ", text)).split())


def _plain(text: str) -> list[Passage]:
    words = said(text)
    return [Passage(words)] if words else []


def _read_stm(path: Path, channel: int) -> list[Passage]:
    found = []
    for number, fields in lines_of_recording(path, "text", 0)[0]:
        try:
            _, label, _, start, end, *words = fields
            passage = _timed(float(start), float(end), " ".join(words))
            number_of_channel = _CHANNELS[label.upper()]
        except (ValueError, KeyError) as error:
            raise DataError(
                f"{path}, line {number}: {shown(' '.join(fields))} is not `recording channel speaker start end words` "
                "with times in order and channel 1 or 2 (A or B): correct the line"
            ) from error
        if number_of_channel == channel and passage.words and not set(passage.words) & set(_IGNORED):
            found.append(passage)
    return _by_time(found)


def _read_subtitles(path: Path, text: str) -> list[Passage]:
    found, lines = [], files.lines(text)
    cues = [number for number, line in enumerate(lines) if _CUE.match(line)]
    if not cues and text.strip().removeprefix("WEBVTT"):
        raise DataError(f"{path} holds no line `00:00:01,000 --> 00:00:02,500`: it is no file of subtitles")
    for number in cues:
        groups = _CUE.match(lines[number]).groups()
        start, end = (
            int(h or 0) * 3600 + int(m) * 60 + float(f"{s}.{rest}") for h, m, s, rest in (groups[:4], groups[4:])
        )
        body = []
        for line in lines[number + 1 :]:
            if not line.strip():
                break
            body.append(line)
        try:
            passage = _timed(start, end, _TAG.sub("", " ".join(body)))
        except ValueError:
            raise DataError(f"{path}, line {number + 1}: {lines[number].strip()} ends before it begins") from None
        if passage.words:
            found.append(passage)
    return _by_time(found)


def _timed(start: float, end: float, text: str) -> Passage:
    if not 0 <= start <= end < float("inf"):
        raise ValueError(f"{start} to {end}")
    return Passage(said(text), start, end)


def _by_time(found: Sequence[Passage]) -> list[Passage]:
    return sorted(found, key=lambda passage: (passage.start, passage.end))
