"""Words with times to one row of text tokens, one per frame: the text half of the token grid.

Every position is PAD unless a word's tokens lie there. The frame before a word is EPAD ("the padding ends here"). Where
the Moshi paper (section 3.4.4) and its published code differ, the choice that loses nothing is taken:

* a word at the first frame gets its EPAD there and its tokens one frame later (paper; the code drops the EPAD);
* a word that starts while the one before still has tokens left is shifted until they are written (the code discards
  them), and where a recording ends before its tokens do, they move to earlier frames; both are counted;
* a word with a character that the tokenizer lacks is left out and counted;
* positions after the end of the audio are ZERO, not PAD, as are all positions of an item without a transcript.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from moshijax.data.text import UnknownCharacters
from moshijax.data.transcript import Word
from moshijax.errors import ConfigError
from moshijax.tokens import BOS, EOS, EPAD, PAD, ZERO

_SLOP = 1e-6  # frames; start times that are exact multiples of a frame must not fall below it


@dataclass(frozen=True)
class TextPlacement:
    """How words become a text row.

    Attributes:
      keep_main_only: place the words of the text stream's speaker alone.
      text_shift: seconds by which text comes later than the audio (negative: earlier). Text that comes late leaves
        ZERO in the frames before it can begin.
      bos_eos: BOS before the first token of a turn of the main speaker, EOS where another speaker takes over.
    """

    keep_main_only: bool = True
    text_shift: float = 0.0
    bos_eos: bool = False

    def __post_init__(self) -> None:
        if not abs(self.text_shift) < 60:
            raise ConfigError(f"text_shift is {self.text_shift} s: use a shift between -60 and 60 seconds")


@dataclass
class PlacementCounts:
    """What happened to words as they were placed.

    Attributes:
      words: placed, perhaps in part.
      shifted: of them, those that begin later than their time.
      pulled: of them, those that begin earlier, because the recording ends.
      tokens: that the text has, those for which there was no room too.
      lost_tokens: tokens for which there was no room.
      wordless: recordings in which there is no word to place: their text is padding alone.
      crowded: recordings with tokens for which there was no room, each with their number; where names are known.
      unknown: words that are left out since the tokenizer lacks some of their characters, each with its number.
    """

    words: int = 0
    shifted: int = 0
    pulled: int = 0
    tokens: int = 0
    lost_tokens: int = 0
    wordless: int = 0
    crowded: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)

    def __iadd__(self, other: PlacementCounts) -> PlacementCounts:
        for name in vars(other):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self


def _runs(
    words: Sequence[Word],
    encode: Callable[[str], Sequence[int]],
    rule: TextPlacement,
    main_speaker: str,
    unknown: Counter[str],
) -> list[tuple[float, list[int], bool]]:
    """[start seconds, tokens, is a word] in time order, with BOS and EOS where the rule asks for them."""
    runs: list[tuple[float, list[int], bool]] = []
    speaking = False
    for word in sorted(words, key=lambda w: w.start):
        main = word.speaker == main_speaker
        tokens: list[int] = []
        if main or not rule.keep_main_only:
            try:
                tokens = list(encode(word.text))
            except UnknownCharacters:
                unknown[word.text] += 1
        is_word = bool(tokens)
        if rule.bos_eos and main != speaking:
            tokens = [BOS if main else EOS, *tokens]
        speaking = main
        if tokens:
            runs.append((word.start, tokens, is_word))
    return runs


def place_text(
    words: Sequence[Word] | None,
    num_frames: int,
    frame_rate: float,
    encode: Callable[[str], Sequence[int]],
    rule: TextPlacement = TextPlacement(),
    jitter: float = 0.0,
    main_speaker: str = "model",
) -> tuple[np.ndarray, PlacementCounts]:
    """Place the words of a recording in its text row.

    Args:
      words: words with times, or None when there is no transcript (every position becomes ZERO).
      num_frames: frames of the audio, T.
      frame_rate: frames per second.
      encode: text of a word -> token ids.
      rule: how words become a text row.
      jitter: seconds added to every start of this draw, on top of the rule's shift.
      main_speaker: whose words the text stream holds.

    Returns:
      The tokens [T] int32, and the counts.
    """
    counts = PlacementCounts()
    if words is None:
        counts.wordless = 1
        return np.full(num_frames, ZERO, np.int32), counts
    shift = rule.text_shift + jitter
    wanted: list[int] = []
    tokens: list[int] = []
    first_of_word: list[int] = []
    free = 0  # the first frame that no token has taken
    for start, ids, is_word in _runs(words, encode, rule, main_speaker, counts.unknown):
        frame = int(np.floor((start + shift) * frame_rate + _SLOP))
        position = max(frame, free)
        if position == 0:  # there is no frame before this one for the EPAD
            position = 1
            frame += frame == 0
        counts.words += is_word
        counts.shifted += is_word and position > frame
        first_of_word.append(len(tokens))
        wanted += range(position, position + len(ids))
        tokens += ids
        free = position + len(ids)
    counts.tokens = len(tokens)
    counts.wordless = int(not counts.words and not counts.unknown)
    if len(tokens) > num_frames:
        counts.lost_tokens = len(tokens) - num_frames
        tokens, wanted = tokens[:num_frames], wanted[:num_frames]
    positions = np.asarray(wanted, np.int64)
    if len(positions) and positions[-1] >= num_frames:
        latest = num_frames - np.arange(len(positions), 0, -1)
        pulled = positions > latest
        counts.pulled = sum(bool(pulled[i]) for i in first_of_word if i < len(pulled))
        positions = np.minimum(positions, latest)
    row = np.full(num_frames, PAD, np.int32)
    row[positions] = tokens
    before = positions[[i for i in first_of_word if i < len(positions)]] - 1 if len(positions) else positions
    before = before[before >= 0]
    taken = np.zeros(num_frames, bool)
    taken[positions] = True
    row[before[~taken[before]]] = EPAD
    if rule.text_shift > 0:
        late = min(num_frames, int(rule.text_shift * frame_rate + _SLOP))
        row[:late][row[:late] == PAD] = ZERO
    return row, counts
