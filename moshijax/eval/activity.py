"""When a channel has speech: from its level, from the times of its words, or from Silero VAD.

Segments are float64 arrays [S, 2] of (start, end) in seconds, in order and apart from each other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from moshijax import optional
from moshijax.eval.calls import frame_levels
from moshijax.runtime.audio import resample

if TYPE_CHECKING:
    from jaxtyping import Float

    Segments = Float[np.ndarray, "S 2"]

#: Inter-pausal units are apart by at least so many seconds of silence (arXiv 2203.16502, 2410.00037 table 9).
IPU_SILENCE = 0.2
#: A frame of the level is so many seconds long.
LEVEL_FRAME = 0.02
#: Sound above the level for less than this many seconds is a click.
SHORTEST_SOUND = 0.04
SILERO_RATE = 16_000
_ROUNDING = 1e-9  # seconds


def segments(pairs: Iterable[tuple[float, float]]) -> Segments:
    """Return intervals as segments; those that overlap or touch become one, and empty ones are left out."""
    spans = np.array(sorted((start, end) for start, end in pairs if end > start), np.float64)
    return join(spans.reshape(-1, 2), 0.0, inclusive=True)


def join(found: Segments, silence: float, inclusive: bool = False) -> Segments:
    """Join neighbours with less than `silence` seconds between them, or just as much if `inclusive`."""
    least = silence + (_ROUNDING if inclusive else -_ROUNDING)
    joined: list[list[float]] = []
    for start, end in found:
        if joined and start - joined[-1][1] < least:
            joined[-1][1] = max(joined[-1][1], end)
        else:
            joined.append([start, end])
    return np.array(joined, np.float64).reshape(-1, 2)


def units(found: Segments) -> Segments:
    """Return the inter-pausal units: speech between silences of at least `IPU_SILENCE`."""
    return join(found, IPU_SILENCE)


def both(one: Segments, other: Segments) -> Segments:
    """Return the time that is in both."""
    starts, ends = (fold.outer(one[:, n], other[:, n]) for n, fold in enumerate((np.maximum, np.minimum)))
    return segments(zip(starts[ends > starts], ends[ends > starts], strict=True))


def neither(one: Segments, other: Segments, seconds: float) -> Segments:
    """Return the time from 0 to `seconds` that is in neither."""
    spoken = segments([*one, *other])
    edges = np.concatenate([[0.0], spoken.ravel(), [seconds]]).reshape(-1, 2)
    return edges[edges[:, 1] > edges[:, 0]]


def total(found: Segments) -> float:
    """Return the sum of the lengths in seconds."""
    return float((found[:, 1] - found[:, 0]).sum())


def of_level(pcm: Float[np.ndarray, " N"], sample_rate: int, threshold_db: float) -> Segments:
    """Return where the RMS of frames of 20 ms is above `threshold_db` relative to full scale, without clicks."""
    size = round(sample_rate * LEVEL_FRAME)
    loud = np.concatenate([[False], frame_levels(pcm, size) > threshold_db, [False]])
    edges = np.flatnonzero(loud[1:] != loud[:-1]).reshape(-1, 2) * (size / sample_rate)
    return edges[edges[:, 1] - edges[:, 0] >= SHORTEST_SOUND - 1e-9]


def of_silero(pcm: Float[np.ndarray, " N"], sample_rate: int) -> Segments:
    """Return the speech that Silero VAD finds at 16 kHz, with the settings that its own package has by default.

    The network is the one that faster-whisper brings, run by onnxruntime; nothing is downloaded.

    Raises:
      MissingPackage: faster-whisper is not installed.
    """
    vad = optional.load("faster_whisper").vad
    settings = vad.VadOptions(threshold=0.5, min_speech_duration_ms=250, min_silence_duration_ms=100, speech_pad_ms=30)
    pcm = np.asarray(resample(pcm, sample_rate, SILERO_RATE), np.float32)
    found = vad.get_speech_timestamps(pcm, settings, SILERO_RATE)
    return np.array([(one["start"], one["end"]) for one in found], np.float64).reshape(-1, 2) / SILERO_RATE
