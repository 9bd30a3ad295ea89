"""Batches of token grids from prepared dialogues: windows of codes, text placed when the batch is made."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from moshijax.data.batches import BatchSource, fold_seed, mixed, shuffled
from moshijax.data.interleave import PlacementCounts, TextPlacement, place_text
from moshijax.data.records import RecordSource
from moshijax.data.transcript import Word
from moshijax.errors import ConfigError, DataError
from moshijax.lm.tokens import ZERO

if TYPE_CHECKING:
    from moshijax.data.text import Tokenizer
    from moshijax.lm.layouts import StreamLayout

CHANNELS = ("model", "user")  # of a record's codes
_MARGIN_SECONDS = 10.0  # of words placed on both sides of a window, so that nothing is lost at its edges


@dataclass(frozen=True)
class GridData:
    """Training batches of token grids.

    Attributes:
        paths: folders made by `moshijax data prepare`; `weights` are their shares (empty: in proportion to windows).
        batch_size: rows of the global batch.
        num_frames: frames of a window, T. Shorter recordings are filled up with ZERO, which is not scored.
        placement: rules of the text row.
        text_jitter: the text of a row is moved by a time drawn uniformly from +- so many seconds.
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
    return [Word(*word) for word in record["words"]]


def late_frames(rule: TextPlacement, frame_rate: float) -> int:
    """Frames after a recording's end into which late text runs; its audio rows are ZERO there."""
    return math.ceil(max(0.0, rule.text_shift) * frame_rate - 1e-6)


class _Windows:
    """(record, nominal first frame) of every window of a data set; windows cover each recording once an epoch."""

    def __init__(self, source: RecordSource, num_frames: int, late: int):
        self.source, self.num_frames = source, num_frames
        frames = [length + late for shard in source.index["shards"] for length in shard["frames"]]
        counts = [max(1, -(-length // num_frames)) for length in frames]
        self._first = np.cumsum([0, *counts])

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, index: int) -> tuple[int, int]:
        record = int(np.searchsorted(self._first, index, side="right")) - 1
        return record, (index - int(self._first[record])) * self.num_frames


class GridMaker:
    """One record to one grid window, as the layout and the placement rules say."""

    def __init__(
        self, layout: StreamLayout, tokenizer: Tokenizer, config: GridData, frame_rate: float, num_codebooks: int
    ):
        self.config, self.tokenizer, self.frame_rate = config, tokenizer, frame_rate
        self.num_streams = len(layout.streams)
        self.main_speaker = layout.streams[0].speaker  # of the text stream
        self.late = late_frames(config.placement, frame_rate)
        self.audio_rows: list[tuple[int, int, int]] = []
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
            self.audio_rows.append((row, CHANNELS.index(stream.speaker), stream.codebook))

    def text(self, words: list[Word], frames: int, start: int, jitter: float = 0.0) -> np.ndarray:
        """Text row [num_frames] of the window at `start` of a recording with `frames` frames for text."""
        rate, length = self.frame_rate, self.config.num_frames
        shift = abs(self.config.placement.text_shift) + abs(jitter)
        margin = int((_MARGIN_SECONDS + shift) * rate)
        first, last = max(0, start - margin), min(frames, start + length + margin)
        starts = [word.start for word in words]
        chosen = words[bisect_left(starts, first / rate - 1e-9) : bisect_left(starts, last / rate - 1e-9)]
        local = [Word(w.text, w.start - first / rate, w.end - first / rate, w.speaker) for w in chosen]
        row, _ = place_text(
            local, last - first, rate, self.tokenizer.encode, self.config.placement, jitter, self.main_speaker
        )
        window = np.full(length, ZERO, np.int32)
        piece = row[start - first : start - first + length]
        window[: len(piece)] = piece
        return window

    def window(self, record: dict[str, Any], start: int, swap: bool, jitter: float, masked: bool) -> np.ndarray:
        """Grid [K, num_frames] int32."""
        codes = record["codes"]
        grid = np.full((self.num_streams, self.config.num_frames), ZERO, np.int32)
        piece = codes[:, :, start : start + self.config.num_frames]
        for row, channel, codebook in self.audio_rows:
            grid[row, : piece.shape[-1]] = piece[channel ^ swap, codebook]
        if not masked:
            words = words_of(record)
            if swap:
                words = [Word(w.text, w.start, w.end, CHANNELS[1 - CHANNELS.index(w.speaker)]) for w in words]
            grid[0] = self.text(words, codes.shape[-1] + self.late, start, jitter)
        return grid

    def draw(self, source: RecordSource, element: tuple[int, int], rng: np.random.Generator) -> dict[str, np.ndarray]:
        number, nominal = element
        record = source[number]
        frames, length = record["codes"].shape[-1] + self.late, self.config.num_frames
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
        """ZERO in some of the user's cells, in place (see `GridData.user_mask` and `user_levels`)."""
        rows = [row for row, channel, _ in self.audio_rows if CHANNELS[channel] == "user"]
        kept = rng.integers(1, len(rows) + 1) if self.config.user_levels and rows else len(rows)
        grid[rows[kept:]] = ZERO
        if self.config.user_mask:
            grid[rows] = np.where(rng.random((len(rows), grid.shape[1])) < self.config.user_mask, ZERO, grid[rows])


class GridSource(BatchSource):
    """`batch(n)` -> {"codes": int32 [B, K, T]}."""

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
        self._maker = GridMaker(layout, tokenizer, config, self.frame_rate, codec["num_codebooks"])
        windows = [_Windows(source, config.num_frames, self._maker.late) for source in self._sources]
        datasets = [
            shuffled(w, fold_seed(w.source.index["sha256"], seed), partial(self._maker.draw, w.source)) for w in windows
        ]
        weights = config.weights or [float(len(w)) for w in windows]
        super().__init__(mixed(datasets, weights), config.batch_size, sum(len(w) for w in windows))

    def placement_counts(self) -> PlacementCounts:
        """Counts over every recording once, without jitter: words placed, shifted, pulled, and tokens lost."""
        maker = self._maker
        return count_placements(self._sources, maker.tokenizer, maker.config.placement, maker.main_speaker)


def count_placements(
    sources: list[RecordSource], tokenizer: Tokenizer, rule: TextPlacement, main_speaker: str = "model"
) -> PlacementCounts:
    """Places the text of every recording once and adds up the counts."""
    total = PlacementCounts()
    for source in sources:
        codec = source.index["codec"]
        rate = codec["sample_rate"] / codec["frame_size"]
        for record in source:
            frames = record["codes"].shape[-1] + late_frames(rule, rate)
            total += place_text(words_of(record), frames, rate, tokenizer.encode, rule, main_speaker=main_speaker)[1]
    return total


def grid_batches(config: GridData, layout: StreamLayout, tokenizer: Tokenizer, seed: int) -> GridSource:
    """Batches {"codes": int32 [B, K, T]} of prepared dialogues; row k of the grid is what `layout.streams[k]` says.

    Raises:
        DataError: a data set is unfinished, damaged or of another codec than the rest.
        ConfigError: the layout asks for a speaker or codebook that the data lacks.
    """
    return GridSource(config, layout, tokenizer, seed)
