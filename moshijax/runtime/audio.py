"""Audio files for `moshijax run`: WAV through the standard library, everything else through soundfile and soxr."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moshijax import files, recordings
from moshijax.errors import ConfigError, DataError, MoshijaxError

if TYPE_CHECKING:
    from jaxtyping import Float


def read(path: str | Path) -> tuple[Float[np.ndarray, "N channels"], int]:
    """Read samples, float32 in [-1, 1], and the sample rate.

    16-bit PCM WAV needs no package, other formats need soundfile.

    Raises:
      ConfigError: no such file.
      DataError: not readable as audio, cut short, empty, or of another scale or an impossible sample rate.
      MoshijaxError: soundfile is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no audio file at {path}; check the path")
    extent = recordings.examine(path)
    samples = _read_wave(path, extent)
    if samples is None:
        samples = _read_soundfile(path, extent)
    audio, rate = samples
    recordings.check_rate(path, rate)
    if not len(audio):
        raise DataError(f"{path} holds no samples; give a recording of at least one sample")
    if not np.isfinite(audio).all():
        raise DataError(f"{path} holds NaN or Inf samples; export it from its source again")
    return audio, rate


def _read_wave(path: Path, extent: recordings.Extent) -> tuple[np.ndarray, int] | None:
    """16-bit PCM WAV, or None if it is anything else."""
    try:
        with wave.open(recordings.source(path, extent), "rb") as file:
            if file.getsampwidth() != 2:
                return None
            data = file.readframes(file.getnframes())
            channels, rate = file.getnchannels(), file.getframerate()
    except (wave.Error, EOFError):
        return None
    usable = len(data) - len(data) % (2 * channels)
    return np.frombuffer(data[:usable], "<i2").reshape(-1, channels).astype(np.float32) / 32768.0, rate


def _read_soundfile(path: Path, extent: recordings.Extent) -> tuple[np.ndarray, int]:
    try:
        import soundfile
    except ImportError:
        raise MoshijaxError(
            f"{path} is not a 16-bit PCM WAV, other formats need soundfile: pip install soundfile, or convert it"
        ) from None
    try:
        with soundfile.SoundFile(recordings.source(path, extent)) as file:
            audio, rate = file.read(dtype="float32", always_2d=True), file.samplerate
            floats = file.subtype in recordings.FLOATS
    except soundfile.LibsndfileError as error:
        fault = error.error_string if path.stat().st_size else "it is empty"  # libsndfile says: does not exist
        raise DataError(f"{path} cannot be read as audio ({fault}); give WAV, FLAC, OGG or MP3") from None
    recordings.check_scale(path, np.abs(audio).max(initial=0.0), recordings.QUIETEST if floats else 0.0)
    return audio, rate


def read_channel(path: str | Path, sample_rate: int, channel: str | None = None) -> Float[np.ndarray, " N"]:
    """Read one channel of a file at `sample_rate`; `channel` is left or right, needed if the file has two.

    Raises:
      DataError: the file has several channels and none was chosen; otherwise as `read`.
    """
    audio, rate = read(path)
    channels = audio.shape[1]
    if channel is None and channels > 1:
        raise DataError(f"{path} has {channels} channels, one speaker is needed; choose --channel left or right")
    index = {None: 0, "left": 0, "right": 1}[channel]
    if index >= channels:
        raise DataError(f"{path} has {channels} channel(s), no {channel} one; leave --channel out")
    return resample(np.ascontiguousarray(audio[:, index]), rate, sample_rate)


def read_mixed(path: str | Path, sample_rate: int) -> Float[np.ndarray, " N"]:
    """Read the mean of all channels of a file at `sample_rate`, a recording of one voice; errors as in `read`."""
    audio, rate = read(path)
    return resample(np.ascontiguousarray(audio.mean(axis=1)), rate, sample_rate)


def resample(audio: Float[np.ndarray, " N"], rate: int, to_rate: int) -> Float[np.ndarray, " M"]:
    """Resample with soxr.

    Raises:
      MoshijaxError: the rates differ and soxr is missing.
    """
    if rate == to_rate:
        return audio
    try:
        import soxr
    except ImportError:
        raise MoshijaxError(
            f"resampling {rate} Hz to {to_rate} Hz needs soxr: pip install soxr, or give a {to_rate} Hz file"
        ) from None
    return soxr.resample(audio, rate, to_rate, quality="VHQ").astype(np.float32)


def write(path: str | Path, audio: Float[np.ndarray, "N channels"], sample_rate: int) -> None:
    """Write 16-bit PCM WAV; samples outside [-1, 1] are clipped.

    Raises:
      MoshijaxError: the file cannot be written.
    """
    data = (np.clip(audio, -1.0, 1.0) * 32767.0).round().astype("<i2")
    with files.staged(Path(path)) as partial, wave.open(str(partial), "wb") as file:
        file.setnchannels(1 if data.ndim == 1 else data.shape[1])
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(data.tobytes())
