"""Batches of token grids from prepared dialogues: windows of codes, text placed when the batch is made."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from moshijax.data.batches import BatchSource, amount, fold_seed, mixed, shuffled
from moshijax.data.interleave import PlacementCounts, TextPlacement, place_text
from moshijax.data.records import RecordSource
from moshijax.data.transcript import Word
from moshijax.errors import ConfigError, DataError
from moshijax.tokens import ZERO

if TYPE_CHECKING:
    from moshijax.data.text import Tokenizer
    from moshijax.lm.layouts import StreamLayout

CHANNELS = ("model", "user")  # of a record's codes
MIXED = ("mixed",)  # of a record that holds everybody in one stream
_MARGIN_SECONDS = 10.0  # of words placed on both sides of a window, so that nothing is lost at its edges


@dataclass(frozen=True)
class GridData:
    """Training batches of token grids.

    Attributes:
      paths: folders made by `moshijax data prepare`; `weights` are their shares (empty: in proportion to windows).
      batch_size: rows of the global batch.
      num_frames: frames of a window, T. Shorter recordings are filled up with ZERO, which is not scored.
      placement: rules of the text row.
      text_jitter: the text of a row is moved by at most this many seconds in either direction, drawn uniformly.
      text_mask: probability that a row's text is all ZERO.
      swap_speakers: probability that the user plays the model's part (both channels and words change sides).
      user_mask: share of the user's codes that are ZERO, drawn per cell; the model learns to hear through gaps.
      user_levels: draw, per row of the batch, how many of the user's codebooks are kept, from 1 to all: what is heard
        rests on the semantic codebook, which differs least between voices.
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

    def __post_init__(self) -> None:
        if not self.paths or isinstance(self.paths, str):
            raise ConfigError(f"paths is {self.paths!r}: give a tuple of at least one prepared folder")
        if self.weights and (len(self.weights) != len(self.paths) or min(self.weights) <= 0):
            raise ConfigError(f"weights {self.weights} do not fit {len(self.paths)} paths: give each a positive number")
        if self.num_frames < 1 or self.batch_size < 1:
            raise ConfigError(f"num_frames {self.num_frames} and batch_size {self.batch_size} must be at least 1")
        for name in ("text_mask", "swap_speakers", "user_mask"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: it is a probability from 0 to 1")
        if not 0 <= self.text_jitter <= 10:
            raise ConfigError(f"text_jitter is {self.text_jitter} s: use 0 to 10")


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

    Raises:
      ConfigError: the layout asks for a speaker or codebook that the records lack.
    """

    def __init__(
        self,
        layout: StreamLayout,
        tokenizer: Tokenizer,
        config: GridData,
        frame_rate: float,
        num_codebooks: int,
        channels: tuple[str, ...] = CHANNELS,
    ):
        self.config, self.tokenizer, self.frame_rate = config, tokenizer, frame_rate
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

    def words(self, record: dict[str, Any], swap: bool = False) -> list[Word]:
        """Return the words of a record with the speakers that they have in this draw; `swap` exchanges the two."""
        words = words_of(record)
        if self.mixed:
            return [Word(w.text, w.start, w.end, self.main_speaker) for w in words]
        if swap:
            return [Word(w.text, w.start, w.end, CHANNELS[1 - CHANNELS.index(w.speaker)]) for w in words]
        return words

    def place(self, words: list[Word], frames: int, jitter: float = 0.0) -> tuple[np.ndarray, PlacementCounts]:
        """Place words whose times count from the first frame of the audio.

        Args:
          words: in any order.
          frames: length of the text row.
          jitter: seconds by which all of them come later.

        Returns:
          The text row [frames] int32, and what was counted.
        """
        rule, rate = self.config.placement, self.frame_rate
        jitter += self.early / rate
        return place_text(words, frames, rate, self.tokenizer.encode, rule, jitter, self.main_speaker)

    def text(self, words: list[Word], frames: int, start: int, jitter: float = 0.0) -> np.ndarray:
        """Return the text row [num_frames] of one window.

        Args:
          words: of the whole recording, sorted by start.
          frames: of the recording's text.
          start: of the window, in frames of the text.
          jitter: seconds by which all words come later.
        """
        rate, length = self.frame_rate, self.config.num_frames
        shift = abs(self.config.placement.text_shift) + abs(jitter)
        margin = int((_MARGIN_SECONDS + shift) * rate)
        first, last = max(0, start - margin), min(frames, start + length + margin)
        starts = [word.start for word in words]
        chosen = words[bisect_left(starts, first / rate - 1e-9) : bisect_left(starts, last / rate - 1e-9)]
        local = [Word(w.text, w.start - first / rate, w.end - first / rate, w.speaker) for w in chosen]
        row, _ = self.place(local, last - first, jitter)
        window = np.full(length, ZERO, np.int32)
        piece = row[start - first : start - first + length]
        window[: len(piece)] = piece
        return window

    def window(self, record: dict[str, Any], start: int, swap: bool, jitter: float, masked: bool) -> np.ndarray:
        """Return a window of the grid, int32 [K, num_frames].

        Args:
          record: a prepared recording.
          start: of the window; counts from the first frame of the text.
          swap: the speakers change sides.
          jitter: seconds by which all words come later.
          masked: the text row is all ZERO.
        """
        codes = record["codes"]
        grid = np.full((self.num_streams, self.config.num_frames), ZERO, np.int32)
        first = max(0, self.early - start)  # of the window that has audio
        piece = codes[:, :, max(0, start - self.early) :][:, :, : max(0, self.config.num_frames - first)]
        for row, channel, codebook in self.audio_rows:
            grid[row, first : first + piece.shape[-1]] = piece[channel ^ swap, codebook]
        if not masked:
            grid[0] = self.text(self.words(record, swap), codes.shape[-1] + self.extra, start, jitter)
        return grid

    def draw(self, source: RecordSource, element: tuple[int, int], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draw a window: its place, jitter, speakers and masks.

        Args:
          source: the records.
          element: number of a record and nominal first frame, an entry of the windows.
          rng: decides what is drawn.

        Returns:
          {"codes": int32 [K, num_frames]}.
        """
        number, nominal = element
        record = source[number]
        frames, length = record["codes"].shape[-1] + self.extra, self.config.num_frames
        move, jitter, swap, mask = rng.random(4)
        start = 0
        if frames > length:
            start = int(np.clip(nominal + round((move - 0.5) * length), 0, frames - length))
        jitter = (2 * jitter - 1) * self.config.text_jitter
        grid = self.window(
            record, start, bool(swap < self.config.swap_speakers), jitter, bool(mask < self.config.text_mask)
        )
        self.mask_user(grid, rng)
        return {"codes": grid}

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
        self._sources = [RecordSource(path) for path in config.paths]
        codecs = {source.index["codec"]["sha256"] for source in self._sources if "codec" in source.index}
        for path, source in zip(config.paths, self._sources, strict=True):
            if source.index["kind"] != "dialogue":
                raise DataError(f"{path} holds {source.index['kind']!r} data, not prepared dialogues")
            if not len(source):
                raise DataError(f"{path} holds no records: prepare it again")
        if len(codecs) > 1:
            raise DataError(f"{', '.join(config.paths)} were encoded by different codecs: prepare them with one")
        codec = self._sources[0].index["codec"]
        self.codec_sha256 = codec["sha256"]
        self.frame_rate = codec["sample_rate"] / codec["frame_size"]
        self._makers = [
            GridMaker(
                layout, tokenizer, config, self.frame_rate, source.index["codec"]["num_codebooks"], channels_of(source)
            )
            for source in self._sources
        ]
        windows = [
            _Windows(source, config.num_frames, maker.extra)
            for source, maker in zip(self._sources, self._makers, strict=True)
        ]
        datasets = [
            shuffled(w, fold_seed(w.source.index["sha256"], seed), partial(maker.draw, w.source))
            for w, maker in zip(windows, self._makers, strict=True)
        ]
        weights = config.weights or [float(len(w)) for w in windows]
        identity = {str(path): w.source.index["sha256"] for path, w in zip(config.paths, windows, strict=True)}
        identity["tokenizer"] = tokenizer.sha256
        frames = sum(sum(shard["frames"]) for source in self._sources for shard in source.index["shards"])
        content = amount(sum(map(len, self._sources)), "recordings", frames / self.frame_rate)
        files = {f"{source.folder}/{path.name}": path for source in self._sources for path, _ in source.shards}
        items = sum(map(len, windows))
        super().__init__(mixed(datasets, weights), config.batch_size, items, identity, content, files)

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
                total += maker.place(maker.words(record), record["codes"].shape[-1] + maker.extra)[1]
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
