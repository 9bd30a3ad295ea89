"""Remade recordings: a WAV file for each in another folder, with a manifest and a report beside them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from moshijax import files, optional
from moshijax.data import audio, sources
from moshijax.data.checks import check_recording, unmade
from moshijax.data.findings import CheckedItem, Report
from moshijax.data.isolation import Isolated
from moshijax.data.manifest import Item, Manifest
from moshijax.data.recording_stage import Progress, over_recordings

MANIFEST = "manifest.jsonl"


class Remaking(NamedTuple):
    """How recordings are remade.

    Attributes:
      name: of what is made, such as "separated": ends the names of the notes about it.
      version: of the program, as it is recorded with what it made.
      settings: all that decides the result, JSON values.
      make: writes the WAV file of a recording, counts what it finds into the flags, and raises for what is not to be
        used. It is given the recording with its header, the path to write to, and where unknown files are decoded.
      same_words: whether words and their times stay true, so that transcripts are copied.
    """

    name: str
    version: str
    settings: dict[str, Any]
    make: Callable[[CheckedItem, Path, Isolated], None]
    same_words: bool


def remake(
    manifest: Manifest,
    remaking: Remaking,
    out: Path,
    report_name: str,
    max_rejected: float = 0.1,
    progress: Progress | None = None,
) -> Report:
    """Write a new version of every recording.

    What was made of the same recording with the same settings, or rejected then, is not made again; the manifest is
    written last.

    Args:
      manifest: of the recordings.
      remaking: how.
      out: folder, which may be there.
      report_name: of the report's file.
      max_rejected: share of the recordings; a job with more of them rejected stops.
      progress: see `over_recordings`.

    Raises:
      DataError: as `over_recordings`.
      MoshijaxError: a file cannot be written, or another process works in the folder.
    """
    out.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []

    def one(item: Item, isolated: Isolated) -> CheckedItem:
        checked = CheckedItem(item)
        try:
            checked = audio.apart(isolated, check_recording, item.audio, item)
            if checked.rejected is None:
                _remade(checked, remaking, out / f"{item.id}.wav", isolated)
        except audio.DecoderLost as error:
            checked.kind, checked.rejected = "decoder", str(error)
        except Exception as error:
            checked.kind, checked.rejected = unmade(item, error)
        if checked.rejected is None:
            about = {"path": f"{item.id}.wav", "duration": round(checked.info.duration, 3)}
            lines.append(json.dumps({**about, **({"sides": "both"} if item.both_sides else {})}))
        return checked

    whole = Manifest(out / MANIFEST, manifest.items, manifest.sha256)
    report = over_recordings(whole, one, remaking.settings, report_name, max_rejected, progress)
    files.write(out / MANIFEST, "".join(f"{line}\n" for line in lines))
    return report


def write_wav(path: Path, rate: int, channels: int) -> Any:
    """Return a WAV file of 16 bits to write to."""
    return optional.load("soundfile").SoundFile(path, "w", rate, channels, "PCM_16", format="WAV")


def _remade(checked: CheckedItem, remaking: Remaking, target: Path, isolated: Isolated) -> None:
    item, note = checked.item, target.with_suffix(f".{remaking.name}.json")
    made = files.read_json(note) if note.exists() else {}
    same = made.get("settings") == remaking.settings and sources.is_same(item.audio, made["recording"])
    if not same or not (target.exists() or made["rejected"]):
        made = _make(checked, remaking, target, isolated)
        files.write_json(note, made)
    checked.flags.update(made["found"])
    checked.kind, checked.rejected = made["rejected"] or (None, None)
    if remaking.same_words and checked.rejected is None:
        words = {path.suffix: path for path in item.transcripts if path.exists()}
        for suffix, path in words.items():
            copy = target.with_suffix(suffix)
            if not copy.exists() or not sources.is_same(path, made["words"].get(suffix)):
                shutil.copyfile(path, copy)
        seen = {suffix: sources.look(path) for suffix, path in words.items()}
        if seen != made["words"]:
            files.write_json(note, {**made, "words": seen})


def _make(checked: CheckedItem, remaking: Remaking, target: Path, isolated: Isolated) -> dict[str, Any]:
    """Remake a recording, and return what is noted about it."""
    item, before = checked.item, checked.flags.copy()
    seen = sources.look(item.audio)  # before it is read: what changes meanwhile differs later
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    rejected = None
    try:
        with files.staged(target) as partial:
            remaking.make(checked, partial, isolated)
    except audio.DecoderLost:
        raise
    except Exception as error:
        rejected = unmade(item, error)
    found, checked.flags = dict(checked.flags - before), before
    about = {"settings": remaking.settings, "recording": seen, "by": remaking.version}
    return {**about, "found": found, "rejected": rejected, "words": {}}
