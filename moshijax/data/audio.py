"""Reading recordings: what a file is, its samples at a wanted rate, whole or in pieces."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moshijax import files, optional
from moshijax.data.isolation import Isolated, Lost
from moshijax.errors import DataError
from moshijax.recordings import FLOATS, QUIETEST, Extent, check_rate, check_scale, examine, source

_SMALLEST_FILE = 64  # bytes; a WAV header alone takes 44
_BLOCK_SECONDS = 10.0
_LEAD_SECONDS = 0.5
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
    """What a recording is.

    Attributes:
      num_samples: per channel.
      sample_rate: in Hz.
      channels: their number.
      format: container and coding.
      extent: what is there, compared with what the header says.
    """

    num_samples: int
    sample_rate: int
    channels: int
    format: str
    extent: Extent

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return self.num_samples / self.sample_rate


@contextlib.contextmanager
def _opened(path: Path, extent: Extent) -> Iterator[Any]:
    """Give a decoder, a `soundfile.SoundFile`.

    Raises:
      DataError: it refuses the file, now or later; or no speech has its sample rate.
    """
    soundfile = optional.load("soundfile")
    try:
        with contextlib.ExitStack() as stack:
            opened = source(path, extent)
            if not isinstance(opened, str):
                stack.enter_context(opened)
            file = stack.enter_context(soundfile.SoundFile(opened))
            check_rate(path, file.samplerate)
            yield file
    except (soundfile.LibsndfileError, RuntimeError) as error:
        files.check_fetched(path)
        raise unreadable(path, error) from error


def probe(path: Path) -> AudioInfo:
    """Read the header of a recording, and compare it with the file.

    Raises:
      DataError: it cannot be used; the message names the path, what is wrong with it and what to do.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"recording {path} cannot be read: {files.reason(path, error)}") from error
    if size < _SMALLEST_FILE:
        raise DataError(f"recording {path} has {size} bytes: it holds no audio; remove it")
    extent = examine(path)
    with _opened(path, extent) as file:
        return AudioInfo(file.frames, file.samplerate, file.channels, f"{file.format} {file.subtype}", extent)


def unreadable(path: Path, error: Exception) -> DataError:
    """Return the error for a recording that its decoder refused."""
    reason = str(error).split(": ", 1)[-1].strip().rstrip(".")
    remedy = _REMEDY.get(path.suffix.lower(), _DEFAULT_REMEDY)
    return DataError(f"recording {path} is not readable audio ({reason}): {remedy}")


def channel_map(info: AudioInfo, path: Path, channels: tuple[int, int] | None) -> tuple[int, int]:
    """Return the numbers of the model's and the user's channel.

    Args:
      info: header of the recording.
      path: of the recording, for messages.
      channels: (model, user); None: left and right of two.

    Raises:
      DataError: a mono file, more than two channels without a map, or a map that does not fit.
    """
    if channels is not None:
        if max(channels) >= info.channels or min(channels) < 0 or channels[0] == channels[1]:
            raise DataError(
                f"recording {path} has {info.channels} channels: --channels {channels[0]},{channels[1]} does not fit"
            )
        return channels
    if info.channels == 1:
        raise DataError(
            f"recording {path} is mono: record two channels, left the model's speaker, right the user's; or make "
            "streams of one, by `prepare --streams diarized` or `mixed`, or two channels by `data separate`"
        )
    if info.channels > 2:
        raise DataError(f"recording {path} has {info.channels} channels: name two with --channels MODEL,USER")
    return (0, 1)


def blocks(
    path: Path,
    sample_rate: int,
    channels: tuple[int, ...] = (0, 1),
    block_seconds: float = _BLOCK_SECONDS,
    *,
    extent: Extent | None = None,
) -> Iterator[np.ndarray]:
    """Read a recording in pieces [n, channels] float32, resampled to `sample_rate`, in bounded memory.

    Args:
      path: of the recording.
      sample_rate: in Hz.
      channels: numbers of the channels to read, in this order.
      block_seconds: length of a piece before resampling.
      extent: of the recording, where it is known.

    Raises:
      DataError: the recording cannot be decoded, ends before its header says so, or is of another scale.
    """
    soxr = optional.load("soxr")
    with _opened(path, examine(path) if extent is None else extent) as file:
        resampler = None
        if file.samplerate != sample_rate:
            resampler = soxr.ResampleStream(file.samplerate, sample_rate, len(channels), dtype="float32", quality="HQ")
        size = max(1, round(block_seconds * file.samplerate))
        expected, found, peak = file.frames, 0, 0.0
        while True:
            block = file.read(size, dtype="float32", always_2d=True)[:, list(channels)]
            found += len(block)
            last = len(block) < size
            peak = max(peak, np.abs(block).max(initial=0.0))
            check_scale(path, peak, QUIETEST if last and file.subtype in FLOATS else 0.0)
            if resampler is not None:
                block = resampler.resample_chunk(np.ascontiguousarray(block), last=last)
            if len(block):
                yield block
            if last:
                break
    if found < expected:
        raise DataError(f"recording {path} breaks off after {found} of {expected} samples: copy it again")


def read(path: Path, sample_rate: int, channels: tuple[int, ...] = (0, 1)) -> np.ndarray:
    """Read a whole recording, [N, channels] float32 at `sample_rate`; arguments and errors as in `blocks`."""
    pieces = list(blocks(path, sample_rate, channels, block_seconds=60.0))
    return np.concatenate(pieces) if pieces else np.zeros((0, len(channels)), np.float32)


def read_window(
    path: Path, start: float, num_samples: int, sample_rate: int, channel: int, extent: Extent | None = None
) -> np.ndarray:
    """Read a window of one channel, [N] float32; after the end of the recording it is zero.

    Args:
      path: of the recording.
      start: of the window, in seconds.
      num_samples: N, at `sample_rate`.
      sample_rate: in Hz.
      channel: number of the channel.
      extent: of the recording, where it is known.

    Raises:
      DataError: the window cannot be decoded, ends before the header says so, is not finite, or of another scale.
    """
    soxr = optional.load("soxr")
    with _opened(path, examine(path) if extent is None else extent) as file:
        rate, total = file.samplerate, file.frames
        first = min(round(start * rate), total)
        wanted = min(int(np.ceil(num_samples / sample_rate * rate)) + 1, total - first)
        # A frame of an MP3 may need those before it, and is silence without them.
        lead = min(first, round(_LEAD_SECONDS * rate)) if file.format == "MP3" else 0
        file.seek(first - lead)
        signal = file.read(lead + wanted, dtype="float32", always_2d=True)[lead:, channel]
    if len(signal) < wanted:
        raise DataError(f"recording {path} breaks off after {first + len(signal)} of {total} samples")
    if not np.isfinite(signal).all():
        raise DataError(f"recording {path} holds samples that are not finite")
    check_scale(path, np.abs(signal).max(initial=0.0))
    if rate != sample_rate:
        signal = soxr.resample(signal, rate, sample_rate, quality="HQ")
    window = np.zeros(num_samples, np.float32)
    window[: len(signal)] = signal[:num_samples]
    return window


def apart(isolated: Isolated, function: Callable[..., Any], path: Path, *arguments: Any) -> Any:
    """Call `function(*arguments)`, which decodes the file `path`, in a separate process.

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
