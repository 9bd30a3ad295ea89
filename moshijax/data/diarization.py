"""Two streams out of one recording in which everybody speaks: a main speaker, and everything else.

The post-training of Moshi (arXiv 2410.00037, 4.4): a speaker is drawn, a mask of 0 and 1 over the samples cuts the
recording into that speaker's segments and the rest, and the two are encoded apart. An overlap is the main speaker's.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moshijax.annotations import shown
from moshijax.data.manifest import Item
from moshijax.data.transcript import Word, label_of
from moshijax.data.word_lists import lines_of_recording
from moshijax.errors import DataError

_NEAR = 0.5  # seconds between a word and the segment it may belong to


@dataclass(frozen=True)
class Segment:
    """A stretch in which one speaker speaks, in seconds.

    Attributes:
      speaker: label of the diarization.
      start: of the stretch.
      end: of the stretch.
    """

    speaker: str
    start: float
    end: float


def read_segments(item: Item, sidecar: dict[str, Any]) -> tuple[list[Segment], Counter[str]]:
    """Read who speaks when, sorted by time.

    The sidecar holds it as `"diarization": [[label, [start, end]], ...]`, or an RTTM file lies beside the audio.

    Returns:
      The segments, and counts: `empty_segment`, which end where they start or before (or before the recording does)
      and are left out; `clamped_segment`, which start before the recording; `segment_of_another`, lines of the RTTM
      file about other recordings.

    Raises:
      DataError: neither is there, or a segment has another form.
    """
    rttm = item.audio.with_suffix(".rttm")
    counts: Counter[str] = Counter()
    if "diarization" in sidecar:
        entries = sidecar["diarization"]
        if not isinstance(entries, list):
            raise DataError(
                f'{item.sidecar}: "diarization" is {shown(entries)}: it must be a list of [label, [start, end]]'
            )
        where, read = item.sidecar, [_segment(item.sidecar, entry) for entry in entries]
    elif rttm.exists():
        where = rttm
        read, counts["segment_of_another"] = _read_rttm(rttm)
    else:
        raise DataError(
            f'{item.sidecar} has no "diarization" and there is no {rttm.name}: diarize the recording, or prepare it '
            "with --streams mixed"
        )
    found = [Segment(s.speaker, max(s.start, 0.0), s.end) for s in read if s.end > max(s.start, 0.0)]
    counts["empty_segment"] += len(read) - len(found)
    counts["clamped_segment"] += sum(s.start < 0 < s.end for s in read)
    if not found:
        raise DataError(f"{where}: the diarization names no speaker: check the recording")
    return sorted(found, key=lambda s: (s.start, s.end, s.speaker)), +counts


def _segment(where: Path, entry: Any) -> Segment:
    """Read [label, [start, end]]; the times are finite, and in any order."""
    try:
        label, (start, end) = entry
        segment = Segment(label_of(label), float(start), float(end))
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: segment {shown(entry)} must be [label, [start, end]] in seconds") from error
    if not math.isfinite(segment.start) or not math.isfinite(segment.end):
        raise DataError(f"{where}: segment {shown(entry)} must have finite times: diarize the recording again")
    return segment


def _read_rttm(path: Path) -> tuple[list[Segment], int]:
    """Lines `SPEAKER file channel start duration <NA> <NA> label ...`, as diarization tools write them."""
    found = []
    lines, others = lines_of_recording(path, "diarization", 1, "SPEAKER")
    for number, fields in lines:
        try:
            start, length, label = float(fields[3]), float(fields[4]), fields[7]
        except (IndexError, ValueError) as error:
            line = shown(" ".join(fields))
            raise DataError(f"{path}, line {number}: {line} is not an RTTM line: rewrite the file") from error
        found.append(_segment(path, [label, [start, start + length]]))
    return found, others


def draw_main(segments: Sequence[Segment], rng: np.random.Generator) -> str:
    """Draw the main speaker, each with equal probability (our choice; the paper says only that one is drawn)."""
    speakers = sorted({segment.speaker for segment in segments})
    return speakers[int(rng.integers(len(speakers)))]


def assign(words: Iterable[Word], segments: Sequence[Segment], main: str) -> tuple[list[Word], Counter[str]]:
    """Give each word to the speaker whose segments it overlaps most, or is nearest to.

    Returns:
      The words, the model's if they are of `main`, else the user's; and counts: `word_without_speaker`, words more than
      half a second from any segment, which are left out.
    """
    out, counts = [], Counter()
    for word in words:
        overlaps: Counter[str] = Counter()
        for segment in segments:
            shared = min(word.end, segment.end) - max(word.start, segment.start)
            if shared > 0:
                overlaps[segment.speaker] += shared
        if overlaps:
            speaker = max(sorted(overlaps), key=overlaps.__getitem__)
        else:
            distance, speaker = min(
                (max(segment.start - word.end, word.start - segment.end), segment.speaker) for segment in segments
            )
            if distance > _NEAR:
                counts["word_without_speaker"] += 1
                continue
        out.append(dataclasses.replace(word, speaker="model" if speaker == main else "user"))
    return out, counts


def main_mask(segments: Sequence[Segment], main: str, first: int, length: int, sample_rate: int) -> np.ndarray:
    """Return 1 in the main speaker's segments and 0 elsewhere, [length] float32, for the samples from `first` on."""
    mask = np.zeros(length, np.float32)
    for segment in segments:
        if segment.speaker == main:
            start, end = (round(t * sample_rate) - first for t in (segment.start, segment.end))
            mask[max(0, start) : max(0, end)] = 1.0
    return mask
