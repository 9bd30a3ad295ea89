"""Reading recordings: what a file is, its samples at a wanted rate, whole or in pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moshijax import optional
from moshijax.data.isolation import Isolated, Lost
from moshijax.errors import DataError

_SMALLEST_FILE = 64  # bytes; a WAV header alone takes 44
_BLOCK_SECONDS = 10.0
_TIME_LIMIT = 60.0
_BYTES_PER_SECOND = 100_000  # half of what a second of 24 kHz stereo takes in a WAV file
_DEFAULT_REMEDY = "replace it, or convert it to WAV"
_REMEDY = {
    ".sph": "convert it with sph2pipe",
    ".mp4": "convert it with ffmpeg",
    ".m4a": "convert it with ffmpeg",
    ".aac": "convert it with ffmpeg",
    ".webm": "convert it with ffmpeg",
}


class DecoderLost(DataError):
    """A file that crashes its decoder, or never ends it."""


@dataclass(frozen=True)
class AudioInfo:
    """What the header says: samples per channel, their rate in Hz, number of channels, container and coding."""

    num_samples: int
    sample_rate: int
    channels: int
    format: str

    @property
    def duration(self) -> float:
        return self.num_samples / self.sample_rate


def probe(path: Path) -> AudioInfo:
    """Read the header. DataError names the path, what is wrong with it and what to do."""
    soundfile = optional.load("soundfile")
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"recording {path} cannot be read: {error.strerror}") from error
    if size < _SMALLEST_FILE:
        raise DataError(f"recording {path} has {size} bytes: it holds no audio; remove it from the manifest")
    try:
        info = soundfile.info(path)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise unreadable(path, error) from error
    return AudioInfo(info.frames, info.samplerate, info.channels, f"{info.format} {info.subtype}")


def unreadable(path: Path, error: Exception) -> DataError:
    reason = str(error).split(": ", 1)[-1].strip().rstrip(".")
    remedy = _REMEDY.get(path.suffix.lower(), _DEFAULT_REMEDY)
    return DataError(f"recording {path} is not readable audio ({reason}): {remedy}")


def channel_map(info: AudioInfo, path: Path, channels: tuple[int, int] | None) -> tuple[int, int]:
    """Which channels are the model's and the user's. DataError for a mono file, or more than two without a map."""
    if channels is not None:
        if max(channels) >= info.channels or min(channels) < 0 or channels[0] == channels[1]:
            raise DataError(
                f"recording {path} has {info.channels} channels: --channels {channels[0]},{channels[1]} does not fit"
            )
        return channels
    if info.channels == 1:
        raise DataError(f"recording {path} is mono: record two channels, left the model's speaker, right the user's")
    if info.channels > 2:
        raise DataError(f"recording {path} has {info.channels} channels: name two with --channels MODEL,USER")
    return (0, 1)


def blocks(
    path: Path, sample_rate: int, channels: tuple[int, ...] = (0, 1), block_seconds: float = _BLOCK_SECONDS
) -> Iterator[np.ndarray]:
    """Pieces [n, channels] float32 of a recording, resampled to `sample_rate`; memory does not grow with its length."""
    soundfile, soxr = optional.load("soundfile"), optional.load("soxr")
    try:
        with soundfile.SoundFile(path) as file:
            resampler = None
            if file.samplerate != sample_rate:
                resampler = soxr.ResampleStream(
                    file.samplerate, sample_rate, len(channels), dtype="float32", quality="HQ"
                )
            size = max(1, round(block_seconds * file.samplerate))
            expected, found = file.frames, 0
            while True:
                block = file.read(size, dtype="float32", always_2d=True)[:, list(channels)]
                found += len(block)
                last = len(block) < size
                if resampler is not None:
                    block = resampler.resample_chunk(np.ascontiguousarray(block), last=last)
                if len(block):
                    yield block
                if last:
                    break
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise unreadable(path, error) from error
    if found < expected:
        raise DataError(f"recording {path} breaks off after {found} of {expected} samples: copy it again")


def read(path: Path, sample_rate: int, channels: tuple[int, ...] = (0, 1)) -> np.ndarray:
    """The whole recording, [N, channels] float32 at `sample_rate`."""
    pieces = list(blocks(path, sample_rate, channels, block_seconds=60.0))
    return np.concatenate(pieces) if pieces else np.zeros((0, len(channels)), np.float32)


def read_window(path: Path, start: float, num_samples: int, sample_rate: int, channel: int) -> np.ndarray:
    """num_samples samples [N] float32 of a channel at `sample_rate`, from `start` seconds on; zeros after the end.

    Raises:
      DataError: what is wanted cannot be decoded, ends before the header says so, or is not finite.
    """
    soundfile, soxr = optional.load("soundfile"), optional.load("soxr")
    try:
        with soundfile.SoundFile(path) as file:
            rate, total = file.samplerate, file.frames
            first = min(round(start * rate), total)
            wanted = min(int(np.ceil(num_samples / sample_rate * rate)) + 1, total - first)
            file.seek(first)
            signal = file.read(wanted, dtype="float32", always_2d=True)[:, channel]
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise unreadable(path, error) from error
    if len(signal) < wanted:
        raise DataError(f"recording {path} breaks off after {first + len(signal)} of {total} samples")
    if not np.isfinite(signal).all():
        raise DataError(f"recording {path} holds samples that are not finite")
    if rate != sample_rate:
        signal = soxr.resample(signal, rate, sample_rate, quality="HQ")
    window = np.zeros(num_samples, np.float32)
    window[: len(signal)] = signal[:num_samples]
    return window


def apart(isolated: Isolated, function: Callable[..., Any], path: Path, *arguments: Any) -> Any:
    """`function(*arguments)`, which decodes the file `path`, in a process of its own.

    Raises:
      DecoderLost: the file ends the process, or takes longer than a minute and a second for every 100 kB, twice.
    """
    try:
        size = path.stat().st_size
    except OSError:  # for the function to tell
        size = 0
    try:
        return isolated(function, *arguments, seconds=_TIME_LIMIT + size / _BYTES_PER_SECOND)
    except Lost as error:
        raise DecoderLost(f"recording {path} {error}: {_DEFAULT_REMEDY}") from error
