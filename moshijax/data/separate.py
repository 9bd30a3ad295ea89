"""Recordings of two people on one channel to recordings with a channel for each, in pieces that are joined."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moshijax import files, optional
from moshijax.data import audio, sources
from moshijax.data.checks import check_recording, unmade
from moshijax.data.diarize import mix_down
from moshijax.data.findings import CheckedItem, Report
from moshijax.data.isolation import Isolated
from moshijax.data.manifest import Item, Manifest
from moshijax.data.recording_stage import Progress, over_recordings
from moshijax.data.separator import Separator
from moshijax.data.signal import SPEECH_RMS

if TYPE_CHECKING:
    from jaxtyping import Float

REPORT = "separate.report.json"
MANIFEST = "manifest.jsonl"
_MADE = ".separated.json"
_PIECE_SECONDS, _OVERLAP_SECONDS = 12.0, 3.0
_CERTAIN = 1.5  # ratio of the products of two pieces where they overlap, one way round and the other


def separate(
    manifest: Manifest, separator: Separator, out: Path, max_rejected: float = 0.1, progress: Progress | None = None
) -> Report:
    """Write every recording as a WAV file with the two voices on two channels; a manifest and a report beside them.

    The first voice of a recording is on the left. A file that is there and was made of the same recording with the same
    settings is kept; the manifest is written last.

    Args:
      manifest: of the recordings, whose channels are mixed.
      separator: that takes voices apart.
      out: folder, which may be there.
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
                _separated(checked, separator, out / f"{item.id}.wav", isolated)
        except audio.DecoderLost as error:
            checked.kind, checked.rejected = "decoder", str(error)
        except Exception as error:
            checked.kind, checked.rejected = unmade(item, error)
        if checked.rejected is None:
            lines.append(json.dumps({"path": f"{item.id}.wav", "duration": round(checked.info.duration, 3)}))
        return checked

    whole = Manifest(out / MANIFEST, manifest.items, manifest.sha256)
    report = over_recordings(whole, one, separator.settings, REPORT, max_rejected, progress)
    files.write(out / MANIFEST, "".join(f"{line}\n" for line in lines))
    return report


def _separated(checked: CheckedItem, separator: Separator, target: Path, isolated: Isolated) -> None:
    item, note = checked.item, target.with_suffix(_MADE)
    made = files.read_json(note) if note.exists() and target.exists() else {}
    if made.get("settings") == separator.settings and sources.is_same(item.audio, made["recording"]):
        checked.flags.update(made["found"])
        return
    seen = sources.look(item.audio)  # before it is read: what changes meanwhile differs later
    target.parent.mkdir(parents=True, exist_ok=True)
    mono = target.with_suffix(".mixed.wav")
    try:
        audio.apart(isolated, mix_down, item.audio, checked, mono)
        blocks = (block[:, 0] for block in audio.blocks(mono, separator.rate, (0,)))
        with files.staged(target) as partial:
            with optional.load("soundfile").SoundFile(partial, "w", separator.rate, 2, "PCM_16", format="WAV") as file:
                for voices in joined(blocks, separator, checked.flags):
                    file.write(voices)
    finally:
        mono.unlink(missing_ok=True)
    about = {"settings": separator.settings, "recording": seen, "by": separator.version, "found": dict(+checked.flags)}
    files.write_json(note, about)


def joined(
    blocks: Iterable[Float[np.ndarray, " n"]], separator: Separator, found: Counter[str]
) -> Iterator[Float[np.ndarray, "n 2"]]:
    """Separate a recording of any length in pieces of 12 s, of which neighbours share 3 s.

    Where two pieces overlap, the voices of the second are put in the order in which they resemble those of the first,
    and faded over. `uncertain_join` counts overlaps in which neither order is much likelier, such as pauses. Each piece
    is scaled so that the sum of its voices is nearest to the recording.

    Args:
      blocks: of one channel at the separator's rate.
      separator: that takes voices apart.
      found: takes the counts.

    Yields:
      The two voices, as long together as the recording.
    """
    size, overlap = round(_PIECE_SECONDS * separator.rate), round(_OVERLAP_SECONDS * separator.rate)
    fade = np.linspace(0, 1, overlap, dtype=np.float32)[:, None]
    tail = np.zeros((0, 2), np.float32)  # of the last piece, that the next one overlaps
    for samples in _pieces(blocks, size, overlap):
        voices = _scaled(separator.separate(samples), samples)
        shared = min(len(tail), len(voices))
        if shared:
            ahead = voices[:shared]
            same, crossed = (float(np.abs((tail[:shared] * each).sum(0)).sum()) for each in (ahead, ahead[:, ::-1]))
            if crossed > same:
                voices = voices[:, ::-1]
            quiet = np.sqrt(np.square(tail).mean()) < SPEECH_RMS
            found["uncertain_join"] += bool(quiet or max(same, crossed) < _CERTAIN * min(same, crossed))
            voices = np.concatenate(
                [tail[:shared] * (1 - fade[:shared]) + voices[:shared] * fade[:shared], voices[shared:]]
            )
        end = len(voices) - overlap if len(samples) == size else len(voices)
        yield np.clip(voices[:end], -1, 1)
        tail = voices[end:]
    if len(tail):
        yield np.clip(tail, -1, 1)


def _scaled(voices: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Scale both voices so that their sum is nearest to the recording, by least squares."""
    weights = np.linalg.lstsq(voices, samples, rcond=None)[0]
    return (voices * weights).astype(np.float32)


def _pieces(blocks: Iterable[np.ndarray], size: int, overlap: int) -> Iterator[np.ndarray]:
    held = np.zeros(0, np.float32)
    fresh = False  # whether more is held than the overlap with the last piece
    for block in blocks:
        held, fresh = np.concatenate([held, block.astype(np.float32, copy=False)]), True
        while len(held) >= size:
            yield held[:size]
            held = held[size - overlap :]
            fresh = len(held) > overlap
    if fresh and len(held):
        yield held
