"""Recordings to shards of codes: check, resample, encode in batches, write; resumable, nothing half-written.

A shard is the unit of work. Which items fall into which shard follows from the manifest alone, so that a second run
goes on after the last complete shard.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import moshijax
from moshijax.data import audio, records
from moshijax.data.augmentation import Augmenter, UserAugmentation
from moshijax.data.batches import fold_seed
from moshijax.data.checks import CheckedItem, CheckRules, Report, SignalStatistics, judge, signal_blocks
from moshijax.data.diarization import assign, draw_main, main_mask
from moshijax.data.grids import CHANNELS, MIXED
from moshijax.data.isolation import Isolated
from moshijax.data.manifest import Item, Manifest, read_recordings
from moshijax.data.transcript import Word
from moshijax.errors import ConfigError, DataError

_PLAN = "prepare.json"
_LONG_SECONDS = 120.0


class Encoder(Protocol):
    """What preparation needs of a codec (`moshijax.data.encoder.CodecEncoder`)."""

    sample_rate: int
    frame_size: int
    num_codebooks: int
    sha256: str
    source: str | None  # where the codec was read from

    def encode(self, waveforms: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Waveforms [N_i] float32 -> codes [Q, ceil(N_i / frame_size)]."""
        ...

    def encode_blocks(self, blocks: Iterator[np.ndarray]) -> np.ndarray:
        """Blocks [n, C] float32 of one long recording -> codes [C, Q, T], in bounded memory."""
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
        """What of this decides the records, as far as it is not the plain two channels."""
        found: dict[str, Any] = {} if self.rules.streams == "two" else {"streams": self.rules.streams}
        if self.draws:
            changed = self.augmentation and dataclasses.asdict(self.augmentation)
            clips = self.augmentation and self.augmentation.clips and read_recordings(self.augmentation.clips).sha256
            found["draws"] = {"augmentation": changed, "clips": clips, "copies": self.copies, "seed": self.seed}
        return found


def prepare(
    manifest: Manifest,
    out_dir: str | Path,
    encoder: Encoder,
    config: PrepareConfig | None = None,
    progress: Callable[[int, int, Report], None] | None = None,
) -> tuple[dict[str, Any], Report]:
    """Writes `dataset.json` and shards of records {id, codes int16 [C, Q, T], words, duration, provenance}.

    Args:
        progress: called after every item with (items done, items in all, report so far).

    Returns:
        the content of `dataset.json`, and the report of accepted and rejected items.

    Raises:
        DataError: nothing is usable, strict rules met a rejected item, or `out_dir` holds the start of another job.
    """
    config = config or PrepareConfig()
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    rules = config.rules
    count = math.ceil(len(manifest.items) / config.shard_items)
    plan = {
        "manifest_sha256": manifest.sha256,
        "codec_sha256": encoder.sha256,
        "num_codebooks": encoder.num_codebooks,
        "shard_items": config.shard_items,
        "channels": rules.channels,
        "speakers": dict(rules.speakers),
        "min_score": rules.min_score,
        "strict": rules.strict,
        "format_version": records.FORMAT_VERSION,
        **config.plan(),
    }
    finished = _check_plan(out_dir, plan)
    if finished is not None:
        return finished, Report.from_json(finished["report"])
    report, shards = Report(), []
    for number in range(count):
        items = manifest.items[number * config.shard_items : (number + 1) * config.shard_items]
        path = out_dir / records.shard_name(number, count)
        state = path.with_suffix(".report.json")
        if path.exists() and state.exists():
            saved = json.loads(state.read_text(encoding="utf-8"))
            part, frames = Report.from_json(saved["report"]), saved["frames"]
        else:
            part, frames = Report(), []
            content = _records(items, encoder, config, part, report, progress, len(manifest.items))
            path.unlink(missing_ok=True)
            records.write_shard(path, _noting_frames(content, frames))
            # A shard without its report is written again.
            records.write_json(state, {"report": part.to_json(), "frames": frames})
        report.merge(part)
        if progress is not None:
            progress(report.items, len(manifest.items), report)
        if rules.strict:
            report.require_usable(manifest.path, strict=True)
        shards.append({"file": path.name, "records": len(frames), "frames": frames})
    report.require_usable(manifest.path, strict=rules.strict)
    index = {
        "format_version": records.FORMAT_VERSION,
        "kind": "dialogue",
        "channels": list(MIXED if rules.streams == "mixed" else CHANNELS),
        "plan": plan,
        "codec": {
            "sha256": encoder.sha256,
            "source": encoder.source,
            "num_codebooks": encoder.num_codebooks,
            "sample_rate": encoder.sample_rate,
            "frame_size": encoder.frame_size,
        },
        "shards": shards,
        "report": report.to_json(),
        "moshijax": moshijax.__version__,
    }
    index["sha256"] = records.digest(plan, shards)
    records.write_json(out_dir / records.INDEX, index)
    for path in [*out_dir.glob("shard-*.report.json"), out_dir / _PLAN]:
        path.unlink(missing_ok=True)
    return index, report


