"""Recordings to the sidecars that `prepare` reads: every channel gets its words from a `WordSource`.

A recording is the unit of work, and `transcribe_recording` does one, in whatever process it runs. Its sidecar appears
when it is complete and says what it was made by and of: it is all that a job needs to continue, or to make again what
was made with other settings. What somebody else wrote, or has corrected, is kept.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from moshijax import files
from moshijax.data import audio, sources
from moshijax.data.checks import CheckRules, apply_findings, check_header, check_recording, unmade
from moshijax.data.findings import CheckedItem, Report
from moshijax.data.isolation import Isolated
from moshijax.data.leakage import leaked
from moshijax.data.loops import looped
from moshijax.data.manifest import Item, Manifest
from moshijax.data.recognizer import SAMPLE_RATE, TimedWord
from moshijax.data.recording_stage import Progress, over_recordings
from moshijax.data.records import digest
from moshijax.data.signal import ENVELOPE_SECONDS, SPEECH_RMS, SignalStatistics, heard
from moshijax.data.transcript import Word
from moshijax.data.word_sources import Channel, WordSource, check_times
from moshijax.errors import DataError, require

REPORT = "transcribe.report.json"
PROVENANCE = "transcribed"  # key of the sidecar
_SPEAKERS = (("model", "SPEAKER_MAIN"), ("user", "SPEAKER_USER"))
_ANY_LABELS = CheckRules(streams="mixed")


@dataclass(frozen=True)
class Transcription:
    """How recordings are transcribed.

    Attributes:
      channels: (model, user) channel numbers; None: left and right of two, or the only one.
      max_rejected: share of the recordings; a job with more of them rejected stops.
    """

    channels: tuple[int, int] | None = None
    max_rejected: float = 0.1

    def __post_init__(self) -> None:
        require(0 <= self.max_rejected <= 1, f"max_rejected is {self.max_rejected}: it must be a share, from 0 to 1")


def transcribe(
    manifest: Manifest,
    source: WordSource,
    settings: Transcription | None = None,
    progress: Progress | None = None,
    report_name: str = REPORT,
) -> Report:
    """Write the words of all recordings, each into its sidecar, and a report beside the manifest.

    Args:
      manifest: of the recordings.
      source: of the words.
      settings: default is `Transcription()`.
      progress: called after every item with items done, items in all, and the report so far.
      report_name: of the file with the report.

    Returns:
      The report; the same whether the job was interrupted or not.

    Raises:
      DataError: more recordings are rejected than `max_rejected` allows, as soon as this is certain; or all are.
      MoshijaxError: a file cannot be written, or another process works here.
    """
    settings = settings or Transcription()
    return over_recordings(
        manifest,
        lambda item, isolated: transcribe_recording(item, source, settings, isolated),
        _deciding(source, settings),
        report_name,
        settings.max_rejected,
        progress,
    )


def transcribe_recording(item: Item, source: WordSource, settings: Transcription, isolated: Isolated) -> CheckedItem:
    """Make the sidecar of a recording, unless there is one that stands.

    Args:
      item: of the manifest.
      source: of its words.
      settings: how.
      isolated: where unknown files are decoded.

    Returns:
      What was found, with the words of the sidecar.
    """
    deciding = _deciding(source, settings)
    try:
        old = files.read_json(item.sidecar, "transcript") if item.sidecar.exists() else {}
        if _stands(item, old, deciding, source):
            return _judged(item, isolated)
        # Before they are read: what changes meanwhile differs later.
        seen, read = sources.look(item.audio), _seen(item, source)
        checked, levels = audio.apart(isolated, survey, item.audio, item, settings.channels)
        if checked.rejected is not None:
            return checked
        try:
            words = _words(checked, levels, source)
        except Exception as error:
            checked.kind, checked.rejected = unmade(item, error, source.kind)
            return checked
        labels = dict(_SPEAKERS)
        alignments = [
            [
                w.text,
                [round(w.start, 3), round(w.end, 3)],
                labels[w.speaker],
                *([] if w.score is None else [round(w.score, 4)]),
            ]
            for w in words
        ]
        made = {"settings": deciding, "recording": seen, "found": dict(+checked.flags)}
        if read:
            made["read"] = read
        made["sha256"] = _seal(made, alignments)
        made["by"] = source.version
        files.write_json(item.sidecar, {**old, "alignments": alignments, PROVENANCE: made})
        return _judged(item, isolated)
    except audio.DecoderLost as error:
        return CheckedItem(item, rejected=str(error), kind="decoder")
    except DataError as error:
        return CheckedItem(item, rejected=str(error), kind="transcript")


def survey(item: Item, channels: tuple[int, int] | None) -> tuple[CheckedItem, np.ndarray]:
    """Judge the sound of a recording before anybody listens to it, in bounded memory.

    Two channels with the same signal count as one.

    Returns:
      The item with what was found, and the RMS of every 20 ms of its channels, [frames, channels].
    """
    checked, none = check_recording(item), np.zeros((0, 1), np.float32)
    if checked.rejected is not None:
        return checked, none
    stage = "channels"
    try:
        mono = channels is None and checked.info.channels == 1
        checked.channels = (0,) if mono else audio.channel_map(checked.info, item.audio, channels)
        stage = "unreadable"
        statistics = SignalStatistics(SAMPLE_RATE, len(checked.channels))
        for block in audio.blocks(item.audio, SAMPLE_RATE, checked.channels, extent=checked.info.extent):
            statistics.add(block)
        apply_findings(checked, statistics)
    except Exception as error:
        checked.kind, checked.rejected = unmade(item, error, stage)
        return checked, none
    if checked.kind == "same_channels":
        checked.kind = checked.rejected = None
        checked.flags["same_channels"] += 1
        checked.channels = checked.channels[:1]
    return checked, statistics.levels()[:, : len(checked.channels)]


def words_by_channel(checked: CheckedItem, levels: np.ndarray, source: WordSource) -> list[list[TimedWord]]:
    """Return what the source says of every channel that is used, unchanged.

    Args:
      checked: as `survey` returns it.
      levels: likewise.
      source: of the words.

    Raises:
      DataError: times that cannot be.
    """
    found: list[list[TimedWord]] = []
    for column, number in enumerate(checked.channels):
        alone = len(checked.channels) == 1
        channel = Channel(checked.item, number, alone, checked.info, levels[:, column])
        found.append(list(source.words_of(channel, checked.flags)))
        for word in found[-1]:
            check_times(word, f"recording {checked.item.audio}: {source.version}")
    return found


def _words(checked: CheckedItem, levels: np.ndarray, source: WordSource) -> list[Word]:
    """Return the words of all channels by their starts; those that loop, leaked or sound nowhere are counted."""
    found = [
        Word(word.text, word.start, word.end, speaker, word.score)
        for (speaker, _), words in zip(_SPEAKERS, words_by_channel(checked, levels, source), strict=False)
        for word in words
    ]
    if source.hears:
        loops, written = looped(found), len(found)
        found = [word for word in found if word not in loops]
        checked.flags["looped_word"] += written - len(found)
    if len(checked.channels) == 2 and source.hears:
        copies = leaked(found, levels)
        checked.flags["leaked_word"] += len(copies)
        found = [word for word in found if word not in copies]
    sounding = heard(levels, found)
    checked.flags["unheard_word"] += len(found) - len(sounding)
    columns = {speaker: levels[:, column] for column, (speaker, _) in enumerate(_SPEAKERS[: len(checked.channels)])}
    return sorted(
        (_fitted(word, columns[word.speaker]) for word in sounding),
        key=lambda word: (word.start, word.end, word.speaker),
    )


def _fitted(word: Word, levels: np.ndarray) -> Word:
    """Take silence off both ends of a word, in which recognisers include the pauses beside it."""
    first, stop = int(word.start / ENVELOPE_SECONDS), math.ceil(word.end / ENVELOPE_SECONDS)
    sounds = first + np.flatnonzero(levels[first:stop] > SPEECH_RMS)
    if not len(sounds):
        return word
    start, end = float(sounds[0]) * ENVELOPE_SECONDS, float(sounds[-1] + 1) * ENVELOPE_SECONDS
    return dataclasses.replace(word, start=max(word.start, start), end=min(word.end, end))


def _deciding(source: WordSource, settings: Transcription) -> dict[str, Any]:
    """Return all that decides the words, as JSON gives it back."""
    return json.loads(json.dumps({**source.settings, "channels": settings.channels}))


def _seen(item: Item, source: WordSource) -> dict[str, sources.Seen]:
    """Return what the files are that the words are read from, by name."""
    return {path.name: sources.look(path) for path in source.reads(item)}


def _seal(made: dict[str, Any], alignments: Any) -> str:
    """Return what shows that nobody has changed the words of a sidecar, nor what it says of them."""
    read = [made["read"]] if "read" in made else []
    return digest([made.get(name) for name in ("settings", "recording", "found")] + read, alignments)


def _stands(item: Item, content: Any, deciding: dict[str, Any], source: WordSource) -> bool:
    """Say whether a sidecar, or a CTM file in its place, is not to be made again."""
    if not item.sidecar.exists():
        return any(path.exists() for path in item.transcripts)
    if not _is_ours(content):
        return True
    made = content[PROVENANCE]
    if made["settings"] != deciding or not sources.is_same(item.audio, made["recording"]):
        return False
    files_read, before = source.reads(item), made.get("read", {})
    return {path.name for path in files_read} == set(before) and all(
        sources.is_same(path, before[path.name]) for path in files_read
    )


def _is_ours(content: Any) -> bool:
    """Say whether a sidecar is as this stage wrote it."""
    made = content.get(PROVENANCE) if isinstance(content, dict) else None
    return isinstance(made, dict) and made.get("sha256") == _seal(made, content.get("alignments"))


def _judged(item: Item, isolated: Isolated) -> CheckedItem:
    """Judge a sidecar that is there, as whoever reads it will; one of another's is flagged."""
    checked = audio.apart(isolated, check_header, item.audio, item, _ANY_LABELS)
    content = files.read_json(item.sidecar, "transcript") if item.sidecar.exists() else None
    checked.flags.update(content[PROVENANCE]["found"] if _is_ours(content) else {"own_transcript": 1})
    return checked
