"""The input format: a JSON-lines manifest of two-channel recordings, with a sidecar transcript per recording.

Codec training and teachers that read samples also take a folder of audio without a manifest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moshijax import files
from moshijax.data import buckets, sources
from moshijax.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Item:
    """One line of a manifest.

    Attributes:
      id: path of the audio relative to the manifest, without suffix.
      audio: path of the recording.
      duration: that the manifest claims, in seconds; None: none.
      both_sides: whether `prepare` makes two records of it, in which the speakers take turns at being the model's.
    """

    id: str
    audio: Path
    duration: float | None
    both_sides: bool = False

    @property
    def identity(self) -> list[Any]:
        """What two manifests have in common that name the same recording."""
        return [self.id, self.audio.suffix, self.duration, *(["both"] if self.both_sides else [])]

    @property
    def span(self) -> sources.Span:
        """Part of its files that the recording is made of: all."""
        return None

    def at(self, place: Callable[[Path], Path]) -> Item:
        """Return the item with its files elsewhere, all in one folder: `place` says where each is."""
        return dataclasses.replace(self, audio=place(self.audio))

    @property
    def sidecar(self) -> Path:
        """Path of the transcript."""
        return self.audio.with_suffix(".json")

    @property
    def transcripts(self) -> tuple[Path, ...]:
        """Paths of the files that the words may be read from."""
        return self.sidecar, self.audio.with_suffix(".ctm")


@dataclass(frozen=True)
class Manifest:
    """The recordings of a set, in order.

    Attributes:
      path: of the file; it need not exist for a folder of audio.
      items: one for each recording.
      sha256: of the text of the file, or of names and sizes in a folder of audio.
    """

    path: Path
    items: tuple[Item, ...]
    sha256: str

    @property
    def source(self) -> Path:
        """What the recordings were read from, for messages: the file, or the folder that has none."""
        return self.path if self.path.exists() else self.path.parent


def read_manifest(path: str | Path) -> Manifest:
    """Read lines `{"path": relative to the manifest, "duration": seconds}`.

    Raises:
      DataError: the file is missing, empty, not UTF-8 or not JSON lines, or names a recording twice.
    """
    path = buckets.place(path)
    if path.is_dir():
        path = path / "manifest.jsonl"
    content = files.read_text(path, "manifest")
    items: dict[str, Item] = {}
    for number, line in enumerate(files.lines(content), 1):
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
    return Manifest(path, tuple(items.values()), hashlib.sha256(content.encode()).hexdigest())


#: What counts as audio in a folder without a manifest: all that libsndfile reads and knows by its content.
AUDIO_SUFFIXES = (
    ".wav", ".wave", ".bwf", ".rf64", ".w64", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2", ".aif", ".aiff",
    ".aifc", ".au", ".snd", ".caf", ".sph", ".nist", ".voc",
)  # fmt: skip
#: Sound that only other programs read.
FOREIGN_SUFFIXES = (
    ".m4a", ".m4b", ".mp4", ".aac", ".wma", ".amr", ".3gp", ".webm", ".mka", ".mkv", ".mov", ".avi", ".ac3", ".ape",
    ".wv",
)  # fmt: skip


def read_recordings(path: str | Path) -> Manifest:
    """Read a manifest, or list the audio files in a folder without one and in the folders below it, by name.

    Links are followed, and hidden files and folders are left out, such as the companions that macOS writes and the
    copies that notebooks keep. One line of the log says what is left out, and why.

    Raises:
      DataError: as `read_manifest`; no audio in the folder, or two files that differ in their suffix alone.
    """
    folder = buckets.place(path)
    if not folder.is_dir() or (folder / "manifest.jsonl").exists():
        return read_manifest(path)
    found, left_out = _find(folder) if buckets.is_here(folder) else _find_objects(folder)
    if left_out:
        log.warning("%s: %d recordings; left out: %s", folder, len(found), left_out)
    if not found:
        raise DataError(
            f"folder {folder} holds no audio ({', '.join(AUDIO_SUFFIXES)}) and no manifest.jsonl"
            + (f"; left out: {left_out}" if left_out else "")
        )
    items: dict[str, Item] = {}
    for audio in found:
        name = audio.relative_to(folder).with_suffix("").as_posix()
        if name in items:
            raise DataError(f"{audio} and {items[name].audio} have the same name: rename or remove one")
        items[name] = Item(name, audio, None)
    content = "".join(f"{p.relative_to(folder).as_posix()} {buckets.stamp(p)[0]}\n" for p in found)
    return Manifest(folder / "manifest.jsonl", tuple(items.values()), hashlib.sha256(content.encode()).hexdigest())


def _find(folder: Path) -> tuple[list[Path], str]:
    """Return the recordings below a folder by name, and what is left out: how many and the first one, by reason."""
    found: list[Path] = []
    left_out: dict[str, list[Path]] = {}
    known: set[tuple[int, int]] = set()  # device and number
    places, links = [folder], []
    while places or links:
        # Links come last: they count where they lead to something else than the rest.
        path = places.pop() if places else links.pop(0)
        suffix = path.suffix.lower()
        reason = None
        try:
            about = path.stat()
            identity, is_folder = (about.st_dev, about.st_ino), stat.S_ISDIR(about.st_mode)
            if not is_folder and not (stat.S_ISREG(about.st_mode) and suffix in AUDIO_SUFFIXES):
                reason = "in formats that are not read" if suffix in FOREIGN_SUFFIXES else None
            elif path.name.startswith(".") and path != folder:
                reason = "hidden"
            elif identity in known and path.is_symlink():
                reason = "links to what is there already"
            elif is_folder and identity not in known:
                for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
                    (links if entry.is_symlink() else places).append(path / entry.name)
                known.add(identity)
            elif not is_folder and not _is_utf8(path):
                reason = "with names that are not UTF-8"
            elif not is_folder:
                found.append(path)
                known.add(identity)
        except OSError as error:
            reason = "links that lead nowhere" if path.is_symlink() else f"not open to us ({error.strerror})"
        if reason is not None:
            left_out.setdefault(reason, []).append(path)
    return sorted(found), _told(left_out)


def _find_objects(folder: Path) -> tuple[list[Path], str]:
    """Do as `_find` in a bucket, which has neither links nor folders that are closed to us."""
    found: list[Path] = []
    left_out: dict[str, list[Path]] = {}
    for path in buckets.matching(f"{folder}/**"):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            left_out.setdefault("hidden", []).append(path)
        elif path.suffix.lower() in AUDIO_SUFFIXES:
            found.append(path)
        elif path.suffix.lower() in FOREIGN_SUFFIXES:
            left_out.setdefault("in formats that are not read", []).append(path)
    return sorted(found), _told(left_out)


def _told(left_out: dict[str, list[Path]]) -> str:
    parts = [f"{len(paths)} {reason}, such as {min(map(_shown, paths))}" for reason, paths in sorted(left_out.items())]
    return "; ".join(parts)


def _is_utf8(path: Path) -> bool:
    try:
        return bool(str(path).encode())
    except UnicodeEncodeError:
        return False


def _shown(path: Path) -> str:
    return str(path).encode("utf-8", "backslashreplace").decode()


def _parse_line(path: Path, number: int, line: str) -> Item:
    where = f"{path}, line {number}"
    try:
        entry = json.loads(line)
        audio = entry["path"]
        duration, sides = entry.get("duration"), entry.get("sides")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f'{where}: {line[:80]!r} is not {{"path": ..., "duration": seconds}}: correct the line'
        ) from error
    if not isinstance(audio, str) or not Path(audio).name or "\0" in audio:
        raise DataError(f"{where}: path is {audio!r}: give the path of a recording relative to the manifest")
    number_like = isinstance(duration, int | float) and not isinstance(duration, bool)
    if duration is not None and (not number_like or not math.isfinite(duration) or duration < 0):
        raise DataError(f"{where}: duration is {duration!r}: give seconds, or omit it")
    if sides not in (None, "both"):
        raise DataError(f'{where}: sides is {sides!r}: write "both" for a record of each speaker\'s side, or omit it')
    return Item(
        str(Path(audio).with_suffix("").as_posix()), buckets.beside(path.parent, audio), duration, sides == "both"
    )
