"""`moshijax data separate`: recordings of two people on one channel to a channel for each."""

from __future__ import annotations

from pathlib import Path

import click

from moshijax import files
from moshijax.cli.common import PathName
from moshijax.cli.recordings import max_rejected_option, run_stage


@click.command()
@click.argument("recordings", type=PathName(path_type=Path))
@click.argument("out", type=PathName(path_type=Path))
@click.option("--model", required=True, type=PathName(path_type=Path), help="Folder with a SepFormer of SpeechBrain.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where it runs.")
@max_rejected_option
def command(recordings, out, model, device, max_rejected) -> None:
    """Take the two voices of RECORDINGS, a folder or a manifest, apart: WAV files with two channels in OUT.

    The voice that is on the left is the first of the model's output. Run the same command again after an interruption.
    Nothing is downloaded.

    \b
    Example:
      moshijax data separate podcasts apart --model models/sepformer-whamr16k --device cuda
      moshijax data transcribe apart
    """
    from moshijax.data.manifest import read_recordings
    from moshijax.data.remake import MANIFEST
    from moshijax.data.separate import separate
    from moshijax.data.separator import SepFormer

    files.check_folder(out, (recordings, model), new=False)
    content = read_recordings(recordings)
    separator = SepFormer(model, device)
    found = run_stage(
        "separating", len(content.items), "finished recordings",
        lambda progress: separate(content, separator, out, max_rejected, progress),
    )  # fmt: skip
    click.echo(f"{found.seconds / 3600:.2f} hours kept; wrote {out / MANIFEST}")
