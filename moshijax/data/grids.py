"""Batches of token grids from prepared dialogues: windows of codes, text placed when the batch is made."""

from __future__ import annotations

import logging
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from moshijax.data.batches import (
    MOST_FRAMES,
    BatchSource,
    amount,
    check_sets,
    check_size,
    fold_seed,
    mixed,
    shares_of,
    shuffled,
)
from moshijax.data.interleave import PlacementCounts, TextPlacement, place_text
from moshijax.data.interruption import Cut, interrupt
from moshijax.data.ranges import check_probabilities
from moshijax.data.records import RecordSource
from moshijax.data.transcript import Word
from moshijax.errors import ConfigError, DataError
from moshijax.tokens import ZERO

if TYPE_CHECKING:
    from moshijax.data.text import Tokenizer
    from moshijax.lm.layouts import StreamLayout

log = logging.getLogger(__name__)

CHANNELS = ("model", "user")  # of a record's codes
MIXED = ("mixed",)  # of a record that holds everybody in one stream
_TOLD = 20  # different words that the tokenizer cannot write, which are named one by one
_MARGIN_SECONDS = 10.0  # of words placed on both sides of a window, so that nothing is lost at its edges


@dataclass(frozen=True)
class GridData:
    """Training batches of token grids.

    Attributes:
      paths: folders made by `moshijax data prepare`; `weights` are their shares (empty: in proportion to windows).
      batch_size: rows of the global batch.
      num_frames: frames of a window, T. Shorter recordings are filled up with ZERO, which is not scored. On GPUs a
        multiple of 8 is best: others are padded in every product.
      placement: rules of the text row.
      text_jitter: the text of a row is moved by at most this many seconds in either direction, drawn uniformly.
      text_mask: probability that a row's text is all ZERO.
      swap_speakers: probability that the user plays the model's part (both channels and words change sides).
      user_mask: share of the user's codes that are ZERO, drawn per cell; the model learns to hear through gaps.
      user_levels: draw, per row of the batch, how many of the user's codebooks are kept, from 1 to all: what is heard
        rests on the semantic codebook, which differs least between voices.
      interruption: probability that the model gives way, each time the user begins to speak over it: its audio becomes
        that of silence until its turn is over, and the words that it no longer says are dropped
        (`moshijax.data.interruption`).
      interruption_frames: the model then speaks on for 0 to this many frames.
    """

    paths: tuple[str, ...]
    batch_size: int = 8
    num_frames: int = 125
    weights: tuple[float, ...] = ()
    placement: TextPlacement = TextPlacement()
    text_jitter: float = 0.0
    text_mask: float = 0.0
    swap_speakers: float = 0.0
    user_mask: float = 0.0
    user_levels: bool = False
    interruption: float = 0.0
    interruption_frames: int = 6

    def __post_init__(self) -> None:
        check_sets(self.paths, self.weights)
        check_size(MOST_FRAMES, self.batch_size, num_frames=self.num_frames)
        check_probabilities(self, "text_mask", "swap_speakers", "user_mask", "interruption")
        if not 0 <= self.text_jitter <= 10:
            raise ConfigError(f"text_jitter is {self.text_jitter} s: use 0 to 10")
        if self.interruption_frames < 0:
            raise ConfigError(f"interruption_frames is {self.interruption_frames}: use 0 or more")


@dataclass(frozen=True)
class Window:
    """What chance decides of a row of a batch, but for the mask of the user's cells.

    Attributes:
      record: id of the recording.
      start: of the window; counts in frames from the first one of the text.
      swap: the speakers change sides.
      jitter: seconds by which all words come later.
      masked: the text row is all ZERO.
      cuts: turns of the model that the user cuts short, anywhere in the recording.
      words: that are left, with the speakers that they have in this draw, sorted by start.
    """

    record: str
    start: int
    swap: bool = False
    jitter: float = 0.0
    masked: bool = False
    cuts: tuple[Cut, ...] = ()
    words: Sequence[Word] = field(default=(), repr=False)


def words_of(record: dict[str, Any]) -> list[Word]:
    """Return the words of a record."""
    return [Word(*word) for word in record["words"]]


def late_frames(rule: TextPlacement, frame_rate: float) -> int:
    """Return how many frames late text takes after a recording's end; its audio rows are ZERO there."""
    return math.ceil(max(0.0, rule.text_shift) * frame_rate - 1e-6)


def early_frames(rule: TextPlacement, frame_rate: float) -> int:
    """Return how many frames early text takes before a recording's start; its audio rows are ZERO there."""
    return math.ceil(max(0.0, -rule.text_shift) * frame_rate - 1e-6)


