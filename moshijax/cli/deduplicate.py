"""`moshijax data deduplicate`: recordings without those that were heard before."""

from __future__ import annotations

from pathlib import Path

import click

from moshijax import files
from moshijax.cli.common import FiniteRange, PathName, ProgressBar
from moshijax.cli.recordings import tell_findings
from moshijax.errors import Stopped


@click.command()
@click.argument("recordings", type=PathName(path_type=Path))
@click.argument("out", type=PathName(path_type=Path))
@click.option(
    "--share",
    type=FiniteRange(0, 1, min_open=True),
    default=0.5,
    show_default=True,
    help="A recording is left out if this share of it is in earlier ones.",
)
@click.option(
    "--frequent-share",
    type=FiniteRange(0, 1, min_open=True),
    help="A recording is left out, and every copy of it, if this share of it is heard at ten or more other places. "
    "Default: such stretches are only counted.",
)
def command(recordings, out, share, frequent_share) -> None:
    """Write OUT, a manifest of those of RECORDINGS (a manifest or folder) that are no repeats of earlier ones.

    Sound is known by its fingerprint, whatever its level, coding or start, so that copies are found that differ in
    every byte. OUT is in the folder of the recordings; OUT's name with .report.json says which parts are repeated, of
    what and where. Run the same command again after an interruption.

    \b
    Example:
      moshijax data deduplicate podcasts podcasts/unique.jsonl
      moshijax data prepare podcasts/unique.jsonl podcasts-prepared --codec runs/codec --streams mixed
    """
    from moshijax.data.deduplicate import deduplicate
    from moshijax.data.manifest import read_recordings
    from moshijax.data.repeats import RepeatRules

    content = read_recordings(recordings)
    files.check_outputs([out, out.with_suffix(".report.json")], (content.path, *(item.audio for item in content.items)))
    try:
        with ProgressBar("listening", len(content.items)) as update:
            made = deduplicate(
                content, out, RepeatRules(share=share, frequent_share=frequent_share),
                lambda done, total, found: update(done, total, f"{found.seconds / 3600:.2f} h"),
            )  # fmt: skip
    except KeyboardInterrupt:
        raise Stopped("stopped; fingerprints that are complete are kept: run the same command again") from None
    report = made.report
    total = (report.seconds + report.rejected_seconds) / 3600
    click.echo(f"{report.usable} of {report.items} recordings kept: {report.seconds / 3600:.2f} of {total:.2f} hours")
    tell_findings(report)
    click.echo(f"wrote {out}, {out.with_suffix('.report.json').name}")
