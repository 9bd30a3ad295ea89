"""Text tokens to words with times, one token per frame: all at once, or as they come."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable
from typing import NamedTuple

from moshijax.runtime.artifact import Artifact

WORD_MARK = "\u2581"  # SentencePiece's mark of a word's beginning
_BYTES = re.compile(f"({WORD_MARK}?)((?:<0x[0-9A-F]{{2}}>)+)")


class HeardWord(NamedTuple):
    """A word that the model has said.

    Attributes:
      text: without surrounding space.
      start: in seconds.
      end: in seconds.
    """

    text: str
    start: float
    end: float


class Words:
    """The words of one call, as its text tokens come.

    A piece that begins with the SentencePiece word mark starts a word; PAD, EPAD, BOS, EOS and UNGENERATED are no text.
    A word is complete when the next one starts, as its pieces may be frames apart.

    Args:
      artifact: whose pieces the tokens are.
      delay: seconds by which the text is behind the audio, taken off the times.

    Attributes:
      pending: the text of the word that is not complete.
    """

    def __init__(self, artifact: Artifact, delay: float = 0.0):
        self._pieces, self._frame, self._delay = artifact.pieces, artifact.frame_seconds, delay
        self._special = set(artifact.manifest["text"]["special"].values())
        self._index = 0
        self._bytes, self._start, self._end = b"", 0.0, 0.0

    @property
    def pending(self) -> str:
        """The text of the word that is not complete."""
        return self._bytes.decode("utf-8", "replace").strip()

    def feed(self, token: int) -> HeardWord | None:
        """Take the token of the next frame and return the word that it completes, if it does."""
        index, self._index = self._index, self._index + 1
        if token < 0 or token in self._special or token >= len(self._pieces):
            return None
        piece, complete = self._pieces[token], None
        if piece.startswith(WORD_MARK) or not self._bytes:
            complete = self.finish()
            self._start = index * self._frame
        self._bytes += _piece_bytes(piece)
        self._end = (index + 1) * self._frame
        return complete

    def finish(self) -> HeardWord | None:
        """Return the word that is left, if there is one; the next piece starts another."""
        text, self._bytes = self.pending, b""
        times = (max(0.0, round(time - self._delay, 4)) for time in (self._start, self._end))
        return HeardWord(text, *times) if text else None


class Pieces:
    """The text of one call, token by token: what can be shown at once.

    Args:
      artifact: whose pieces the tokens are.
    """

    def __init__(self, artifact: Artifact):
        self._pieces = artifact.pieces
        self._special = set(artifact.manifest["text"].get("special", {}).values())
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def feed(self, token: int) -> str:
        """Return the text that a token adds: "" for PAD and its like, and while bytes of a character are missing."""
        if token < 0 or token in self._special or token >= len(self._pieces):
            return ""
        return self._decode(_piece_bytes(self._pieces[token]))


def words_of(artifact: Artifact, tokens: Iterable[int], delay: float = 0.0) -> list[HeardWord]:
    """Return the words of one text token per frame, with their times in seconds of grid time, less `delay`."""
    words = Words(artifact, delay)
    complete = [words.feed(int(token)) for token in tokens]
    return [word for word in [*complete, words.finish()] if word is not None]


def _piece_bytes(piece: str) -> bytes:
    """Return the UTF-8 of a piece; bytes such as <0xE2><0x80> are joined before decoding."""
    if found := _BYTES.fullmatch(piece):
        return (b" " if found[1] else b"") + bytes.fromhex(found[2].replace("<0x", "").replace(">", ""))
    return piece.replace(WORD_MARK, " ").encode("utf-8")
