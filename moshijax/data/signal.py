"""What the signal of a recording says: levels, clipping, silence, copied or swapped channels, words nobody spoke."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from moshijax.data.transcript import Word

ENVELOPE_SECONDS = 0.02  # of which every level is the RMS
SPEECH_RMS = 10 ** (-45 / 20)  # of 20 ms, above which a channel is not silent
_CLIPPED_SHARE = 1e-3
_CLIP = 0.999
_DC = 0.05
_SAME = 0.98
_SWAPPED = 4.0  # amplitude ratio
_LATE = 0.5  # seconds
_COARSE = 160  # means of every 20 ms, of which a copy that is late is found
_COPY_LATE = 80  # of them, 10 ms


@dataclass
class SignalStatistics:
    """Running figures of a signal of two channels, or of one with everybody in it, fed block by block.

    Attributes:
      sample_rate: in Hz.
      channels: 1 or 2.
      num_samples: per channel, so far.
      clipped: samples at full scale, over all channels.
      bad: samples that are not finite.
      envelope: RMS of every 20 ms without its mean, [frames, channels] of every block.
    """

    sample_rate: int
    channels: int = 2
    num_samples: int = 0
    clipped: int = 0
    bad: int = 0
    envelope: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.total = np.zeros(self.channels)
        self.moments = np.zeros((self.channels, self.channels))
        self._rest = np.zeros((self.channels, 0), np.float32)
        # Products of each channel with the other one, which is late by 0 to `_COPY_LATE`; and of each with itself.
        self._products = np.zeros((2, _COPY_LATE + 1))
        self._coarse_power = np.zeros(2)
        self._before = np.zeros((self.channels, _COPY_LATE), np.float32)

    def add(self, block: np.ndarray) -> None:
        """Take in a block [n, channels] float32."""
        self.num_samples += len(block)
        signal = np.ascontiguousarray(block.T)  # [2, n]: the passes below are over whole channels
        peak = max(signal.max(initial=0.0), -signal.min(initial=0.0))
        if not np.isfinite(peak):
            finite = np.isfinite(signal)
            self.bad += int((~finite).any(axis=0).sum())
            signal = np.where(finite, signal, 0.0)
        if peak >= _CLIP:
            self.clipped += int((np.abs(signal) >= _CLIP).sum())
        self.total += signal.sum(axis=1)
        self.moments += signal @ signal.T
        signal = np.concatenate([self._rest, signal], axis=1)
        step = round(ENVELOPE_SECONDS * self.sample_rate)
        count = signal.shape[1] // step
        pieces = signal[:, : count * step].reshape(self.channels, count, step)
        pieces = pieces - pieces.mean(axis=2, keepdims=True)  # a DC offset is no sound
        self.envelope.append(np.sqrt(np.einsum("cns,cns->nc", pieces, pieces) / step))
        self._rest = signal[:, count * step :]
        if self.channels == 2 and count:
            self._multiply(pieces)

    def _multiply(self, pieces: np.ndarray) -> None:
        """Take in the products of the channels of whole 20 ms, [2, n, samples]."""
        step = pieces.shape[2]
        edges = np.unique(np.arange(_COARSE) * step // _COARSE)
        coarse = np.add.reduceat(pieces, edges, axis=2) / np.diff(edges, append=step).astype(np.float32)
        coarse = coarse.reshape(2, -1)
        signal = np.concatenate([self._before, coarse], axis=1)
        for lag in range(_COPY_LATE + 1):
            early = signal[:, _COPY_LATE - lag : signal.shape[1] - lag]
            self._products[:, lag] += coarse[0] @ early[1], coarse[1] @ early[0]
        self._coarse_power += np.square(coarse).sum(axis=1)
        self._before = signal[:, -_COPY_LATE:]

    def levels(self) -> np.ndarray:
        """Return the RMS of every 20 ms of the channels, [frames, channels]."""
        return np.concatenate(self.envelope) if self.envelope else np.zeros((0, self.channels), np.float32)

    def rms(self) -> np.ndarray:
        """Return the RMS of the whole channels without their means, [channels]."""
        return np.sqrt(np.maximum(np.diag(self._covariance()), 0.0))

    def _covariance(self) -> np.ndarray:
        count = max(1, self.num_samples)
        return self.moments / count - np.outer(self.total, self.total) / count**2

    def _likeness(self) -> float:
        """Return how much one of two channels is the other: scaled, of opposite sign, or up to 10 ms late."""
        covariance = self._covariance()
        pairs = (covariance[0, 1], np.diag(covariance)), (np.abs(self._products).max(), self._coarse_power)
        return max((abs(product) / np.sqrt(both.prod()) for product, both in pairs if both.min() > 0), default=0.0)

    def findings(self, words: list[Word]) -> tuple[Counter[str], str | None, str | None]:
        """Judge the whole signal against the words of its transcript.

        Returns:
          Flags, and the kind and text of a rejection (None, None if there is none).
        """
        flags: Counter[str] = Counter()
        if self.bad:
            return flags, "not_finite", f"{self.bad} samples are NaN or infinite: write the recording again"
        count = max(1, self.num_samples)
        if self.clipped > _CLIPPED_SHARE * self.channels * count:
            flags["clipped"] += 1
        if np.abs(self.total / count).max() > _DC:
            flags["dc_offset"] += 1
        levels = self.levels()
        loud = (levels > SPEECH_RMS).any(axis=0) if len(levels) else np.zeros(self.channels, bool)
        if words and not loud.any():
            return flags, "silent", "the recording is silent but the transcript has words: check it"
        flags += Counter(silent_channel=int((~loud).sum()))
        if self.channels == 1:
            return flags, None, None
        if loud.all() and self._likeness() > _SAME:
            return flags, "same_channels", "both channels carry the same signal: record the speakers apart"
        if _swapped(levels, words):
            return flags, "swapped", "words of one speaker sound on the other's channel: swap them with --channels 1,0"
        return flags + Counter(drift=_drift(levels, words)), None, None


def _during(levels: np.ndarray, start: float, end: float, column: int) -> np.ndarray:
    return levels[int(max(0.0, start) / ENVELOPE_SECONDS) : int(end / ENVELOPE_SECONDS) + 1, column]


def heard(levels: np.ndarray, words: list[Word]) -> list[Word]:
    """The words with any sound on their channel, up to half a second before or after."""

    def sounds(word: Word) -> bool:
        column = int(levels.shape[1] == 2 and word.speaker == "user")
        return bool((_during(levels, word.start - _LATE, word.end + _LATE, column) > SPEECH_RMS).any())

    return [word for word in words if sounds(word)]


def loudness(levels: np.ndarray, words: Iterable[Word], column: int) -> float:
    """Return the RMS of a channel during words, 0 without any; `levels` as of `SignalStatistics.levels`."""
    pieces = [_during(levels, word.start, word.end, column) for word in words]
    pieces = [piece for piece in pieces if len(piece)]
    return float(np.sqrt(np.mean(np.square(np.concatenate(pieces))))) if pieces else 0.0


def _swapped(levels: np.ndarray, words: list[Word]) -> bool:
    """True when every speaker that has words is much louder, during them, on the other's channel."""
    answers = []
    for column, speaker in enumerate(("model", "user")):
        own = [word for word in words if word.speaker == speaker]
        if own and len(levels):
            right, wrong = loudness(levels, own, column), loudness(levels, own, 1 - column)
            answers.append(wrong > SPEECH_RMS and wrong > _SWAPPED * right)
    return bool(answers) and all(answers)


def _drift(levels: np.ndarray, words: list[Word]) -> int:
    """Channels whose first word and first sound are more than half a second apart, the word being early."""
    drifts = 0
    for column, speaker in enumerate(("model", "user")):
        own = [word for word in words if word.speaker == speaker]
        sounds = np.flatnonzero(levels[:, column] > SPEECH_RMS) if len(levels) else []
        if own and len(sounds):
            drifts += sounds[0] * ENVELOPE_SECONDS - own[0].start > _LATE
    return drifts
