"""The input format: a JSON-lines manifest of two-channel recordings, with a sidecar transcript per recording.

Codec training and teachers that read samples also take a folder of audio without a manifest.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

from moshijax.errors import DataError


@dataclass(frozen=True)
class Item:
    """One line of a manifest.

    Attributes:
      id: path of the audio relative to the manifest, without suffix.
      audio: path of the recording.
      duration: that the manifest claims, in seconds; None: none.
    """

    id: str
    audio: Path
    duration: float | None

    @property
    def sidecar(self) -> Path:
        """Path of the transcript."""
        return self.audio.with_suffix(".json")


@dataclass(frozen=True)
class Manifest:
    """The recordings of a set, in order.

    Attributes:
      path: of the file; it need not exist for a folder of audio.
      items: one for each recording.
      sha256: of the file, or of names and sizes in a folder of audio.
    """

    path: Path
    items: tuple[Item, ...]
    sha256: str


def read_manifest(path: str | Path) -> Manifest:
    """Read lines `{"path": relative to the manifest, "duration": seconds}`.

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
        raise DataError(f"manifest {path} is empty: it needs one JSON object with path and duration per line")
    return Manifest(path, tuple(items.values()), hashlib.sha256(content).hexdigest())


#: What counts as audio in a folder without a manifest.
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".au", ".w64", ".sph")


def read_recordings(path: str | Path) -> Manifest:
    """Read a manifest, or list the audio files in a folder without one and in the folders below it, by name.

    Raises:
      DataError: as `read_manifest`; no audio in the folder, or two files that differ in their suffix alone.
    """
    folder = Path(path)
    if not folder.is_dir() or (folder / "manifest.jsonl").exists():
        return read_manifest(path)
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES and p.is_file())
    if not found:
        raise DataError(f"folder {folder} holds no audio ({', '.join(AUDIO_SUFFIXES)}) and no manifest.jsonl")
    items: dict[str, Item] = {}
    for audio in found:
        name = audio.relative_to(folder).with_suffix("").as_posix()
        if name in items:
            raise DataError(f"{audio} and {items[name].audio} have the same name: rename or remove one")
        items[name] = Item(name, audio, None)
    content = "".join(f"{p.relative_to(folder).as_posix()} {p.stat().st_size}\n" for p in found)
    return Manifest(folder / "manifest.jsonl", tuple(items.values()), hashlib.sha256(content.encode()).hexdigest())


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
        raise DataError(f"{where}: duration is {duration!r}: give seconds, or omit it")
    return Item(str(Path(audio).with_suffix("").as_posix()), path.parent / audio, duration)
