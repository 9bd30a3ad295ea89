"""Recordings to shards of codes: check, resample, encode in batches, write."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from moshijax.data import buckets, records, sources
from moshijax.data.augmentation import Augmenter, UserAugmentation
from moshijax.data.batches import fold_seed
from moshijax.data.checks import CheckRules, all_labels_named, judge_apart, signal_blocks, unmade
from moshijax.data.diarization import assign, draw_main, main_mask
from moshijax.data.findings import CheckedItem
from moshijax.data.grids import CHANNELS, MIXED
from moshijax.data.isolation import Isolated
from moshijax.data.job import Job, Progress, Runner, run_job
from moshijax.data.manifest import Item, Manifest, read_recordings
from moshijax.data.shards import Record, ShardPlan
from moshijax.data.signal import SignalStatistics
from moshijax.data.transcript import Word
from moshijax.data.twins import refuse_twins
from moshijax.errors import ConfigError

_LONG_SECONDS = 120.0
_SWAPPED = "#swapped"  # in the id of the record in which the speakers have changed sides


class Encoder(Protocol):
    """What preparation needs of a codec (`moshijax.data.encoder.CodecEncoder`)."""

    sample_rate: int
    frame_size: int
    num_codebooks: int
    sha256: str
    source: str | None  # where the codec was read from

    def encode(self, waveforms: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Encode waveforms [N_i] float32 to codes [Q, ceil(N_i / frame_size)]."""
        ...

    def encode_blocks(self, blocks: Iterator[np.ndarray]) -> np.ndarray:
        """Encode one long recording, blocks [n, C] float32, to codes [C, Q, T], in bounded memory."""
        ...

    def silence(self) -> list[int]:
        """Return the code of lasting digital silence in every codebook."""
        ...


