"""`moshijax codec`: audio to codes, and back."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np

from moshijax.cli.common import PathName
from moshijax.errors import ConfigError, DataError
from moshijax.files import check_outputs, staged


@click.group()
def command() -> None:
    """Encode audio files to codec codes, and decode them.

    \b
    Example:
      moshijax codec encode speech.wav speech.npz --codec runs/first/codec
      moshijax codec decode speech.npz again.wav --codec runs/first/codec
    """


#: Channels that are encoded or decoded together.
GROUP = 8
#: As many as libsndfile reads.
MAX_CHANNELS = 1024
#: Bytes of samples in a WAV file, whose size has 32 bits.
MAX_WAV = 2**32 - 1024

CODEC_HELP = "Weights: a run of the codec, a published safetensors file, or a folder with one."


@command.command()
@click.argument("audio", type=PathName())
@click.argument("codes", type=PathName())
@click.option("--codec", "weights", required=True, type=PathName(), help=CODEC_HELP)
@click.option("--num-codebooks", type=int, help="Number of codebooks to write. Default: all that the codec uses.")
@click.option("--streaming", is_flag=True, help="Process frame by frame, as in a live call, instead of the whole file.")
def encode(audio: str, codes: str, weights: str, num_codebooks: int | None, streaming: bool) -> None:
    """Encode every channel of AUDIO into the .npz file CODES.

    CODES holds `codes` int32 [channels, codebooks, frames], `samples` (the length before padding) and `sample_rate`.

    \b
    Example:
      moshijax codec encode speech.wav speech.npz --codec runs/first/codec --num-codebooks 8
    """
    from moshijax import codec
    from moshijax.runtime import audio as audio_files

    _check_out(codes, ".npz", (audio, weights))
    samples, rate = audio_files.read(audio)
    config, params = _load(weights)
    if num_codebooks is not None and not 1 <= num_codebooks <= config.num_codebooks:
        raise ConfigError(f"--num-codebooks {num_codebooks} must be 1 to {config.num_codebooks}, what the codec has")
    channels = [
        audio_files.resample(np.ascontiguousarray(samples[:, c]), rate, config.sample_rate)
        for c in range(samples.shape[1])
    ]
    waveform_BN = np.stack(channels)

    def encoded(waveform_BN: np.ndarray) -> np.ndarray:
        if streaming:
            return np.concatenate(list(_encode_frames(config, params, waveform_BN, num_codebooks)), axis=2)
        return np.asarray(codec.encode(config, params, waveform_BN, num_codebooks=num_codebooks))

    codes_BQT = _in_groups(encoded, waveform_BN)
    with staged(Path(codes)) as partial, partial.open("wb") as file:
        np.savez_compressed(
            file,
            codes=codes_BQT.astype(np.int32),
            samples=np.int64(waveform_BN.shape[1]),
            sample_rate=np.int64(config.sample_rate),
        )
    channels, books, frames = codes_BQT.shape
    click.echo(
        f"wrote {codes}: {channels} channel(s), {books} codebooks, {frames} frames of {config.frame_size} samples"
    )


@command.command()
@click.argument("codes", type=PathName())
@click.argument("audio", type=PathName())
@click.option("--codec", "weights", required=True, type=PathName(), help=CODEC_HELP)
@click.option("--streaming", is_flag=True, help="Process frame by frame, as in a live call, instead of the whole file.")
def decode(codes: str, audio: str, weights: str, streaming: bool) -> None:
    """Decode CODES, written by `moshijax codec encode`, into the WAV file AUDIO.

    \b
    Example:
      moshijax codec decode speech.npz again.wav --codec runs/first/codec
    """
    from moshijax import codec
    from moshijax.runtime import audio as audio_files

    _check_out(audio, ".wav", (codes, weights))
    channels, books, frames = _shape_of_codes(Path(codes))
    config, params = _load(weights)
    size = 2 * channels * frames * config.frame_size
    if channels > MAX_CHANNELS or size > MAX_WAV:
        raise DataError(
            f"{codes} holds {channels} channels of {frames} frames, {size / 1e9:.2f} GB of samples: a WAV file takes "
            f"{MAX_CHANNELS} channels and {MAX_WAV / 1e9:.2f} GB; decode it in parts"
        )
    if books > config.num_codebooks:
        raise DataError(
            f"{codes} holds {books} codebooks, this codec has {config.num_codebooks}; give the codec that wrote it"
        )
    codes_BQT, samples = _read_codes(Path(codes))
    if codes_BQT.min() < 0 or codes_BQT.max() >= config.quantizer.bins:
        raise DataError(
            f"{codes} holds ids {codes_BQT.min()} to {codes_BQT.max()}, this codec has 0 to "
            f"{config.quantizer.bins - 1}; give the codec that wrote it"
        )
    if not 0 <= samples <= frames * config.frame_size:
        raise DataError(f"{codes} says {samples} samples for {frames} frames; encode the audio again")

    def decoded(codes_BQT: np.ndarray) -> np.ndarray:
        if streaming:
            return np.concatenate(list(_decode_frames(config, params, codes_BQT)), axis=1)[:, :samples]
        return np.asarray(codec.decode(config, params, codes_BQT))[:, :samples]

    audio_files.write(audio, _in_groups(decoded, codes_BQT.astype(np.int32)).T, config.sample_rate)
    click.echo(f"wrote {audio}: {samples / config.sample_rate:.2f} s, {channels} channel(s)")


def _in_groups(function: Callable[[np.ndarray], np.ndarray], array: np.ndarray) -> np.ndarray:
    """Return what a function makes of a few channels at a time, so that memory does not grow with their number."""
    return np.concatenate([function(array[start : start + GROUP]) for start in range(0, len(array), GROUP)])


def _encode_frames(config, params, waveform_BN: np.ndarray, num_codebooks: int | None) -> Iterator:
    import jax

    from moshijax import codec

    params = codec.inference_layout(config, params)
    state = codec.init_encoder_state(config, len(waveform_BN))
    step = jax.jit(lambda p, s, x: codec.encode_step(config, p, s, x, num_codebooks=num_codebooks), donate_argnums=1)
    size = config.frame_size
    waveform_BN = np.pad(waveform_BN, ((0, 0), (0, -waveform_BN.shape[1] % size)))
    for start in range(0, waveform_BN.shape[1], size):
        state, codes_BQT = step(params, state, waveform_BN[:, start : start + size])
        yield codes_BQT


def _decode_frames(config, params, codes_BQT: np.ndarray) -> Iterator:
    import jax

    from moshijax import codec

    params = codec.inference_layout(config, params)
    state = codec.init_decoder_state(config, len(codes_BQT))
    step = jax.jit(lambda p, s, x: codec.decode_step(config, p, s, x), donate_argnums=1)
    for t in range(codes_BQT.shape[2]):
        state, pcm_BN = step(params, state, codes_BQT[:, :, t : t + 1])
        yield pcm_BN


def _load(weights: str):
    from moshijax.weights import load_mimi

    return load_mimi(weights)


def _check_out(path: str, suffix: str, inputs: tuple[str, ...]) -> None:
    if Path(path).suffix != suffix:
        raise ConfigError(f"output {path} must end in {suffix}")
    check_outputs([path], inputs)


def _shape_of_codes(path: Path) -> tuple[int, int, int]:
    """Return channels, codebooks and frames of a file of codes, of which only the header is read."""
    if not path.is_file():
        raise ConfigError(f"no codes file at {path}; check the path")
    try:
        with zipfile.ZipFile(path) as archive, archive.open("codes.npy") as file:
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, _, dtype = read[np.lib.format.read_magic(file)](file)
    except Exception:  # zip, header, missing key: all mean another or a damaged file
        raise _no_codes(path) from None
    if len(shape) != 3 or dtype.kind not in "iu" or not math.prod(shape):
        raise DataError(f"{path}: codes must be integers [channels, codebooks, frames], got {dtype} {shape}")
    return shape


def _read_codes(path: Path) -> tuple[np.ndarray, int]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return file["codes"], int(file["samples"])
    except Exception:
        raise _no_codes(path) from None


def _no_codes(path: Path) -> DataError:
    return DataError(f"{path} was not written by `moshijax codec encode`, or is damaged; encode the audio again")