def _noting_frames(content: Iterator[dict[str, Any]], frames: list[int]) -> Iterator[dict[str, Any]]:
    for record in content:
        frames.append(record["codes"].shape[-1])
        yield record


def _check_plan(out_dir: Path, plan: dict[str, Any]) -> dict[str, Any] | None:
    """Refuses a folder that holds (the start of) another job; the index of this job if it is done already."""
    done, begun = out_dir / records.INDEX, out_dir / _PLAN
    index = None
    if done.exists():
        index = records.read_index(out_dir)
        old, where = index["plan"], done
    elif begun.exists():
        old, where = json.loads(begun.read_text(encoding="utf-8")), begun
    else:
        records.write_json(begun, plan)
        return None
    new = json.loads(json.dumps(plan))
    for key in new:
        if old.get(key) != new[key]:
            raise DataError(
                f"{where} was made with {key} = {str(old.get(key))[:24]!r}, now it is {str(new[key])[:24]!r}: "
                "choose another folder, or delete this one"
            )
    return index


def _records(
    items: Sequence[Item],
    encoder: Encoder,
    config: PrepareConfig,
    part: Report,
    before: Report,
    progress: Callable[[int, int, Report], None] | None,
    total: int,
) -> Iterator[dict[str, Any]]:
    """Records of the usable items, in order; fills `part`."""
    rules, rate = config.rules, encoder.sample_rate
    maker, isolated = RecordMaker(config, rate), Isolated()
    waiting: list[tuple[dict[str, Any], np.ndarray]] = []
    seconds = 0.0

    def tell() -> None:
        if progress is not None:
            progress(before.items + part.items, total, part)

    def flush() -> Iterator[dict[str, Any]]:
        if not waiting:
            return
        codes = iter(encoder.encode([channel for _, signal in waiting for channel in signal.T]))
        for record, signal in waiting:
            yield {**record, "codes": np.stack([next(codes) for _ in signal.T]).astype(np.int16)}
        waiting.clear()

    for item in items:
        try:
            checked, statistics, signal = audio.apart(isolated, judge, item.audio, item, rules, rate, _LONG_SECONDS)
        except audio.DecoderLost as error:
            checked = CheckedItem(item, rejected=str(error), kind="decoder")
        drawn = [maker.draw(checked, copy) for copy in range(config.copies)] if checked.rejected is None else []
        if drawn and signal is None:
            # A long recording is read again as it is encoded: its codes are never held beside its samples, nor beside
            # those of others.
            yield from flush()
            seconds = 0.0
        for draw in drawn:
            checked.flags.update(draw.counts)
        for draw in drawn:
            blocks = signal_blocks(checked, rules, rate) if signal is None else iter([signal])
            changed, record = maker.make(checked, draw, blocks, statistics)
            if signal is None:
                yield {**record, "codes": encoder.encode_blocks(changed).astype(np.int16)}
                continue
            waiting.append((record, np.concatenate(list(changed))))
            seconds += waiting[-1][1].shape[1] * checked.info.duration
            if seconds >= config.batch_seconds:
                yield from flush()
                seconds = 0.0
        part.add(checked)
        tell()
    yield from flush()


@dataclass(frozen=True)
class Draw:
    """What chance decides of one record: its number, generator, main speaker and words; repairs are counted."""

    copy: int
    rng: np.random.Generator
    main: str | None
    words: list[Word]
    counts: Counter[str]


class RecordMaker:
    """One item and one draw to the streams that are encoded, and the record without its codes."""

    def __init__(self, config: PrepareConfig, sample_rate: int):
        self.config, self.rate = config, sample_rate
        self._augmenter = None if config.augmentation is None else Augmenter(config.augmentation, sample_rate)

    def draw(self, checked: CheckedItem, copy: int) -> Draw:
        rng = np.random.default_rng(fold_seed(self.config.seed, checked.item.id, copy))
        if not checked.segments:
            return Draw(copy, rng, None, checked.words, Counter())
        main = draw_main(checked.segments, rng)
        words, counts = assign(checked.words, checked.segments, main)
        return Draw(copy, rng, main, words, counts)

    def make(
        self, checked: CheckedItem, draw: Draw, blocks: Iterator[np.ndarray], statistics: SignalStatistics
    ) -> tuple[Iterator[np.ndarray], dict[str, Any]]:
        """The streams [n, C] float32 in blocks, and the record."""
        drawn: dict[str, Any] = {}
        rms = statistics.rms()
        if draw.main is not None:
            blocks, drawn["main"] = self._split(checked, draw.main, blocks), draw.main
        if self._augmenter is not None:
            blocks, drawn["augmented"] = self._augmenter.apply(blocks, float(rms[-1]), draw.rng)
        info = checked.info
        number = f"#{draw.copy}" if self.config.copies > 1 else ""
        return blocks, {
            "id": f"{checked.item.id}{number}",
            "words": [[word.text, word.start, word.end, word.speaker] for word in draw.words],
            "duration": info.duration,
            "provenance": {
                "path": str(checked.item.id),
                "sample_rate": info.sample_rate,
                "format": info.format,
                "channels": list(checked.channels),
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
