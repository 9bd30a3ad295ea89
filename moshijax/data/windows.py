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
from moshijax.data.batches import MOST_SAMPLES, BatchSource, Fault, amount, check_size, fold_seed, shuffled
from moshijax.data.isolation import Isolated
from moshijax.data.manifest import Item, read_recordings
from moshijax.data.ranges import check_probabilities
from moshijax.data.signal import SPEECH_RMS
from moshijax.data.teacher import RATE, TeacherFeatures
from moshijax.errors import ConfigError, DataError

log = logging.getLogger(__name__)

_TRIES = 8  # windows of a recording, for one with sound
_IN_A_ROW = 32  # recordings that fail one after the other: then something else is wrong, such as a disk that is gone


@dataclass(frozen=True)
class AudioData:
    """Windows of recordings for codec training.

    Attributes:
      manifest: of the recordings, or a folder of audio files; any number of channels, 4 to 384 kHz.
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
      channel: the only one that windows are taken from, such as 0, the model's; None: any.
      start_grid: windows start at multiples of this many seconds, itself a multiple of 0.02.
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
    channel: int | None = None
    start_grid: float = 1 / RATE

    def __post_init__(self) -> None:
        check_size(MOST_SAMPLES, self.batch_size, num_samples=self.num_samples)
        if self.workers < 0:
            raise ConfigError(f"workers is {self.workers}: give a number of processes, or 0 for none")
        if self.teacher is not None and self.sample_rate % RATE:
            raise ConfigError(f"sample_rate is {self.sample_rate}: features at {RATE} Hz need a multiple of {RATE}")
        if self.start_grid <= 0 or abs(self.start_grid * RATE - round(self.start_grid * RATE)) > 1e-6:
            raise ConfigError(f"start_grid is {self.start_grid} s: give a multiple of the {1 / RATE} s of a feature")
        if self.channel is not None and self.channel < 0:
            raise ConfigError(f"channel is {self.channel}: give the number of a channel, 0 or more, or None for any")
        check_probabilities(self, "speech_share")
        if not 0 <= self.least_sound <= 1:
            raise ConfigError(f"least_sound is {self.least_sound}: it is a share of a window, from 0 to 1")
        if self.level_db is not None and not self.level_db < 0:
            raise ConfigError(f"level_db is {self.level_db}: give dB below full scale, such as -24.0")
        if self.gain_db[0] > self.gain_db[1]:
            raise ConfigError(f"gain_db is {self.gain_db}: give the lower bound first")


class AudioWindows:
    """Draw windows; elements are {"audio" [N] float32, "teacher" [T50, F] float32}.

    Where a recording is shorter than a window, others follow it: what is not there does not train as silence.

    A recording that cannot be used is named once, counted in `skipped`, and another one takes its place: which one is a
    function of the place in the data alone. Where a whole file is broken it is not tried again; where a window is, the
    file's other windows are as good as ever.

    Whether a decoder crashes or takes too long may depend on the moment. A run that resumes therefore puts what was
    known at its checkpoint into `skipped`.
    """

    def __init__(self, config: AudioData, items: Sequence[Item], teacher: TeacherFeatures | None):
        self.config, self.items, self.teacher = config, items, teacher
        self.features = round(config.num_samples * RATE / config.sample_rate)
        self.skipped: dict[str, Fault] = {}
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
            if self.config.channel is not None and self.config.channel >= info.channels:
                raise DataError(
                    f"recording {item.audio} has {info.channels} channels, so none of number {self.config.channel}"
                )
            self._info[item.id] = info
        return self._info[item.id]

    def _skip(self, item: Item, error: DataError) -> None:
        whole = item.id not in self._info or isinstance(error, audio.DecoderLost)
        with self._lock:
            known = item.id in self.skipped
            if not known or whole:
                self.skipped[item.id] = Fault(str(error), whole)
            if not known:
                log.warning("skipped, %d of %d so far: %s", len(self.skipped), len(self.items), error)

    def _is_broken(self, item: Item) -> bool:
        fault = self.skipped.get(item.id)
        return fault is not None and fault.whole

    def _all_broken(self) -> bool:
        with self._lock:
            return len(self.skipped) >= len(self.items) and all(map(self._is_broken, self.items))

    def draw(self, item: Item, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draw a window of an item, or of another one if it is broken, and what follows if the item is shorter.

        Raises:
          DataError: no recording can be used, or very many in a row cannot.
        """
        # Whether a broken one is known or found out now must not show in what is drawn instead.
        others = np.random.Generator(rng.bit_generator.jumped())
        parts: list[dict[str, np.ndarray]] = []
        missing, failed = self.config.num_samples, 0
        while failed < _IN_A_ROW and not self._all_broken():
            if not self._is_broken(item):
                try:
                    parts.append(self._draw(item, self.info(item), rng, missing))
                    missing, failed = missing - len(parts[-1]["audio"]), 0
                except DataError as error:
                    self._skip(item, error)
                    failed += 1
            if not missing:
                return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            item = self.items[int(others.integers(len(self.items)))]
            rng = np.random.default_rng(others.integers(2**63))
        which = f"{failed} recordings in a row" if failed == _IN_A_ROW else f"all {len(self.items)} recordings"
        raise DataError(
            f"{which} of {self.config.manifest} cannot be used, {len(self.skipped)} in all; the last: "
            f"{list(self.skipped.values())[-1].reason}"
        )

    def _draw(self, item: Item, info: audio.AudioInfo, rng: np.random.Generator, missing: int) -> dict[str, np.ndarray]:
        """Draw a stretch of the samples that a window lacks, or all of a shorter recording."""
        config = self.config
        # A stretch ends with one of the features, so that those of the next one begin with it.
        step_samples = max(1, config.sample_rate // RATE)
        whole = max(step_samples, int(info.duration * config.sample_rate) // step_samples * step_samples)
        num_samples = min(missing, whole)
        seconds = num_samples / config.sample_rate
        # Starts lie on the features' grid, so that window and features begin together.
        every = round(config.start_grid * RATE)
        steps = max(0, int((info.duration - seconds) * RATE)) // every
        insist = rng.random() < config.speech_share
        most = 0.0
        for _ in range(_TRIES):
            where, begin = int(rng.integers(info.channels)), int(rng.integers(steps + 1)) * every
            where = where if config.channel is None else config.channel
            wanted = begin / RATE, num_samples, config.sample_rate, where, info.extent
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
            there = (config.num_samples - missing) * RATE // config.sample_rate
            count = self.features - there if num_samples == missing else num_samples * RATE // config.sample_rate
            features = self.teacher.read(item.id, step, step + count)[channel]
            lacking = count - len(features)  # that of a last, incomplete frame
            element["teacher"] = np.pad(features.astype(np.float32), ((0, lacking), (0, 0)), mode="edge")
        return element


def _powers(window: np.ndarray) -> np.ndarray:
    """Power of every whole 20 ms frame (at 24 kHz) without its mean: a DC offset is no sound."""
    return window[: len(window) // 480 * 480].reshape(-1, 480).var(axis=1)


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
