"""`moshijax data align`: recordings and known texts to word times."""

from __future__ import annotations

from pathlib import Path

import click

from moshijax.cli.common import PathName
from moshijax.cli.transcribe import words_options, write_words


@click.command()
@click.argument("recordings", type=PathName(path_type=Path))
@words_options
def command(recordings, model, language, device, channels, max_rejected) -> None:
    """Find when the words of known texts are said in RECORDINGS, a folder or a manifest; write a sidecar beside each.

    The text of calls/one.wav is calls/one.stm (utterances of both channels), or subtitles (one.0.srt, one.1.vtt) or
    plain text (one.0.txt) for every channel; of one channel one.srt, one.vtt or one.txt. Every word gets a score.
    Run the same command again after an interruption.

    \b
    Example:
      moshijax data align audiobooks --model models/faster-whisper-large-v3
    """
    from moshijax.data.aligned import REPORT, Aligned
    from moshijax.data.recognizer import Whisper

    write_words(
        "aligning", recordings, lambda: Aligned(Whisper(model, language, device)), channels, max_rejected, REPORT
    )
