"""Recordings to shards of codes: check, resample, encode in batches, write; resumable, nothing half-written.

A shard is the unit of work. Which items fall into which shard follows from the manifest alone, so that a second run
goes on after the last complete shard.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import moshijax
from moshijax.data import audio, records
from moshijax.data.checks import (
    CheckedItem,
    CheckRules,
    Report,
    SignalStatistics,
    apply_findings,
    apply_strictness,
    check_header,
)
from moshijax.data.manifest import Item, Manifest
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
        """Blocks [n, 2] float32 of one long recording -> codes [2, Q, T], in bounded memory."""
        ...


@dataclass
class PrepareConfig:
    """shard_items: items of one shard; batch_seconds: audio (both channels) encoded at once."""

    rules: CheckRules = field(default_factory=CheckRules)
    shard_items: int = 256
    batch_seconds: float = 240.0

    def __post_init__(self) -> None:
        if self.shard_items < 1:
            raise ConfigError(f"shard_items is {self.shard_items}: use at least 1")


def prepare(
    manifest: Manifest,
    out_dir: str | Path,
    encoder: Encoder,
    config: PrepareConfig | None = None,
    progress: Callable[[int, int, Report], None] | None = None,
) -> tuple[dict[str, Any], Report]:
    """Writes `dataset.json` and shards of records {id, codes int16 [2, Q, T], words, duration, provenance}.

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
        shards.append({"file": path.name, "records": part.usable, "frames": frames})
    report.require_usable(manifest.path, strict=rules.strict)
    index = {
        "format_version": records.FORMAT_VERSION,
        "kind": "dialogue",
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
    waiting: list[tuple[CheckedItem, np.ndarray]] = []
    seconds = 0.0

    def tell() -> None:
        if progress is not None:
            progress(before.items + part.items, total, part)

    def flush() -> Iterator[dict[str, Any]]:
        if not waiting:
            return
        codes = encoder.encode([signal[:, channel] for _, signal in waiting for channel in (0, 1)])
        for number, (checked, _) in enumerate(waiting):
            yield _record(checked, np.stack(codes[2 * number : 2 * number + 2]))
        waiting.clear()

    for item in items:
        checked = check_header(item, config.rules)
        statistics = SignalStatistics(encoder.sample_rate)
        signal = None
        if checked.rejected is None:
            try:
                blocks = audio.blocks(item.audio, encoder.sample_rate, checked.channels)
                if checked.info.duration > _LONG_SECONDS:
                    yield from flush()
                    seconds = 0.0
                    # A long recording is judged in a first pass, since its codes are never held beside its samples.
                    for block in blocks:
                        statistics.add(block)
                else:
                    pieces = []
                    for block in blocks:
                        statistics.add(block)
                        pieces.append(block)
                    signal = np.concatenate(pieces) if pieces else np.zeros((0, 2), np.float32)
                apply_findings(checked, statistics)
            except DataError as error:
                checked.kind, checked.rejected = "unreadable", str(error)
        apply_strictness(checked, config.rules)
        part.add(checked)
        if checked.rejected is None and signal is None:
            blocks = audio.blocks(item.audio, encoder.sample_rate, checked.channels)
            yield _record(checked, encoder.encode_blocks(blocks))
        elif checked.rejected is None:
            waiting.append((checked, signal))
            seconds += 2 * checked.info.duration
            if seconds >= config.batch_seconds:
                yield from flush()
                seconds = 0.0
        tell()
    yield from flush()


def _record(checked: CheckedItem, codes: np.ndarray) -> dict[str, Any]:
    info = checked.info
    return {
        "id": checked.item.id,
        "codes": codes.astype(np.int16),
        "words": [[word.text, word.start, word.end, word.speaker] for word in checked.words],
        "duration": info.duration,
        "provenance": {
            "path": str(checked.item.id),
            "sample_rate": info.sample_rate,
            "format": info.format,
            "channels": list(checked.channels),
            "flags": dict(checked.flags),
        },
    }
