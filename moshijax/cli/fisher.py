"""`moshijax data fisher`: the Fisher corpus to recordings that the other commands read."""

from __future__ import annotations

from pathlib import Path

import click

from moshijax import files
from moshijax.cli.common import PathName
from moshijax.cli.recordings import max_rejected_option, run_stage


@click.command()
@click.argument("calls", type=PathName(path_type=Path))
@click.argument("transcripts", type=PathName(path_type=Path))
@click.argument("out", type=PathName(path_type=Path))
@max_rejected_option
def command(calls, transcripts, out, max_rejected) -> None:
    """Turn Fisher English (folders CALLS and TRANSCRIPTS of the LDC) into WAV files, utterances and a manifest in OUT.

    Speaker A is on the left channel. `prepare` makes two records of a call, with either speaker as the model's; take
    `sides` out of the manifest where a recipe is to exchange the two by chance, with swap_speakers.
    Run the same command again after an interruption, and `data align` next, for the times of words.

    \b
    Example:
      moshijax data fisher LDC2004S13 LDC2004T19 fisher
      moshijax data align fisher --model models/faster-whisper-medium.en
      moshijax data prepare fisher prepared --codec runs/codec
    """
    from moshijax.data.fisher import MANIFEST, convert

    files.check_folder(out, (calls, transcripts), new=False)
    found = run_stage(
        "converting", None, "finished calls", lambda progress: convert(calls, transcripts, out, max_rejected, progress)
    )
    click.echo(f"{found.seconds / 3600:.2f} hours kept; wrote {out / MANIFEST}")
