"""The input format: a JSON-lines manifest of two-channel recordings, with a sidecar transcript per recording."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

from moshijax.errors import DataError


@dataclass(frozen=True)
class Item:
    """One line of a manifest: `id` (path without suffix), audio file, and the duration it claims, in seconds."""

    id: str
    audio: Path
    duration: float | None

    @property
    def sidecar(self) -> Path:
        return self.audio.with_suffix(".json")


@dataclass(frozen=True)
class Manifest:
    path: Path
    items: tuple[Item, ...]
    sha256: str


def read_manifest(path: str | Path) -> Manifest:
    """Reads lines `{"path": relative to the manifest, "duration": seconds}`.

    Raises:
        DataError: the file is missing, empty, not UTF-8 or not JSON lines, or names a recording twice.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "manifest.jsonl"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"manifest {path} cannot be read ({error.strerror}): give a JSON-lines file") from error
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"manifest {path} is not UTF-8 (byte {error.start}): convert it to UTF-8") from error
    items: dict[str, Item] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        item = _parse_line(path, number, line)
        if item.id in items:
            raise DataError(
                f"{path}, line {number}: {item.id!r} occurs twice: every recording needs its own line and name"
            )
        items[item.id] = item
    if not items:
        raise DataError(f"manifest {path} is empty: it needs one JSON object with path and duration a line")
    return Manifest(path, tuple(items.values()), hashlib.sha256(content).hexdigest())


def _parse_line(path: Path, number: int, line: str) -> Item:
    where = f"{path}, line {number}"
    try:
        entry = json.loads(line)
        audio = entry["path"]
        duration = entry.get("duration")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f'{where}: {line[:80]!r} is not {{"path": ..., "duration": seconds}}: correct the line'
        ) from error
    if not isinstance(audio, str) or not audio:
        raise DataError(f"{where}: path is {audio!r}: give the path of a recording relative to the manifest")
    number_like = isinstance(duration, int | float) and not isinstance(duration, bool)
    if duration is not None and (not number_like or not math.isfinite(duration) or duration < 0):
        raise DataError(f"{where}: duration is {duration!r}: give seconds, or leave it out")
    return Item(str(Path(audio).with_suffix("").as_posix()), path.parent / audio, duration)
