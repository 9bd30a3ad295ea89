"""Batches of audio windows for codec training: random stretches of either channel, with teacher features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moshijax import optional
from moshijax.data import audio
from moshijax.data.batches import BatchSource, fold_seed, shuffled
from moshijax.data.manifest import Item, read_manifest
from moshijax.data.teacher import RATE, TeacherFeatures
from moshijax.errors import ConfigError, DataError

_SPEECH = 10 ** (-45 / 20)
_TRIES = 8


@dataclass(frozen=True)
class AudioData:
    """Windows of recordings for codec training.

    Attributes:
        manifest: of the recordings (mono ones may be among them).
        teacher: folder made by `moshijax data teacher`, or None for batches without features.
        batch_size: rows of the global batch.
        num_samples: length of a window at `sample_rate`.
        speech_share: probability that a window without sound is drawn again (up to 8 times).
        gain_db: a window's level is changed by a number drawn from this range.
    """

    manifest: str
    teacher: str | None = None
    batch_size: int = 8
    num_samples: int = 24_000
    sample_rate: int = 24_000
    speech_share: float = 0.9
    gain_db: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        if self.num_samples < 1 or self.batch_size < 1:
            raise ConfigError(f"num_samples {self.num_samples} and batch_size {self.batch_size} must be at least 1")
        if self.teacher is not None and self.sample_rate % RATE:
            raise ConfigError(f"sample_rate is {self.sample_rate}: features at {RATE} Hz need a multiple of {RATE}")
        if not 0 <= self.speech_share <= 1:
            raise ConfigError(f"speech_share is {self.speech_share}: it is a probability from 0 to 1")
        if self.gain_db[0] > self.gain_db[1]:
            raise ConfigError(f"gain_db is {self.gain_db}: give the lower bound first")


class AudioWindows:
    """Draws windows from one item; elements are {"audio" [N] float32, "teacher" [T50, F] float32}."""

    def __init__(self, config: AudioData, items: Sequence[Item], teacher: TeacherFeatures | None):
        self.config, self.items, self.teacher = config, items, teacher
        self.features = round(config.num_samples * RATE / config.sample_rate)
        self._info: dict[str, audio.AudioInfo] = {}

    def info(self, item: Item) -> audio.AudioInfo:
        if item.id not in self._info:
            self._info[item.id] = audio.probe(item.audio)
        return self._info[item.id]

    def _window(self, item: Item, start: float, channel: int) -> np.ndarray:
        """num_samples samples at the wanted rate from `start` seconds; zeros after the end."""
        info, rate, length = self.info(item), self.config.sample_rate, self.config.num_samples
        seconds = length / rate
        first = round(start * info.sample_rate)
        signal = audio.read_window(item.audio, first, int(np.ceil(seconds * info.sample_rate)) + 1)[:, channel]
        if info.sample_rate != rate:
            signal = optional.load("soxr").resample(signal, info.sample_rate, rate, quality="HQ")
        window = np.zeros(length, np.float32)
        window[: len(signal)] = signal[:length]
        return window

    def draw(self, item: Item, rng: np.random.Generator) -> dict[str, np.ndarray]:
        config, info = self.config, self.info(item)
        seconds = config.num_samples / config.sample_rate
        # Starts lie on the features' grid, so that window and features begin together.
        steps = max(0, int((info.duration - seconds) * RATE))
        insist = rng.random() < config.speech_share
        for _ in range(_TRIES):
            channel = int(rng.integers(info.channels))
            step = int(rng.integers(steps + 1))
            window = self._window(item, step / RATE, channel)
            if not insist or _sounds(window):
                break
        element = {"audio": window * np.float32(10 ** (rng.uniform(*config.gain_db) / 20))}
        if self.teacher is not None:
            features = self.teacher[item.id][channel, step : step + self.features]
            # Beyond the end the last frame, which is silence after speech, goes on.
            missing = self.features - len(features)
            element["teacher"] = np.pad(features.astype(np.float32), ((0, missing), (0, 0)), mode="edge")
        return element


def _sounds(window: np.ndarray) -> bool:
    frames = window[: len(window) // 480 * 480].reshape(-1, 480)
    return bool(len(frames)) and float(np.square(frames).mean(axis=1).max()) > _SPEECH**2


def audio_batches(config: AudioData, seed: int) -> BatchSource:
    """Batches {"audio": float32 [B, N], "teacher": float32 [B, T50, F] (absent without a teacher)}.

    Raises:
        DataError: an unreadable recording is drawn, or the teacher's features lack every item.
    """
    manifest = read_manifest(config.manifest)
    teacher = None if config.teacher is None else TeacherFeatures(config.teacher, manifest.sha256)
    items = [item for item in manifest.items if teacher is None or item.id in teacher]
    if not items:
        raise DataError(f"no item of {config.manifest} has features in {config.teacher}: run `moshijax data teacher`")
    windows = AudioWindows(config, items, teacher)
    return BatchSource(shuffled(items, fold_seed(manifest.sha256, seed), windows.draw), config.batch_size, len(items))
