"""Batches of audio windows for codec training: random stretches of any channel, with teacher features."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moshijax.data import audio
from moshijax.data.batches import BatchSource, amount, fold_seed, shuffled
from moshijax.data.checks import SPEECH_RMS
from moshijax.data.isolation import Isolated
from moshijax.data.manifest import Item, read_recordings
from moshijax.data.teacher import RATE, TeacherFeatures
from moshijax.errors import ConfigError, DataError

log = logging.getLogger(__name__)

_TRIES = 8  # windows of a recording, for one with sound
_IN_A_ROW = 32  # recordings that fail one after the other: then something else is wrong, such as a disk that is gone


@dataclass(frozen=True)
class AudioData:
    """Windows of recordings for codec training.

    Attributes:
      manifest: of the recordings, or a folder of audio files; any sample rate and number of channels.
      teacher: folder made by `moshijax data teacher`, or None for batches without features.
      batch_size: rows of the global batch.
      num_samples: length of a window at `sample_rate`.
      speech_share: probability that a window without sound is drawn again, up to 8 times; then the one with most
        sound is taken.
      least_sound: a window counts as without sound unless this share of its 20 ms frames has sound (and one of them).
      level_db: windows with sound are brought to this RMS of their 20 ms frames with sound, in dB of full scale, or
        as near to it as their peak allows; None: levels stay as recorded.
      gain_db: a window's level is changed by a number drawn from this range.
      workers: processes that decode and resample the rows of a batch; a file that crashes or hangs one of them is
        skipped too. 0: this process does it, for recordings known to be good.
    """

    manifest: str
    teacher: str | None = None
    batch_size: int = 8
    num_samples: int = 24_000
    sample_rate: int = 24_000
    speech_share: float = 0.9
    least_sound: float = 0.0
    level_db: float | None = None
    gain_db: tuple[float, float] = (0.0, 0.0)
    workers: int = 1

    def __post_init__(self) -> None:
        if self.num_samples < 1 or self.batch_size < 1:
            raise ConfigError(f"num_samples {self.num_samples} and batch_size {self.batch_size} must be at least 1")
        if self.workers < 0:
            raise ConfigError(f"workers is {self.workers}: give a number of processes, or 0 for none")
        if self.teacher is not None and self.sample_rate % RATE:
            raise ConfigError(f"sample_rate is {self.sample_rate}: features at {RATE} Hz need a multiple of {RATE}")
        if not 0 <= self.speech_share <= 1:
            raise ConfigError(f"speech_share is {self.speech_share}: it is a probability from 0 to 1")
        if not 0 <= self.least_sound <= 1:
            raise ConfigError(f"least_sound is {self.least_sound}: it is a share of a window, from 0 to 1")
        if self.level_db is not None and not self.level_db < 0:
            raise ConfigError(f"level_db is {self.level_db}: give dB below full scale, such as -24.0")
        if self.gain_db[0] > self.gain_db[1]:
            raise ConfigError(f"gain_db is {self.gain_db}: give the lower bound first")


class AudioWindows:
    """Draw windows; elements are {"audio" [N] float32, "teacher" [T50, F] float32}.

    A recording that cannot be used is named once, counted in `skipped` (id -> reason), and another one takes its place:
    which one is a function of the place in the data alone. Where a whole file is broken it is not tried again; where a
    window is, the file's other windows are as good as ever.
    """

    def __init__(self, config: AudioData, items: Sequence[Item], teacher: TeacherFeatures | None):
        self.config, self.items, self.teacher = config, items, teacher
        self.features = round(config.num_samples * RATE / config.sample_rate)
        self.skipped: dict[str, str] = {}
        self._broken: set[str] = set()  # ids of whole files
        self._info: dict[str, audio.AudioInfo] = {}
        self._lock = threading.Lock()
        self._isolated = Isolated(config.workers) if config.workers else None

    def _decode(self, function: Callable[..., Any], path: Path, *arguments: Any) -> Any:
        """`function(path, *arguments)` of `moshijax.data.audio`, in a worker if there are any."""
        if self._isolated is None:
            return function(path, *arguments)
        return audio.apart(self._isolated, function, path, path, *arguments)

    def info(self, item: Item) -> audio.AudioInfo:
        """Return the header of a recording, read once.

        Raises:
          DataError: it cannot be read, or the recording is empty.
        """
        if item.id not in self._info:
            info = self._decode(audio.probe, item.audio)
            if info.num_samples < 1:
                raise DataError(f"recording {item.audio} holds no samples")
            self._info[item.id] = info
        return self._info[item.id]

    def _skip(self, item: Item, error: DataError) -> None:
        with self._lock:
            if item.id in self.skipped:
                return
            self.skipped[item.id] = str(error)
            log.warning("skipped, %d of %d so far: %s", len(self.skipped), len(self.items), error)

    def draw(self, item: Item, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draw a window of an item, or of another one if it is broken.

        Raises:
          DataError: no recording can be used, or very many in a row cannot.
        """
        # Whether a broken one is known or found out now must not show in what is drawn instead.
        others = np.random.Generator(rng.bit_generator.jumped())
        failed = 0
        while len(self._broken) < len(self.items) and failed < _IN_A_ROW:
            if item.id not in self._broken:
                try:
                    return self._draw(item, self.info(item), rng)
                except DataError as error:
                    self._skip(item, error)
                    if item.id not in self._info or isinstance(error, audio.DecoderLost):
                        self._broken.add(item.id)
                    failed += 1
            item = self.items[int(others.integers(len(self.items)))]
            rng = np.random.default_rng(others.integers(2**63))
        which = f"{failed} recordings in a row" if failed == _IN_A_ROW else f"all {len(self.items)} recordings"
        raise DataError(
            f"{which} of {self.config.manifest} cannot be used, {len(self.skipped)} in all; the last: "
            f"{list(self.skipped.values())[-1]}"
        )

    def _draw(self, item: Item, info: audio.AudioInfo, rng: np.random.Generator) -> dict[str, np.ndarray]:
        config = self.config
        seconds = config.num_samples / config.sample_rate
        # Starts lie on the features' grid, so that window and features begin together.
        steps = max(0, int((info.duration - seconds) * RATE))
        insist = rng.random() < config.speech_share
        most = 0.0
        for _ in range(_TRIES):
            where, begin = int(rng.integers(info.channels)), int(rng.integers(steps + 1))
            wanted = begin / RATE, config.num_samples, config.sample_rate, where
            drawn = self._decode(audio.read_window, item.audio, *wanted)
            sound = _sound(drawn)
            if sound >= most or not insist:
                channel, step, window, most = where, begin, drawn, sound
            if not insist or sound > 0 and sound >= config.least_sound:
                break
        if config.level_db is not None:
            window = _levelled(window, config.level_db)
        element = {"audio": window * np.float32(10 ** (rng.uniform(*config.gain_db) / 20))}
        if self.teacher is not None:
            features = self.teacher[item.id][channel, step : step + self.features]
            # Beyond the end the last frame, which is silence after speech, is repeated.
            missing = self.features - len(features)
            element["teacher"] = np.pad(features.astype(np.float32), ((0, missing), (0, 0)), mode="edge")
        return element


