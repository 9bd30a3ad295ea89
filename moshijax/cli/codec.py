"""`moshijax codec`: audio to codes, and back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np

from moshijax.errors import ConfigError, DataError
from moshijax.files import staged


@click.group()
def command() -> None:
    """Encode audio files to codec codes, and decode them.

    \b
    Example:
      moshijax codec encode speech.wav speech.npz --codec runs/first/codec
      moshijax codec decode speech.npz again.wav --codec runs/first/codec
    """


CODEC_HELP = "Weights: a run of the codec, a published safetensors file, or a folder with one."


@command.command()
@click.argument("audio", type=click.Path())
@click.argument("codes", type=click.Path())
@click.option("--codec", "weights", required=True, type=click.Path(), help=CODEC_HELP)
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

    _check_out(codes, ".npz")
    samples, rate = audio_files.read(audio)
    config, params = _load(weights)
    if num_codebooks is not None and not 1 <= num_codebooks <= config.num_codebooks:
        raise ConfigError(f"--num-codebooks {num_codebooks} must be 1 to {config.num_codebooks}, what the codec has")
    channels = [
        audio_files.resample(np.ascontiguousarray(samples[:, c]), rate, config.sample_rate)
        for c in range(samples.shape[1])
    ]
    waveform_BN = np.stack(channels)
    if streaming:
        pieces = [np.asarray(piece) for piece in _encode_frames(config, params, waveform_BN, num_codebooks)]
        codes_BQT = np.concatenate(pieces, axis=2)
    else:
        codes_BQT = np.asarray(codec.encode(config, params, waveform_BN, num_codebooks=num_codebooks))
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
@click.argument("codes", type=click.Path())
@click.argument("audio", type=click.Path())
@click.option("--codec", "weights", required=True, type=click.Path(), help=CODEC_HELP)
@click.option("--streaming", is_flag=True, help="Process frame by frame, as in a live call, instead of the whole file.")
def decode(codes: str, audio: str, weights: str, streaming: bool) -> None:
    """Decode CODES, written by `moshijax codec encode`, into the WAV file AUDIO.

    \b
    Example:
      moshijax codec decode speech.npz again.wav --codec runs/first/codec
    """
    from moshijax import codec
    from moshijax.runtime import audio as audio_files

    _check_out(audio, ".wav")
    codes_BQT, samples = _read_codes(Path(codes))
    config, params = _load(weights)
    books, card = config.num_codebooks, config.quantizer.bins
    if codes_BQT.shape[1] > books or codes_BQT.min() < 0 or codes_BQT.max() >= card:
        raise DataError(
            f"{codes} holds {codes_BQT.shape[1]} codebooks, ids {codes_BQT.min()} to {codes_BQT.max()}; this codec has "
            f"{books} with ids 0 to {card - 1}; give the codec that wrote the file"
        )
    if streaming:
        waveform_BN = np.concatenate([np.asarray(p) for p in _decode_frames(config, params, codes_BQT)], axis=1)
    else:
        waveform_BN = np.asarray(codec.decode(config, params, codes_BQT))
    audio_files.write(audio, waveform_BN[:, :samples].T, config.sample_rate)
    click.echo(f"wrote {audio}: {samples / config.sample_rate:.2f} s, {len(codes_BQT)} channel(s)")


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


def _check_out(path: str, suffix: str) -> None:
    out = Path(path)
    if out.suffix != suffix:
        raise ConfigError(f"output {path} must end in {suffix}")
    if not out.resolve().parent.is_dir():
        raise ConfigError(f"cannot write {path}: its folder does not exist; create it first")


def _read_codes(path: Path) -> tuple[np.ndarray, int]:
    if not path.is_file():
        raise ConfigError(f"no codes file at {path}; check the path")
    try:
        with np.load(path, allow_pickle=False) as file:
            codes_BQT, samples = file["codes"], int(file["samples"])
    except Exception:  # zip, header, missing key: all mean another or a damaged file
        raise DataError(
            f"{path} was not written by `moshijax codec encode`, or is damaged; encode the audio again"
        ) from None
    if codes_BQT.ndim != 3 or codes_BQT.dtype.kind not in "iu" or not codes_BQT.size:
        raise DataError(
            f"{path}: codes must be integers [channels, codebooks, frames], got {codes_BQT.dtype} {codes_BQT.shape}"
        )
    return codes_BQT.astype(np.int32), samples