@dataclass
class PrepareConfig:
    """How recordings become records.

    Attributes:
      rules: how items are judged, and which streams are made of them.
      shard_items: items of one shard.
      batch_seconds: audio (of all channels) encoded at once.
      augmentation: of the user's channel; None: as recorded.
      copies: records of every item, each with draws of its own (main speaker, augmentation).
      seed: of these draws, which depend on it, the item's id and the number of the copy alone.
    """

    rules: CheckRules = field(default_factory=CheckRules)
    shard_items: int = 256
    batch_seconds: float = 240.0
    augmentation: UserAugmentation | None = None
    copies: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("shard_items", "copies"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: use at least 1")
        if self.augmentation is not None and self.rules.streams == "mixed":
            raise ConfigError("augmentation is of the user's channel, which streams 'mixed' does not have: choose one")
        if self.copies > 1 and self.augmentation is None and self.rules.streams != "diarized":
            raise ConfigError(f"copies is {self.copies}, but nothing is drawn, so that all would be equal: use 1")

    @property
    def draws(self) -> bool:
        """Whether a record depends on the seed."""
        return self.augmentation is not None or self.rules.streams == "diarized"

    def plan(self) -> dict[str, Any]:
        """Return what decides the records, as far as it differs from two plain channels, as JSON values."""
        found: dict[str, Any] = {} if self.rules.streams == "two" else {"streams": self.rules.streams}
        if self.draws:
            changed = self.augmentation and dataclasses.asdict(self.augmentation)
            clips = self.augmentation and self.augmentation.clips and _content_sha256(self.augmentation.clips)
            found["draws"] = {"augmentation": changed, "clips": clips, "copies": self.copies, "seed": self.seed}
        return found


def _content_sha256(clips: str) -> str:
    return records.digest(
        [[item.id, (sources.look(item.audio) or [None])[-1]] for item in read_recordings(clips).items]
    )


def prepare(
    manifest: Manifest,
    out_dir: str | Path,
    encoder: Encoder,
    config: PrepareConfig | None = None,
    progress: Progress | None = None,
    runner: Runner = run_job,
) -> Job:
    """Write `dataset.json` and shards of records {id, codes int16 [C, Q, T], words, duration, provenance}.

    Args:
      manifest: of the recordings.
      out_dir: folder of the shards.
      encoder: of the codec.
      config: how recordings become records.
      progress: called after every item with (items done, items in all, report so far).
      runner: of the job.

    Returns:
      The content of `dataset.json`, the report of accepted and rejected items, and the number of shards written.

    Raises:
      DataError: nothing is usable, strict rules met a rejected item, or `out_dir` holds the start of another job.
    """
    config = config or PrepareConfig()
    plan = GridPlan(config.shard_items, config.rules.strict, encoder, config)
    if config.rules.strict:
        refuse_twins(manifest.items)
    both = next((item.id for item in manifest.items if item.both_sides), None)
    if both is not None and config.rules.streams != "two":
        raise ConfigError(
            f"the manifest has both sides of {both}, which streams {config.rules.streams!r} does not know: use 'two', "
            "or take `sides` out of its lines"
        )
    with all_labels_named(manifest.items, config.rules):
        return runner(manifest, buckets.place(out_dir), plan, progress)


@dataclass(frozen=True)
class GridPlan(ShardPlan):
    """Recordings to records of codes and words.

    Attributes:
      encoder: of the codec; pickled, one that was read from a path is opened once in each process.
      config: how recordings become records.
    """

    index_name = records.INDEX
    noted = "frames"

    encoder: Encoder
    config: PrepareConfig

    def deciding(self) -> dict[str, Any]:
        """See `ShardPlan`."""
        rules = self.config.rules
        return {
            "codec_sha256": self.encoder.sha256,
            "num_codebooks": self.encoder.num_codebooks,
            "channels": rules.channels,
            "speakers": dict(rules.speakers),
            "min_score": rules.min_score,
            **self.config.plan(),
        }

    def about(self) -> dict[str, Any]:
        """See `ShardPlan`."""
        names = ("sha256", "source", "num_codebooks", "sample_rate", "frame_size")
        return {
            "kind": "dialogue",
            "channels": list(MIXED if self.config.rules.streams == "mixed" else CHANNELS),
            "codec": {**{name: getattr(self.encoder, name) for name in names}, "silence": self.encoder.silence()},
        }

    def note(self, record: Record) -> int:
        """Return the number of frames."""
        return record["codes"].shape[-1]

    def reads(self, item: Item) -> Sequence[Path]:
        """See `ShardPlan`."""
        segments = (item.audio.with_suffix(".rttm"),) if self.config.rules.streams == "diarized" else ()
        return item.audio, *item.transcripts, *segments

    def make(self, items: Iterable[Item]) -> Iterator[CheckedItem | Record]:
        """See `ShardPlan`; recordings are encoded in batches, so records come later than findings."""
        encoder, config = self.encoder, self.config
        rules, rate = config.rules, encoder.sample_rate
        maker, isolated = RecordMaker(config, rate), Isolated()
        waiting: list[tuple[Record, np.ndarray]] = []
        seconds = 0.0

        def flush() -> Iterator[Record]:
            if not waiting:
                return
            codes = iter(encoder.encode([channel for _, signal in waiting for channel in signal.T]))
            for record, signal in waiting:
                yield {**record, "codes": np.stack([next(codes) for _ in signal.T]).astype(np.int16)}
            waiting.clear()

        for item in items:
            checked, statistics, signal = judge_apart(isolated, item, rules, rate, _LONG_SECONDS)
            if checked.rejected is not None:
                yield checked
                continue
            if signal is None:
                # A long recording is read again as it is encoded: its codes are never held beside its samples, nor
                # beside those of others.
                yield from flush()
                seconds = 0.0
            try:
                made = list(self._records(checked, maker, signal, statistics))
            except Exception as error:
                checked.kind, checked.rejected = unmade(item, error)
            else:
                if signal is None:
                    yield from (record for record, _ in made)
                else:
                    waiting += made
                    seconds += sum(changed.shape[1] for _, changed in made) * checked.info.duration
                if seconds >= config.batch_seconds:
                    yield from flush()
                    seconds = 0.0
            yield checked
        yield from flush()

    def _records(
        self, checked: CheckedItem, maker: RecordMaker, signal: np.ndarray | None, statistics: SignalStatistics
    ) -> Iterator[tuple[Record, np.ndarray]]:
        """Every copy of an item: the record without codes and its streams [n, C]; with codes if there is no signal."""
        rules, rate = self.config.rules, self.encoder.sample_rate
        sides = (False, True) if checked.item.both_sides else (False,)
        draws = [maker.draw(checked, copy, swapped) for swapped in sides for copy in range(self.config.copies)]
        for draw in draws:
            checked.flags.update(draw.counts)
        for draw in draws:
            blocks = signal_blocks(checked, rules, rate) if signal is None else iter([signal])
            changed, record = maker.make(checked, draw, blocks, statistics)
            records.pack(record)  # what cannot be stored is this item's fault, which writing the shard does not tell
            if signal is None:
                codes = self.encoder.encode_blocks(changed).astype(np.int16)
                yield {**record, "codes": codes}, np.zeros((0, codes.shape[0]), np.float32)
            else:
                yield record, np.concatenate(list(changed))


@dataclass(frozen=True)
class Draw:
    """What chance decides of one record.

    Attributes:
      copy: number of the record among those of its item.
      swapped: whether the two speakers change sides.
      rng: generator of everything else that is drawn.
      main: label of the main speaker of a diarized recording, else None.
      words: with the speakers that they have in this draw.
      counts: repairs.
    """

    copy: int
    swapped: bool
    rng: np.random.Generator
    main: str | None
    words: list[Word]
    counts: Counter[str]


class RecordMaker:
    """Turn an item and a draw into the streams to encode, and the record without its codes."""

    def __init__(self, config: PrepareConfig, sample_rate: int):
        self.config, self.rate = config, sample_rate
        self._augmenter = None if config.augmentation is None else Augmenter(config.augmentation, sample_rate)

    def draw(self, checked: CheckedItem, copy: int, swapped: bool = False) -> Draw:
        """Draw what chance decides; a function of seed, item, number of the copy and side alone."""
        rng = np.random.default_rng(fold_seed(self.config.seed, f"{checked.item.id}{_SWAPPED * swapped}", copy))
        if swapped:
            other = {"model": "user", "user": "model"}
            words = [dataclasses.replace(word, speaker=other[word.speaker]) for word in checked.words]
            return Draw(copy, True, rng, None, words, Counter())
        if not checked.segments:
            return Draw(copy, False, rng, None, checked.words, Counter())
        main = draw_main(checked.segments, rng)
        words, counts = assign(checked.words, checked.segments, main)
        return Draw(copy, False, rng, main, words, counts)

    def make(
        self, checked: CheckedItem, draw: Draw, blocks: Iterator[np.ndarray], statistics: SignalStatistics
    ) -> tuple[Iterator[np.ndarray], dict[str, Any]]:
        """Return the streams [n, C] float32 in blocks, and the record without its codes.

        Args:
          checked: the item with what was found.
          draw: of this record.
          blocks: of the recording as it was judged.
          statistics: of the recording.
        """
        drawn: dict[str, Any] = {}
        rms, channels = statistics.rms(), list(checked.channels)
        if draw.swapped:
            blocks, rms, channels = (block[:, ::-1] for block in blocks), rms[::-1], channels[::-1]
        if draw.main is not None:
            blocks, drawn["main"] = self._split(checked, draw.main, blocks), draw.main
        if self._augmenter is not None:
            blocks, drawn["augmented"] = self._augmenter.apply(blocks, float(rms[-1]), draw.rng)
        info = checked.info
        number = _SWAPPED * draw.swapped + (f"#{draw.copy}" if self.config.copies > 1 else "")
        return blocks, {
            "id": f"{checked.item.id}{number}",
            "words": [[word.text, word.start, word.end, word.speaker] for word in draw.words],
            "duration": info.duration,
            "provenance": {
                "path": str(checked.item.id),
                "sample_rate": info.sample_rate,
                "band": checked.band,
                "format": info.format,
                "channels": channels,
                "flags": dict(checked.flags),
                **drawn,
            },
        }

    def _split(self, checked: CheckedItem, main: str, blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """The main speaker's segments, and the rest."""
        first = 0
        for block in blocks:
            mask = main_mask(checked.segments, main, first, len(block), self.rate)[:, None]
            first += len(block)
            yield np.concatenate([block * mask, block * (1 - mask)], axis=1)