class _Windows:
    """(record, nominal first frame) of every window of a data set; windows cover each recording once an epoch."""

    def __init__(self, source: RecordSource, num_frames: int, extra: int):
        self.source, self.num_frames = source, num_frames
        frames = [length + extra for shard in source.index["shards"] for length in shard["frames"]]
        counts = [max(1, -(-length // num_frames)) for length in frames]
        self._first = np.cumsum([0, *counts])
        # Only a recording shorter than a window leaves some of it empty: the last window of others begins earlier.
        self.padding = sum(max(0, num_frames - length) for length in frames) / (num_frames * max(1, sum(counts)))

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, index: int) -> tuple[int, int]:
        record = int(np.searchsorted(self._first, index, side="right")) - 1
        return record, (index - int(self._first[record])) * self.num_frames


class GridMaker:
    """Make a window of the grid from a record, as the layout and the placement rules say.

    Args:
      layout: rows of the grid.
      tokenizer: of the text row.
      config: of the batches.
      frame_rate: frames per second.
      num_codebooks: codebooks of the records.
      channels: of the records' codes: `CHANNELS`, or `MIXED`, whose words are all the text stream's.
      silence: the code of silence in every codebook; None: not known, so that nothing can be cut.

    Raises:
      ConfigError: the layout asks for a speaker or codebook that the records lack, or nothing can be cut.
    """

    def __init__(
        self,
        layout: StreamLayout,
        tokenizer: Tokenizer,
        config: GridData,
        frame_rate: float,
        num_codebooks: int,
        channels: tuple[str, ...] = CHANNELS,
        silence: Sequence[int] | None = None,
    ):
        self.config, self.tokenizer, self.frame_rate = config, tokenizer, frame_rate
        self._told: set[str] = set()  # words that the tokenizer cannot write
        self.num_streams = len(layout.streams)
        self.main_speaker = layout.streams[0].speaker  # of the text stream
        self.mixed = channels == MIXED
        self.early = early_frames(config.placement, frame_rate)
        self.extra = self.early + late_frames(config.placement, frame_rate)
        self.audio_rows: list[tuple[int, int, int]] = []
        speakers = {stream.speaker for stream in layout.streams if stream.kind == "audio"}
        if self.mixed and (len(speakers) > 1 or config.swap_speakers):
            raise ConfigError(
                f"the data has one stream with everybody in it, but the layout has audio of {sorted(speakers)} and "
                f"swap_speakers is {config.swap_speakers}: use a layout of one stream, or prepare with two"
            )
        for row, stream in enumerate(layout.streams):
            if stream.kind == "text":
                continue
            if stream.speaker not in CHANNELS:
                raise ConfigError(f"grid row {row} is of speaker {stream.speaker!r}: prepared data has {CHANNELS}")
            if stream.codebook >= num_codebooks:
                raise ConfigError(
                    f"grid row {row} wants codebook {stream.codebook}, but the data has {num_codebooks}: "
                    "prepare it with more codebooks, or use a layout with fewer"
                )
            self.audio_rows.append((row, 0 if self.mixed else CHANNELS.index(stream.speaker), stream.codebook))
        self.user_rows = [row for row, _, _ in self.audio_rows if layout.streams[row].speaker == "user"]
        self._silence = {} if silence is None else {
            row: silence[codebook] for row, _, codebook in self.audio_rows if layout.streams[row].speaker == "model"
        }  # fmt: skip
        if config.interruption and (self.mixed or not self._silence):
            raise ConfigError(
                f"interruption is {config.interruption}, which takes a layout with the model's audio and data of two "
                "channels whose dataset.json has the codes of silence: prepare the data again, or set it to 0"
            )

    def words(self, record: dict[str, Any], swap: bool = False) -> list[Word]:
        """Return the words of a record with the speakers that they have in this draw; `swap` exchanges the two."""
        words = words_of(record)
        if self.mixed:
            return [Word(w.text, w.start, w.end, self.main_speaker) for w in words]
        if swap:
            return [Word(w.text, w.start, w.end, CHANNELS[1 - CHANNELS.index(w.speaker)]) for w in words]
        return words

    def place(
        self, words: list[Word], frames: int, jitter: float = 0.0, name: str = ""
    ) -> tuple[np.ndarray, PlacementCounts]:
        """Place words whose times count from the first frame of the audio.

        Args:
          words: in any order.
          frames: length of the text row.
          jitter: seconds by which all of them come later.
          name: of the recording, for warnings of words that the tokenizer cannot write.

        Returns:
          The text row [frames] int32, and what was counted.
        """
        rule, rate = self.config.placement, self.frame_rate
        jitter += self.early / rate
        row, counts = place_text(words, frames, rate, self.tokenizer.encode, rule, jitter, self.main_speaker)
        if counts.lost_tokens:
            counts.crowded[name] = counts.lost_tokens
        for text in counts.unknown:
            if text not in self._told and len(self._told) < _TOLD:
                self._told.add(text)
                log.warning(
                    "recording %s: %r has characters that the tokenizer lacks; it is left out of the text", name, text
                )
        return row, counts

    def text(self, words: Sequence[Word], frames: int, start: int, jitter: float = 0.0, name: str = "") -> np.ndarray:
        """Return the text row [num_frames] of one window.

        Args:
          words: of the whole recording, sorted by start.
          frames: of the recording's text.
          start: of the window, in frames of the text.
          jitter: seconds by which all words come later.
          name: of the recording, for warnings.
        """
        rate, length = self.frame_rate, self.config.num_frames
        shift = abs(self.config.placement.text_shift) + abs(jitter)
        margin = int((_MARGIN_SECONDS + shift) * rate)
        first, last = max(0, start - margin), min(frames, start + length + margin)
        starts = [word.start for word in words]
        chosen = words[bisect_left(starts, first / rate - 1e-9) : bisect_left(starts, last / rate - 1e-9)]
        local = [Word(w.text, w.start - first / rate, w.end - first / rate, w.speaker) for w in chosen]
        row, _ = self.place(local, last - first, jitter, name)
        window = np.full(length, ZERO, np.int32)
        piece = row[start - first : start - first + length]
        window[: len(piece)] = piece
        return window

    def window(self, record: dict[str, Any], window: Window) -> np.ndarray:
        """Return a window of the grid, int32 [K, num_frames].

        Args:
          record: a prepared recording.
          window: as it was drawn.
        """
        codes, length = record["codes"], self.config.num_frames
        grid = np.full((self.num_streams, length), ZERO, np.int32)
        begin = window.start - self.early  # in frames of the recording
        first = max(0, -begin)  # of the window that has audio
        piece = codes[:, :, max(0, begin) :][:, :, : max(0, length - first)]
        stop = first + piece.shape[-1]
        for row, channel, codebook in self.audio_rows:
            grid[row, first:stop] = piece[channel ^ window.swap, codebook]
        for cut in window.cuts:
            silent = slice(max(first, cut.first - begin), max(first, min(stop, cut.end - begin)))
            for row, code in self._silence.items():
                grid[row, silent] = code
        if not window.masked:
            frames = codes.shape[-1] + self.extra
            grid[0] = self.text(window.words, frames, window.start, window.jitter, window.record)
        return grid

    def choose(self, record: dict[str, Any], nominal: int, rng: np.random.Generator) -> Window:
        """Draw a window of a recording: its place, jitter, speakers and cuts.

        Args:
          record: a prepared recording.
          nominal: first frame of the window before it is moved.
          rng: decides what is drawn.
        """
        config, length = self.config, self.config.num_frames
        frames = record["codes"].shape[-1] + self.extra
        move, jitter, swap, mask = rng.random(4)
        start = 0
        if frames > length:
            start = int(np.clip(nominal + round((move - 0.5) * length), 0, frames - length))
        words, cuts = self.words(record, bool(swap < config.swap_speakers)), []
        if config.interruption:
            # (a generator of its own, since how much is drawn depends on the words)
            own = np.random.default_rng(rng.integers(2**63))
            words, cuts = interrupt(words, self.frame_rate, config.interruption, config.interruption_frames, own)
        return Window(
            record["id"],
            start,
            bool(swap < config.swap_speakers),
            (2 * jitter - 1) * config.text_jitter,
            bool(mask < config.text_mask),
            tuple(cuts),
            words,
        )

    def draw(self, source: RecordSource, element: tuple[int, int], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draw a window and the masks of the user's cells.

        Args:
          source: the records.
          element: number of a record and nominal first frame, an entry of the windows.
          rng: decides what is drawn.

        Returns:
          {"codes": int32 [K, num_frames]}.
        """
        record = source[element[0]]
        grid = self.window(record, self.choose(record, element[1], rng))
        self.mask_user(grid, rng)
        return {"codes": grid}

    def told(self, source: RecordSource, element: tuple[int, int], rng: np.random.Generator) -> dict[str, Window]:
        """Return the window that `draw` makes of the same arguments, as {"window": Window}."""
        return {"window": self.choose(source[element[0]], element[1], rng)}

    def mask_user(self, grid: np.ndarray, rng: np.random.Generator) -> None:
        """Put ZERO into some of the user's cells, in place (see `GridData.user_mask` and `user_levels`)."""
        rows = self.user_rows
        kept = rng.integers(1, len(rows) + 1) if self.config.user_levels and rows else len(rows)
        grid[rows[kept:]] = ZERO
        if self.config.user_mask:
            grid[rows] = np.where(rng.random((len(rows), grid.shape[1])) < self.config.user_mask, ZERO, grid[rows])


class GridSource(BatchSource):
    """Batches {"codes": int32 [B, K, T]} of prepared dialogues; see `grid_batches`."""

    def __init__(self, config: GridData, layout: StreamLayout, tokenizer: Tokenizer, seed: int):
        self.config = config
        self._sources = [RecordSource(path) for path in config.paths]
        for path, source in zip(config.paths, self._sources, strict=True):
            if source.index["kind"] != "dialogue":
                raise DataError(f"{path} holds {source.index['kind']!r} data, not prepared dialogues")
            if not len(source):
                raise DataError(f"{path} holds no records: prepare it again")
        codec = self._sources[0].index["codec"]
        for path, source in zip(config.paths, self._sources, strict=True):
            if source.index["codec"]["sha256"] != codec["sha256"]:
                raise DataError(
                    f"{config.paths[0]} and {path} were encoded by different codecs, {codec['sha256']} and "
                    f"{source.index['codec']['sha256']}: prepare them with one"
                )
        self.frame_rate = codec["sample_rate"] / codec["frame_size"]
        self._makers = [
            GridMaker(
                layout,
                tokenizer,
                config,
                self.frame_rate,
                source.index["codec"]["num_codebooks"],
                channels_of(source),
                source.index["codec"].get("silence"),
            )
            for source in self._sources
        ]
        windows = [
            _Windows(source, config.num_frames, maker.extra)
            for source, maker in zip(self._sources, self._makers, strict=True)
        ]
        weights = config.weights or [float(len(w)) for w in windows]

        def rows(what: Callable) -> Any:
            each = (
                shuffled(w, fold_seed(w.source.index["sha256"], seed), partial(what, maker, w.source))
                for w, maker in zip(windows, self._makers, strict=True)
            )
            return mixed(list(each), weights)

        identity = {str(path): w.source.index["sha256"] for path, w in zip(config.paths, windows, strict=True)}
        identity |= {"tokenizer": tokenizer.sha256, "codec": codec["sha256"]}
        frames = sum(sum(shard["frames"]) for source in self._sources for shard in source.index["shards"])
        content = amount(sum(map(len, self._sources)), "recordings", frames / self.frame_rate)
        content += shares_of(config.paths, weights, [w.padding for w in windows])
        files = {f"{source.folder}/{path.name}": path for source in self._sources for path, _ in source.shards}
        items = sum(map(len, windows))
        self._told = rows(GridMaker.told)
        super().__init__(rows(GridMaker.draw), config.batch_size, items, identity, content, files)

    def drawn(self, n: int) -> list[Window]:
        """Return what chance decided of the rows of batch n; a function of the data, the seed and n."""
        numbers = range(n * self.batch_size, (n + 1) * self.batch_size)
        return [self._told[number]["window"] for number in numbers]

    def placement_counts(self, most: int | None = None) -> tuple[int, PlacementCounts]:
        """Place the words of recordings without jitter, and count what happened to them.

        Args:
          most: about how many recordings of each data set to look at, at even distances; None: all.

        Returns:
          How many recordings were looked at, and the counts.
        """
        number_of, total = 0, PlacementCounts()
        for source, maker in zip(self._sources, self._makers, strict=True):
            step = 1 if most is None else max(1, len(source) // most)
            for number in range(0, len(source), step):
                record = source[number]
                frames = record["codes"].shape[-1] + maker.extra
                total += maker.place(maker.words(record), frames, name=record["id"])[1]
                number_of += 1
        return number_of, total


def channels_of(source: RecordSource) -> tuple[str, ...]:
    """Return what the leading axis of the codes of a data set holds."""
    return tuple(source.index.get("channels", CHANNELS))


def grid_batches(config: GridData, layout: StreamLayout, tokenizer: Tokenizer, seed: int) -> GridSource:
    """Open batches {"codes": int32 [B, K, T]} of prepared dialogues.

    Row k of the grid is what `layout.streams[k]` says.

    Raises:
      DataError: a data set is unfinished, damaged or of another codec than the rest.
      ConfigError: the layout asks for a speaker or codebook that the data lacks.
    """
    return GridSource(config, layout, tokenizer, seed)
