"""`moshijax data transcribe`: recordings to word times."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from moshijax.cli.common import FiniteRange, PathName
from moshijax.cli.recordings import channels_of, max_rejected_option, run_stage
from moshijax.errors import ConfigError

if TYPE_CHECKING:
    from moshijax.data.recognizer import Recognizer
    from moshijax.data.word_sources import WordSource


def words_options(function):
    """Add the options of commands that write words beside recordings."""
    for option in (
        max_rejected_option,
        click.option("--channels", metavar="MODEL,USER", help="Channel numbers, counted from 0; 1,0 swaps them."),
        click.option(
            "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where it runs."
        ),
        click.option("--language", default="en", show_default=True, help="Code of the language that is spoken."),
        click.option(
            "--model",
            default="tiny.en",
            show_default=True,
            help="Whisper model of CTranslate2: a folder, tiny.en (extra hear), or a name in the local cache.",
        ),
    ):
        function = option(function)
    return function


@click.command()
@click.argument("recordings", type=PathName(path_type=Path))
@words_options
@click.option(
    "--piece-seconds",
    type=FiniteRange(1, 30),
    default=30.0,
    show_default=True,
    help="Longest piece that is heard at once; channels are cut where they are quiet.",
)
@click.option(
    "--words",
    "word_files",
    type=PathName(path_type=Path),
    help="Folder with the output of whisperX or whisper-timestamped, ID.CHANNEL.json; nothing is heard.",
)
@click.pass_context
def command(ctx, recordings, model, language, device, channels, max_rejected, piece_seconds, word_files) -> None:
    """Write the words of RECORDINGS, a folder or a manifest, into a sidecar file beside each.

    Each channel is heard by itself. MODEL may also be an artifact for recognition. Run the same command again after an
    interruption; transcripts that are there are kept, unless this command made them with other settings or of another
    recording. Nothing is downloaded.

    \b
    Example:
      moshijax data transcribe calls
      moshijax data transcribe calls/manifest.jsonl --model models/faster-whisper-large-v3 --language fr --device cuda
      moshijax data transcribe calls --words whisperx-output
    """
    from moshijax.data.transcribe import REPORT
    from moshijax.data.word_sources import Heard, WordFiles

    if word_files is not None:
        refuse_given(ctx, "--words", "model", "language", "device", "piece_seconds")

    def source():
        if word_files is not None:
            return WordFiles(word_files)
        return Heard(recognizer_of(model, language, device), piece_seconds)

    write_words("transcribing", recordings, source, channels, max_rejected, REPORT)


def write_words(
    doing: str,
    recordings: Path,
    source: Callable[[], WordSource],
    channels: str | None,
    max_rejected: float,
    report_name: str,
) -> None:
    """Write the words of recordings into sidecars, show how far it is, and print what was found.

    Args:
      doing: what the command does, for the progress.
      recordings: folder or manifest.
      source: makes what gives the words, once the rest is known to be right.
      channels: as the option has it.
      max_rejected: likewise.
      report_name: of the report's file.
    """
    from moshijax.data.manifest import read_recordings
    from moshijax.data.transcribe import Transcription
    from moshijax.data.transcribe import transcribe as run

    content = read_recordings(recordings)
    settings = Transcription(channels_of(channels), max_rejected)
    words = source()
    found = run_stage(
        doing,
        len(content.items),
        "finished transcripts",
        lambda progress: run(content, words, settings, progress, report_name),
    )
    hours = (found.seconds + found.rejected_seconds) / 3600, found.seconds / 3600
    click.echo(f"{hours[0]:.2f} hours in, {hours[1]:.2f} kept; wrote {content.path.parent / report_name}")


def recognizer_of(model: str, language: str, device: str) -> Recognizer:
    """Return the recogniser that `--model` names, by what is in its folder."""
    from moshijax.data import recognizer
    from moshijax.runtime.manifest import MANIFEST

    if (Path(model) / MANIFEST).is_file():
        from moshijax.data.artifact_recognizer import ArtifactRecognizer

        return ArtifactRecognizer(Path(model), device)
    return recognizer.Whisper(model, language, device)


def refuse_given(ctx: click.Context, option: str, *others: str) -> None:
    """Refuse options that mean nothing beside another one.

    Raises:
      ConfigError: one of them was given; the message names both.
    """
    for name in others:
        if ctx.get_parameter_source(name) == ParameterSource.COMMANDLINE:
            raise ConfigError(f"--{name.replace('_', '-')} means nothing with {option}: omit one of them")
