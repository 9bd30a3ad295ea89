"""Small data sets for tests: recordings with tones where words are, and an encoder cheap enough to run everywhere."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import soundfile

RATE = 24_000
WORDS = [["hello", [0.3, 0.6], "SPEAKER_USER"], ["yes", [1.0, 1.3], "SPEAKER_MAIN"]]


def tones(alignments, seconds: float = 2.0, rate: int = RATE) -> np.ndarray:
    """Stereo with a tone during every well-formed word: left SPEAKER_MAIN, right SPEAKER_USER."""
    audio = np.zeros((round(seconds * rate), 2), np.float32)
    times = np.arange(len(audio)) / rate
    for number, (_, (start, end), speaker) in enumerate(alignments):
        inside = (times >= start) & (times < end)
        tone = 0.2 * np.sin(2 * np.pi * (200 + 40 * number) * times)
        audio[inside, 0 if speaker == "SPEAKER_MAIN" else 1] = tone[inside]
    return audio


def write_item(folder: Path, name: str, alignments=None, audio=None, rate: int = RATE, **extra) -> dict:
    """One recording with its sidecar; returns its manifest line."""
    alignments = WORDS if alignments is None else alignments
    audio = tones(alignments) if audio is None else audio
    soundfile.write(folder / f"{name}.wav", audio, rate, subtype="PCM_16")
    (folder / f"{name}.json").write_text(json.dumps({"alignments": alignments, **extra}), encoding="utf-8")
    return {"path": f"{name}.wav", "duration": len(audio) / rate}


def damage_middle(path: Path) -> None:
    """Noise over 4 kB in the middle of a file, or over all that follows there."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4096] = np.random.default_rng(0).bytes(len(content[middle : middle + 4096]))
    path.write_bytes(content)


def endanger(path: Path) -> None:
    """Crash or hang, as a decoder may, where the name of a file says so."""
    if path.stem == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if path.stem == "hang":
        time.sleep(3600)


def write_manifest(folder: Path, lines: list[dict]) -> Path:
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def write_set(folder: Path, count: int = 5) -> Path:
    """A clean set whose items differ in length and words."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        words = [[w, [a + 0.05 * number, b + 0.05 * number], s] for w, (a, b), s in WORDS]
        lines.append(write_item(folder, f"call-{number}", words, tones(words, 2.0 + 0.4 * number)))
    return write_manifest(folder, lines)


class LevelEncoder:
    """A tiny quantiser of frame levels, with the interface of a codec."""

    sample_rate, frame_size, num_codebooks = RATE, 1920, 3
    source = None
    sha256 = "level-encoder"

    def __init__(self, fail_after: int | None = None):
        self.calls, self.fail_after = 0, fail_after

    def _codes(self, waveform: np.ndarray) -> np.ndarray:
        frames = -(-len(waveform) // self.frame_size)
        padded = np.zeros(frames * self.frame_size, np.float32)
        padded[: len(waveform)] = waveform
        level = np.sqrt(np.square(padded.reshape(frames, self.frame_size)).mean(axis=1))
        return np.stack([(level * 100 * (q + 1)).astype(np.int32) for q in range(self.num_codebooks)])

    def encode(self, waveforms):
        self.calls += 1
        if self.fail_after is not None and self.calls > self.fail_after:
            raise KeyboardInterrupt
        return [self._codes(waveform) for waveform in waveforms]

    def silence(self):
        return [0] * self.num_codebooks

    def encode_blocks(self, blocks):
        signal = np.concatenate(list(blocks))
        return np.stack([self._codes(signal[:, 0]), self._codes(signal[:, 1])])
