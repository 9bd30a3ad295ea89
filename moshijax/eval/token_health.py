"""Artefacts that show in the tokens of a call, without any reference: entropies of windows, and loops.

The rules are those of the Moshi paper (arXiv 2410.00037, appendix D), which judges quantised models by them. They were
set for Moshi's text and codebooks of 2048; with smaller codebooks every entropy is smaller. That entropies are in nats,
and that a window is judged by the entropy at its end, is our reading.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

#: Frames of a window: the past tokens of an entropy, and what is judged at a time.
WINDOW = 64
SILENT_AUDIO = 2.0  # nats; the most that the median codebook of silence has
GIBBERISH_TEXT = 3.5  # nats
FLAT_TEXT = 1e-3  # nats per frame; the entropy of a text that says the same again does not change
UNEVEN_AUDIO = 0.6  # nats; deviation over the codebooks
SILENCE = "silence"
ARTEFACTS = ("background noise", "repetitive text", "gibberish", "noisy audio")

#: A loop says the same at least so many times,
LOOP_TIMES = 4
#: and is at least so many text tokens, or frames of audio, long.
LOOP_TOKENS, LOOP_FRAMES = 8, 25
LONGEST_TEXT_LOOP = 64  # tokens of one round
LONGEST_AUDIO_LOOP = 125  # frames of one round
_SAME_CODES = 0.75  # share of the codebooks that agree


def entropies(tokens_RT: Int[np.ndarray, "R T"], window: int = WINDOW) -> Float[np.ndarray, "R T"]:
    """Return the entropy in nats of the last `window` tokens of every row at every frame; NaN before there are any."""
    rows, frames = tokens_RT.shape
    found = np.full((rows, frames), np.nan)
    terms = np.arange(window + 1) * np.log(np.maximum(np.arange(window + 1), 1))  # n log n
    for row in range(rows):
        _, ids = np.unique(tokens_RT[row], return_inverse=True)
        counts = np.zeros(ids.max(initial=0) + 1, np.int64)
        total = 0.0
        for t, token in enumerate(ids):
            total += terms[counts[token] + 1] - terms[counts[token]] if counts[token] < window else 0.0
            counts[token] += 1
            if t >= window:
                old = ids[t - window]
                counts[old] -= 1
                total -= terms[min(counts[old] + 1, window)] - terms[counts[old]]
            if t >= window - 1:
                # A constant window has exactly no entropy, whatever was rounded before it.
                found[row, t] = 0.0 if counts[token] == window else np.log(window) - total / window
    return found


def judge(text_T: Float[np.ndarray, " T"], audio_QT: Float[np.ndarray, "Q T"]) -> dict[str, Bool[np.ndarray, " W"]]:
    """Judge the windows of a call by the entropies of its tokens; the first one only fills the past.

    Args:
      text_T: entropies of the text row.
      audio_QT: of the codebooks of the model's voice.

    Returns:
      For silence and every artefact the windows that have it; one window may have several.
    """
    windows = max(0, len(text_T) // WINDOW - 1)
    ends = WINDOW * (1 + np.arange(1, windows + 1)) - 1
    text, audio = text_T[ends], audio_QT[:, ends]
    idle = text == 0
    median = np.median(audio, axis=0)
    return {
        SILENCE: idle & (median <= SILENT_AUDIO),
        "background noise": idle & (median > SILENT_AUDIO),
        "repetitive text": ~idle & (np.abs([_slope(text_T[end + 1 - WINDOW : end + 1]) for end in ends]) < FLAT_TEXT),
        "gibberish": text > GIBBERISH_TEXT,
        "noisy audio": ~idle & (audio.std(axis=0) > UNEVEN_AUDIO),
    }


def _slope(values: Float[np.ndarray, " T"]) -> float:
    return float(np.polyfit(np.arange(len(values)), values, 1)[0])


def text_loops(text_T: Int[np.ndarray, " T"], padding: Iterable[int]) -> Int[np.ndarray, "S 2"]:
    """Return the frames (first, one past the last) in which the text says the same tokens again and again.

    Args:
      text_T: text tokens.
      padding: ids that say nothing; how much of them is between words does not matter.
    """
    frames = np.flatnonzero((text_T >= 0) & ~np.isin(text_T, list(padding)))
    said = text_T[frames]
    spans = []
    for period in range(1, min(LONGEST_TEXT_LOOP, len(said) // LOOP_TIMES) + 1):
        least = max(LOOP_TIMES * period, LOOP_TOKENS) - period
        for start, end in _runs(said[period:] == said[:-period], least):
            spans.append((frames[start], frames[end + period - 1] + 1))
    return _joined(spans)


def audio_loops(codes_QT: Int[np.ndarray, "Q T"], audible_T: Bool[np.ndarray, " T"]) -> Int[np.ndarray, "S 2"]:
    """Return the frames (first, one past the last) in which audible codes repeat at a fixed distance.

    Silence repeats itself by right; so frames count that can be heard.

    Args:
      codes_QT: of the model's voice.
      audible_T: frames that can be heard.
    """
    spans = []
    for period in range(1, min(LONGEST_AUDIO_LOOP, codes_QT.shape[1] // LOOP_TIMES) + 1):
        same = (codes_QT[:, period:] == codes_QT[:, :-period]).mean(axis=0) >= _SAME_CODES
        least = max(LOOP_TIMES * period, LOOP_FRAMES) - period
        for start, end in _runs(same, least):
            if audible_T[start : end + period].mean() >= 0.5:
                spans.append((start, end + period))
    return _joined(spans)


def _runs(true_N: Bool[np.ndarray, " N"], least: int) -> list[tuple[int, int]]:
    """Where at least so many in a row are true: (first, one past the last)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], true_N.astype(np.int8), [0]]))).reshape(-1, 2)
    return [(int(start), int(end)) for start, end in edges if end - start >= least]


def _joined(spans: list[tuple[int, int]]) -> Int[np.ndarray, "S 2"]:
    joined: list[list[int]] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], end)
        else:
            joined.append([start, end])
    return np.array(joined, np.int64).reshape(-1, 2)
