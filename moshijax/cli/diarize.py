"""`moshijax data diarize`: recordings to who speaks when."""

from __future__ import annotations

from pathlib import Path

import click

from moshijax.cli.common import PathName
from moshijax.cli.recordings import max_rejected_option, run_stage


@click.command()
@click.argument("recordings", type=PathName(path_type=Path))
@click.option("--model", required=True, help="Pipeline of pyannote: a folder, or a name in the local cache.")
@click.option("--speakers", type=click.IntRange(1, 100), help="Their number. Default: it is found.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where it runs.")
@click.option(
    "--voice-activity",
    type=PathName(path_type=Path),
    help="ONNX file of silero. Default: that of a package.",
)
@max_rejected_option
def command(recordings, model, speakers, device, voice_activity, max_rejected) -> None:
    """Write who speaks when in RECORDINGS, a folder or a manifest, into an RTTM file beside each.

    `prepare --streams diarized` reads them. Run the same command again after an interruption; RTTM files that are there
    are kept, unless this command made them with other settings or of another recording. Nothing is downloaded.

    \b
    Example:
      moshijax data diarize podcasts --model models/speaker-diarization-community-1 --device cuda
    """
    from moshijax.data.diarize import REPORT, diarize
    from moshijax.data.diarizer import Pyannote
    from moshijax.data.manifest import read_recordings
    from moshijax.data.voice_activity import SileroVad

    content = read_recordings(recordings)
    ear, diarizer = SileroVad(voice_activity), Pyannote(model, device, speakers)
    found = run_stage(
        "diarizing",
        len(content.items),
        "finished files",
        lambda progress: diarize(content, diarizer, ear, max_rejected, progress),
    )
    click.echo(f"{found.seconds / 3600:.2f} hours kept; wrote {content.path.parent / REPORT}")
