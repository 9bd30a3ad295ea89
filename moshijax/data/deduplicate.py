"""Recordings without those that were heard before: fingerprints, a job as any other, and what they have in common."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moshijax import files
from moshijax.data import audio, fingerprint, records
from moshijax.data.checks import check_recording, unmade
from moshijax.data.findings import CheckedItem, Report
from moshijax.data.isolation import Isolated
from moshijax.data.job import Progress, run_job
from moshijax.data.manifest import Item, Manifest
from moshijax.data.repeats import Found, RepeatRules, find_repeats
from moshijax.data.shards import Record, ShardPlan
from moshijax.errors import ConfigError

_SHARD = 256  # recordings


@dataclass(frozen=True)
class FingerprintPlan(ShardPlan):
    """Recordings to fingerprints."""

    index_name = records.FINGERPRINTS
    noted = "frames"

    def deciding(self) -> dict[str, Any]:
        """See `ShardPlan`."""
        return {"fingerprint": 1}

    def about(self) -> dict[str, Any]:
        """See `ShardPlan`."""
        return {"kind": "fingerprints"}

    def note(self, record: Record) -> int:
        """Return the number of frames."""
        return record["frames"]

    def reads(self, item: Item) -> Sequence[Path]:
        """See `ShardPlan`."""
        return (item.audio,)

    def make(self, items: Iterable[Item]) -> Iterator[CheckedItem | Record]:
        """See `ShardPlan`."""
        with Isolated() as isolated:
            for item in items:
                try:
                    checked, found = audio.apart(isolated, _hear, item.audio, item)
                except audio.DecoderLost as error:
                    checked, found = CheckedItem(item, rejected=str(error), kind="decoder"), None
                yield checked
                if found is not None:
                    frames, times, keys = found
                    yield {"id": item.id, "frames": frames, "times": times, "keys": keys}


def _hear(item: Item) -> tuple[CheckedItem, Any]:
    """Judge a recording as far as it can be read, and fingerprint it."""
    checked = check_recording(item)
    if checked.rejected is not None:
        return checked, None
    try:
        channels = tuple(range(checked.info.channels))
        blocks = audio.blocks(item.audio, fingerprint.SAMPLE_RATE, channels, extent=checked.info.extent)
        return checked, fingerprint.fingerprint(blocks)
    except Exception as error:
        checked.kind, checked.rejected = unmade(item, error)
        return checked, None


@dataclass(frozen=True)
class Deduplicated:
    """What came of a set of recordings.

    Attributes:
      report: of all; repeats are rejected as `repeat`, and what is heard often as `frequent` where the rules say so.
      found: by id, what is repeated in it.
      written: how many shards of fingerprints were made this time.
    """

    report: Report
    found: dict[str, Found]
    written: int


def deduplicate(
    manifest: Manifest, out: Path, rules: RepeatRules | None = None, progress: Progress | None = None
) -> Deduplicated:
    """Write a manifest of the recordings that are not repeats of earlier ones, and a report beside it.

    Args:
      manifest: of the recordings, in the order in which they are kept.
      out: the new manifest, `NAME.jsonl` in the folder of the old one. Fingerprints are in `NAME.fingerprints` and what
        is repeated, with times, in `NAME.report.json`.
      rules: what counts as a repeat; default `RepeatRules()`.
      progress: called after every recording.

    Raises:
      ConfigError: `out` is not in the folder of the manifest.
      DataError: no recording is usable, or the fingerprints are of other recordings.
    """
    rules, folder = rules or RepeatRules(), manifest.path.parent
    if out.absolute().parent != folder.absolute() or out.suffix != ".jsonl":
        raise ConfigError(f"{out} is to name recordings relative to itself: write it as {folder}/NAME.jsonl")
    prints = out.with_suffix(".fingerprints")
    _, report, written = run_job(manifest, prints, FingerprintPlan(_SHARD, False), progress)
    source = records.RecordSource(prints, records.FINGERPRINTS)
    content = [source[number] for number in range(len(source))]
    found = find_repeats(
        [record["frames"] for record in content], [record["times"] for record in content],
        [record["keys"] for record in content], rules,
    )  # fmt: skip
    by_id = {record["id"]: one for record, one in zip(content, found, strict=True)}
    names = [record["id"] for record in content]
    kept = [item for item in manifest.items if item.id in by_id and by_id[item.id].kept]
    seconds = {record["id"]: record["frames"] / fingerprint.FRAME_RATE for record in content}
    report = _report(manifest, by_id, seconds, names, report)
    lines = [{"path": item.audio.relative_to(folder).as_posix(), **_claims(item)} for item in kept]
    files.write_json(
        out.with_suffix(".report.json"),
        {
            "rules": dataclasses.asdict(rules),
            "report": report.to_json(),
            "repeated": {name: _told(one, names) for name, one in by_id.items() if one.repeats or one.frequent},
        },
    )
    files.write(out, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return Deduplicated(report, by_id, written)


def _claims(item: Item) -> dict[str, Any]:
    """What the manifest said of a recording."""
    claims = {"duration": item.duration, "sides": "both" if item.both_sides else None}
    return {name: value for name, value in claims.items() if value is not None}


def _told(found: Found, names: Sequence[str]) -> dict[str, Any]:
    """What the report says of a recording."""
    repeats = [
        {"start": repeat.start, "end": repeat.end, "of": names[repeat.of], "at": repeat.at} for repeat in found.repeats
    ]
    return {
        "kept": found.kept,
        "share": round(found.share, 4),
        "frequent_segments": found.frequent,
        "frequent_share": round(found.frequent_share, 4),
        "repeats": repeats,
    }


def _report(
    manifest: Manifest, found: dict[str, Found], seconds: dict[str, float], names: Sequence[str], read: Report
) -> Report:
    """Count what is left out as rejected, and recordings that are partly repeated or frequent as flagged."""
    report = dataclasses.replace(
        read, flags=read.flags.copy(), kinds=read.kinds.copy(), rejected=list(read.rejected), flagged=dict(read.flagged)
    )
    for item in manifest.items:
        one = found.get(item.id)
        if one is None:
            continue
        if not one.kept:
            report.usable -= 1
            report.seconds -= seconds[item.id]
            report.rejected_seconds += seconds[item.id]
            report.kinds[one.left_out] += 1
            report.rejected.append((item.id, _reason(item, one, names)))
            continue
        if one.repeats:
            report.flags["partly_repeated"] += 1
            report.flagged.setdefault("partly_repeated", item.id)
        if one.frequent:
            report.flags["frequent"] += 1
            report.flagged.setdefault("frequent", item.id)
    return report


def _reason(item: Item, found: Found, names: Sequence[str]) -> str:
    """Why a recording is left out."""
    if found.left_out == "frequent":
        return f"{found.frequent_share:.0%} of recording {item.audio} is heard at ten or more other places"
    most = max(found.repeats, key=lambda repeat: repeat.end - repeat.start)
    return f"{found.share:.0%} of recording {item.audio} is in {names[most.of]}, there from {most.at:.2f} s on"
