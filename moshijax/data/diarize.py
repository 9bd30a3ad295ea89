"""Recordings to RTTM files that `prepare --streams diarized` reads: who speaks when."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moshijax import files, optional
from moshijax.data import audio, sources
from moshijax.data.checks import check_recording, unmade
from moshijax.data.diarization import Segment, read_segments
from moshijax.data.diarizer import Diarizer
from moshijax.data.findings import CheckedItem, Report
from moshijax.data.isolation import Isolated
from moshijax.data.manifest import Item, Manifest
from moshijax.data.recording_stage import Progress, over_recordings
from moshijax.data.records import digest
from moshijax.data.voice_activity import RATE, SileroVad
from moshijax.errors import DataError, require

REPORT = "diarize.report.json"
_MARK = ";; moshijax "  # begins the line of a file that says what it was made by and of; RTTM has ;; for comments
_LEAST_SPEECH = 0.1  # share of a segment
_BLOCK_SECONDS = 10.0


def diarize(
    manifest: Manifest,
    diarizer: Diarizer,
    voice_activity: SileroVad,
    max_rejected: float = 0.1,
    progress: Progress | None = None,
) -> Report:
    """Write who speaks when in all recordings, each into its RTTM file, and a report beside the manifest.

    Args:
      manifest: of the recordings.
      diarizer: that tells speakers apart.
      voice_activity: without which nobody is a speaker.
      max_rejected: share of the recordings; a job with more of them rejected stops.
      progress: see `over_recordings`.

    Returns:
      The report; the same whether the job was interrupted or not.

    Raises:
      DataError: as `over_recordings`.
      MoshijaxError: a file cannot be written, or another process works here.
    """
    require(0 <= max_rejected <= 1, f"max_rejected is {max_rejected}: it must be a share, from 0 to 1")
    deciding = {"diarizer": diarizer.settings, "voice_activity": voice_activity.settings}

    def one(item: Item, isolated: Isolated) -> CheckedItem:
        try:
            return _diarized(item, diarizer, voice_activity, deciding, isolated)
        except audio.DecoderLost as error:
            return CheckedItem(item, rejected=str(error), kind="decoder")

    return over_recordings(manifest, one, deciding, REPORT, max_rejected, progress)


def _diarized(
    item: Item, diarizer: Diarizer, voice_activity: SileroVad, deciding: dict[str, Any], isolated: Isolated
) -> CheckedItem:
    rttm = item.audio.with_suffix(".rttm")
    checked = audio.apart(isolated, check_recording, item.audio, item)
    if checked.rejected is not None:
        return checked
    try:
        made, sidecar = _made(rttm), files.read_json(item.sidecar, "transcript") if item.sidecar.exists() else {}
        if made is not None and made["settings"] == deciding and sources.is_same(item.audio, made["recording"]):
            checked.flags = Counter(made["found"])
        elif (isinstance(sidecar, dict) and "diarization" in sidecar) or (rttm.exists() and made is None):
            checked.segments, counts = read_segments(item, sidecar)
            checked.flags += counts + Counter(own_diarization=1)
        else:
            seen = sources.look(item.audio)  # before it is read: what changes meanwhile differs later
            return _make(checked, diarizer, voice_activity, {"settings": deciding, "recording": seen}, isolated)
    except audio.DecoderLost:
        raise
    except DataError as error:
        checked.kind, checked.rejected = "diarization", str(error)
    return checked


def _make(
    checked: CheckedItem, diarizer: Diarizer, voice_activity: SileroVad, made: dict[str, Any], isolated: Isolated
) -> CheckedItem:
    item = checked.item
    with tempfile.TemporaryDirectory(prefix="moshijax-") as folder:
        mono = Path(folder) / "mono.wav"
        try:
            audio.apart(isolated, mix_down, item.audio, checked, mono)
        except Exception as error:
            if isinstance(error, audio.DecoderLost):
                raise
            checked.kind, checked.rejected = unmade(item, error)
            return checked
        speech = voice_activity.speech(_blocks(mono))
        if not speech:
            checked.kind, checked.rejected = "no_speech", f"recording {item.audio} holds no speech: remove it"
            return checked
        segments, counts = spoken(diarizer.segments(mono), speech)
    checked.flags += counts
    if not segments:
        checked.kind = "diarization"
        checked.rejected = (
            f"recording {item.audio}: {diarizer.version} finds no speaker, though there is speech from "
            f"{speech[0][0]:.2f} s on: use another model, or prepare it with --streams mixed"
        )
        return checked
    name = "_".join(item.audio.stem.split())
    lines = [
        f"SPEAKER {name} 1 {s.start:.3f} {s.end - s.start:.3f} <NA> <NA> {'_'.join(s.speaker.split())} <NA> <NA>"
        for s in segments
    ]
    made = {**made, "by": diarizer.version, "found": dict(+checked.flags), "sha256": digest(lines)}
    files.write(item.audio.with_suffix(".rttm"), "\n".join([_MARK + json.dumps(made), *lines]) + "\n")
    return checked


def mix_down(checked: CheckedItem, out: Path) -> None:
    """Write the mean of all channels of a recording as a WAV file of 16 bits at 16 kHz, in bounded memory.

    Raises:
      DataError: as `audio.blocks`.
    """
    channels = tuple(range(checked.info.channels))
    with optional.load("soundfile").SoundFile(out, "w", RATE, 1, "PCM_16") as file:
        for block in audio.blocks(checked.item.audio, RATE, channels, extent=checked.info.extent):
            file.write(block.mean(axis=1))


def _blocks(path: Path) -> Iterator[np.ndarray]:
    return (block[:, 0] for block in audio.blocks(path, RATE, (0,), _BLOCK_SECONDS))


def spoken(segments: Sequence[Segment], speech: Sequence[tuple[float, float]]) -> tuple[list[Segment], Counter[str]]:
    """Keep the segments in which anybody speaks.

    Args:
      segments: of a diarizer.
      speech: stretches with speech, (start, end) in seconds, in order.

    Returns:
      The segments by time, and counts: `segment_without_speech`, segments of which less than a tenth is speech, which
      are left out; `speech_without_speaker`, stretches of speech that touch no segment.
    """
    starts, ends = (np.array(times) for times in zip(*speech))
    kept, touched = [], np.zeros(len(starts), bool)
    for segment in sorted(segments, key=lambda s: (s.start, s.end, s.speaker)):
        shared = np.minimum(ends, segment.end) - np.maximum(starts, segment.start)
        if segment.end > segment.start and shared.clip(0).sum() >= _LEAST_SPEECH * (segment.end - segment.start):
            kept.append(segment)
            touched |= shared > 0
    counts = Counter(segment_without_speech=len(segments) - len(kept), speech_without_speaker=int((~touched).sum()))
    return kept, +counts


def _made(path: Path) -> dict[str, Any] | None:
    """Return what an RTTM file says that it was made by and of; None if it is not as this stage wrote it."""
    if not path.exists():
        return None
    first, *lines = files.lines(files.read_text(path, "diarization", errors="backslashreplace"))
    try:
        made = json.loads(first.removeprefix(_MARK)) if first.startswith(_MARK) else None
        return made if made is not None and made["sha256"] == digest([line for line in lines if line]) else None
    except (ValueError, KeyError, TypeError):
        return None
