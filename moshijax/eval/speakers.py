"""Whose voice it is: speaker embeddings as plug-ins, and how far a model keeps its own over a call.

The Moshi paper (arXiv 2410.00037, 6.3) counts the segments that are closer to the model's own first segment than to the
user's. Ours are windows with speech of the model, joined to `SEGMENT_SECONDS` of speech each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np

from moshijax import optional
from moshijax.runtime.audio import resample

if TYPE_CHECKING:
    from jaxtyping import Float

    from moshijax.eval.activity import Segments

SEGMENT_SECONDS = 5.0  # of speech, without the pauses


class SpeakerEmbedder(Protocol):
    """A judge of voices.

    Attributes:
      packages: whose versions belong to its verdicts.
    """

    packages: tuple[str, ...]

    def embed(self, pcm: Float[np.ndarray, " N"], sample_rate: int) -> Float[np.ndarray, " D"]:
        """Return a vector whose cosine with that of another recording tells how alike the voices are."""


class Resemblyzer:
    """The GE2E encoder of the package Resemblyzer (Apache-2.0), whose weights come in its wheel: 256 values at 16 kHz.

    Raises:
      MissingPackage: it is not installed.
    """

    packages = ("Resemblyzer", "torch")
    _RATE = 16_000

    def __init__(self) -> None:
        encoder = optional.load("resemblyzer")
        self._encoder = encoder.VoiceEncoder("cpu", verbose=False)

    def embed(self, pcm: Float[np.ndarray, " N"], sample_rate: int) -> Float[np.ndarray, " D"]:
        """See `SpeakerEmbedder.embed`."""
        return self._encoder.embed_utterance(np.asarray(resample(pcm, sample_rate, self._RATE), np.float32))


EMBEDDERS = {"resemblyzer": Resemblyzer}


def consistency(
    embedder: SpeakerEmbedder,
    model: Float[np.ndarray, " N"],
    user: Float[np.ndarray, " N"],
    sample_rate: int,
    spoken: Segments,
    asked: Segments,
) -> dict[float, tuple[float, float]]:
    """Compare the later segments of a model's voice with its first, and with the first of the user.

    Args:
      embedder: the judge.
      model, user: both channels.
      sample_rate: of them, in Hz.
      spoken, asked: when each speaks.

    Returns:
      Second at which a segment begins -> cosine with the model's first segment, and with the user's.
    """
    segments = {at: embedder.embed(pcm, sample_rate) for at, pcm in _segments(model, sample_rate, spoken)}
    others = [embedder.embed(pcm, sample_rate) for _, pcm in _segments(user, sample_rate, asked)[:1]]
    if len(segments) < 2 or not others:
        return {}
    (_, own), *later = segments.items()
    return {at: (_cosine(own, one), _cosine(others[0], one)) for at, one in later}


def _segments(pcm: np.ndarray, sample_rate: int, spoken: Segments) -> list[tuple[float, np.ndarray]]:
    """Speech of one voice in pieces of `SEGMENT_SECONDS`, and when each begins; a rest is left out."""
    found: list[tuple[float, np.ndarray]] = []
    parts: list[np.ndarray] = []
    begin, missing = 0.0, round(SEGMENT_SECONDS * sample_rate)
    for start, end in spoken:
        at, stop = round(start * sample_rate), round(end * sample_rate)
        while at < stop:
            if not parts:
                begin = at / sample_rate
            taken = pcm[at : min(stop, at + missing)]
            parts.append(taken)
            at, missing = at + len(taken), missing - len(taken)
            if not len(taken):
                break
            if not missing:
                found.append((begin, np.concatenate(parts)))
                parts, missing = [], round(SEGMENT_SECONDS * sample_rate)
    return found


def figures(similar: Mapping[float, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Return the share of segments that are closer to the model's first than to the user's, and the mean cosine."""
    own = [one for one, _ in similar.values()]
    closer = [one > other for one, other in similar.values()]
    return {"voice/own": (float(sum(closer)), float(len(own))), "voice/similarity": (float(sum(own)), float(len(own)))}


def within(similar: Mapping[float, tuple[float, float]], first: float, last: float) -> float:
    """Return the mean cosine with the model's first segment of those that begin in a span; NaN without any."""
    found = [own for at, (own, _) in similar.items() if first <= at < last]
    return sum(found) / len(found) if found else math.nan


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-12))