def _powers(window: np.ndarray) -> np.ndarray:
    """Mean square of every whole 20 ms frame (at 24 kHz)."""
    return np.square(window[: len(window) // 480 * 480].reshape(-1, 480)).mean(axis=1)


def _sound(window: np.ndarray) -> float:
    """Share of its 20 ms frames that have sound; 0 if it is shorter than one."""
    powers = _powers(window)
    return float((powers > SPEECH_RMS**2).mean()) if len(powers) else 0.0


def _levelled(window: np.ndarray, level_db: float) -> np.ndarray:
    powers = _powers(window)
    loud = powers[powers > SPEECH_RMS**2]
    if not len(loud):
        return window
    gain = min(10 ** (level_db / 20) / np.sqrt(loud.mean()), 1.0 / np.abs(window).max())
    return window * np.float32(gain)


def audio_batches(config: AudioData, seed: int) -> BatchSource:
    """Open batches {"audio": float32 [B, N], "teacher": float32 [B, T50, F] (absent without a teacher)}.

    Raises:
      DataError: no recordings, the teacher's features lack every item, or too many recordings are broken.
    """
    manifest = read_recordings(config.manifest)
    teacher = None if config.teacher is None else TeacherFeatures(config.teacher, manifest)
    items = [item for item in manifest.items if teacher is None or item.id in teacher]
    if not items:
        raise DataError(f"no item of {config.manifest} has features in {config.teacher}: run `moshijax data teacher`")
    windows = AudioWindows(config, items, teacher)
    dataset = shuffled(items, fold_seed(manifest.sha256, seed), windows.draw)
    identity = {config.manifest: manifest.sha256}
    if teacher is not None:
        identity[str(config.teacher)] = teacher.sha256
    durations = [item.duration for item in items]
    content = amount(len(items), "recordings", None if None in durations else sum(durations))
    if len(items) < len(manifest.items):
        content += f" ({len(manifest.items) - len(items)} others have no features)"
    files = {item.id: item.audio for item in items}
    threads = max(1, config.workers)
    return BatchSource(dataset, config.batch_size, len(items), identity, content, files, threads, windows.skipped)
