"""One dialogue to a two-channel recording and its sidecar, with overlaps and interruptions as written."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import soxr

from moshijax.data.synthesis.dialogue import GAP, Dialogue, Utterance
from moshijax.data.synthesis.speech import Speech
from moshijax.data.synthesis.voices import Voice
from moshijax.errors import DataError

SAMPLE_RATE = 24_000
LABELS = {"model": "SPEAKER_MAIN", "user": "SPEAKER_USER"}
SPEECH_LEVEL = 0.08  # RMS of the loud part of every utterance, about -22 dBFS
_PEAK = 0.9
_FADE = 240  # samples; 10 ms
_SMALLEST_PAUSE = 0.2  # seconds of silence on both channels that count as a pause


@dataclass
class _Placed:
    """An utterance on the time line: samples at SAMPLE_RATE, times in seconds relative to `start`."""

    utterance: Utterance
    start: float
    samples: np.ndarray
    words: list[tuple[str, float, float]]
    phonemes: list[tuple[str, float, float]]

    @property
    def end(self) -> float:
        return self.start + self.words[-1][2]

    def cut(self, time: float) -> None:
        """Stop speaking at the end of the word that is being spoken at `time` (seconds of the recording)."""
        kept = [word for word in self.words if self.start + word[1] < time] or self.words[:1]
        end = kept[-1][2]
        last = min(len(self.samples), round(end * SAMPLE_RATE) + _FADE)
        self.samples = self.samples[:last].copy()
        fade = min(_FADE, last)
        self.samples[last - fade :] *= np.linspace(1.0, 0.0, fade, dtype=np.float32)
        self.words = kept
        self.phonemes = [(p, a, min(b, end)) for p, a, b in self.phonemes if a < end]


def _level(samples: np.ndarray) -> np.ndarray:
    """Scales speech so that its loud half has the RMS `SPEECH_LEVEL`, without clipping."""
    frames = samples[: len(samples) // 240 * 240].reshape(-1, 240)
    energy = np.sort(np.square(frames).mean(axis=1))
    loud = float(np.sqrt(energy[len(energy) // 2 :].mean())) if len(energy) else 0.0
    peak = float(np.abs(samples).max(initial=0.0))
    if loud == 0.0 or peak == 0.0:
        return samples
    return samples * np.float32(min(SPEECH_LEVEL / loud, _PEAK / peak))


def _place(dialogue: Dialogue, speak: Callable[[str, Voice], Speech]) -> list[_Placed]:
    placed: list[_Placed] = []
    floor: _Placed | None = None  # the last turn, from which the next start is counted
    for utterance in dialogue.utterances:
        speech = speak(utterance.text, dialogue.voice_of(utterance))
        samples = _level(soxr.resample(speech.samples, speech.sample_rate, SAMPLE_RATE, quality="HQ"))
        if floor is None:
            start = dialogue.lead
        elif utterance.kind == "turn":
            start = max(floor.start, floor.end + (GAP if utterance.gap is None else utterance.gap))
        else:
            start = floor.start + utterance.at * (floor.end - floor.start)
        if utterance.kind == "interruption" and floor is not None and floor.utterance.speaker != utterance.speaker:
            floor.cut(start + utterance.yield_after)
        own = [p.end + 0.05 for p in placed if p.utterance.speaker == utterance.speaker]
        start = max([start, *own])
        if dialogue.grid and utterance.speaker == "model":
            start = math.ceil(round(start / dialogue.grid, 6)) * dialogue.grid
        item = _Placed(utterance, start, samples, list(speech.words), list(speech.phonemes))
        placed.append(item)
        if utterance.kind != "backchannel":
            floor = item
    return placed


def _overlaps(placed: list[_Placed]) -> list[tuple[float, float]]:
    spans = {s: [(p.start + a, p.start + b) for p in placed if p.utterance.speaker == s for _, a, b in p.words]
             for s in LABELS}  # fmt: skip
    pieces = [(max(a, c), min(b, d)) for a, b in spans["model"] for c, d in spans["user"] if max(a, c) < min(b, d)]
    return _union(pieces, join=0.1)


def _union(spans: list[tuple[float, float]], join: float = 0.0) -> list[tuple[float, float]]:
    joined: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1] + join:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def _events(placed: list[_Placed]) -> list[list[Any]]:
    """[kind, [start, end], speaker or None], sorted by start."""
    events: list[list[Any]] = []
    for item in placed:
        if item.utterance.kind != "turn":
            events.append([item.utterance.kind, [item.start, item.end], LABELS[item.utterance.speaker]])
    events += [["overlap", [start, end], None] for start, end in _overlaps(placed)]
    speech = _union([(p.start + a, p.start + b) for p in placed for _, a, b in p.words])
    for (_, end), (start, _) in zip(speech, speech[1:], strict=False):
        if start - end >= _SMALLEST_PAUSE:
            events.append(["pause", [end, start], None])
    for event in events:
        event[1] = [round(t, 4) for t in event[1]]
    return sorted(events, key=lambda event: (event[1], event[0]))


def mix(dialogue: Dialogue, speak: Callable[[str, Voice], Speech], seed: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Render a dialogue.

    Args:
      dialogue: the script.
      speak: as `Speaker.speak` does.
      seed: of the noise.

    Returns:
      Audio [N, 2] int16 at SAMPLE_RATE (left the model, right the user) and the sidecar: `alignments`, `phonemes`
      (symbol, [start, end], speaker), `events` and `meta`; all times in seconds.

    Raises:
      DataError: speech runs past the fixed duration.
    """
    placed = _place(dialogue, speak)
    end = max((p.end for p in placed), default=0.0)
    duration = dialogue.duration if dialogue.duration is not None else end + dialogue.tail
    if end > duration:
        raise DataError(
            f"dialogue {dialogue.id!r}: speech ends at {end:.2f} s, after its duration of {duration:.2f} s: "
            "shorten the text, speak faster or raise the duration"
        )
    audio = np.zeros((round(duration * SAMPLE_RATE), 2), np.float32)
    for item in placed:
        first = round(item.start * SAMPLE_RATE)
        piece = item.samples[: len(audio) - first]
        audio[first : first + len(piece), 0 if item.utterance.speaker == "model" else 1] += piece
    if dialogue.snr_db is not None:
        noise = np.random.RandomState(seed & 0x7FFFFFFF).standard_normal(len(audio)).astype(np.float32)
        audio[:, 1] += noise * np.float32(SPEECH_LEVEL * 10 ** (-dialogue.snr_db / 20))
    audio[:, 1] *= np.float32(10 ** (dialogue.gain_db / 20))
    alignments, phonemes = [], []
    for item in placed:
        label = LABELS[item.utterance.speaker]
        for source, target in ((item.words, alignments), (item.phonemes, phonemes)):
            target += [[text, [round(item.start + a, 4), round(item.start + b, 4)], label] for text, a, b in source]
    alignments.sort(key=lambda word: word[1])
    phonemes.sort(key=lambda phoneme: phoneme[1])
    sidecar = {
        "alignments": alignments,
        "phonemes": phonemes,
        "events": _events(placed),
        "meta": dialogue.meta,
    }
    return np.rint(np.clip(audio, -1.0, 1.0) * 32767.0).astype(np.int16), sidecar
