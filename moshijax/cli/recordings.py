"""What commands on recordings share: the options that decide how they are judged, and the counts of a report."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from moshijax.cli.common import FiniteRange, ProgressBar
from moshijax.errors import ConfigError, Stopped

if TYPE_CHECKING:
    from moshijax.data.checks import CheckRules
    from moshijax.data.findings import Report
    from moshijax.data.recording_stage import Progress

SHOWN = 10  # rejected items printed one by one; all of them are in the report file

#: When a stage over recordings gives up.
max_rejected_option = click.option(
    "--max-rejected",
    type=FiniteRange(0, 1),
    default=0.1,
    show_default=True,
    help="Share of rejected recordings above which the job stops.",
)


def _speakers(pairs: tuple[str, ...]) -> dict[str, str]:
    from moshijax.data.transcript import SPEAKERS

    given: dict[str, str] = {}
    for pair in pairs:
        label, equals, speaker = pair.rpartition("=")
        if not equals or speaker not in ("model", "user"):
            raise ConfigError(f"--speaker {pair!r}: write LABEL=model or LABEL=user")
        if given.setdefault(label, speaker) != speaker:
            raise ConfigError(f"--speaker says that {label!r} is {given[label]} and that it is {speaker}: keep one")
    return {**SPEAKERS, **given}


def channels_of(text: str | None) -> tuple[int, int] | None:
    """Return the numbers of the model's and the user's channel that `--channels` names.

    Raises:
      ConfigError: they are not two whole numbers.
    """
    if text is None:
        return None
    try:
        model, user = (int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--channels {text!r}: write two channel numbers from 0, such as 0,1") from None
    return model, user


def rule_options(function):
    """Add the options that decide how recordings are judged to a command."""
    for option in (
        click.option("--strict", is_flag=True, help="Exit with 3 if any item is rejected or flagged."),
        click.option(
            "--speaker",
            "speaker",
            multiple=True,
            metavar="LABEL=WHO",
            help="Who a label stands for: model or user. An empty LABEL stands for words without one.",
        ),
        click.option("--channels", metavar="MODEL,USER", help="Channel numbers, counted from 0; 1,0 swaps them."),
        click.option(
            "--min-score", type=FiniteRange(), default=0.0, help="Alignment score below which a word counts as low."
        ),
    ):
        function = option(function)
    return function


def rules_of(strict: bool, speaker: tuple[str, ...], channels: str | None, min_score: float) -> CheckRules:
    """Return the rules that the options of `rule_options` make."""
    from moshijax.data.checks import CheckRules

    return CheckRules(
        speakers=_speakers(speaker), channels=channels_of(channels), min_score=min_score, strict=strict
    )  # fmt: skip


def run_stage(doing: str, total: int | None, kept: str, stage: Callable[[Progress], Report]) -> Report:
    """Run a stage over recordings under a progress bar with the hours that are done, and print its counts.

    Args:
      doing: title of the bar.
      total: number of recordings, None while unknown.
      kept: what stays after an interruption, as the message says it.
      stage: is given what to call after every item.

    Raises:
      Stopped: the user interrupted it.
    """
    try:
        with ProgressBar(doing, total) as update:
            found = stage(lambda done, items, report: update(done, items, f"{report.seconds / 3600:.2f} h"))
    except KeyboardInterrupt:
        raise Stopped(f"stopped; {kept} are kept: run the same command again to continue") from None
    tell(found)
    return found


def tell(report: Report) -> None:
    """Print the counts of a report on recordings."""
    from moshijax.data.band import NO_SOUND

    click.echo(
        f"{report.usable} of {report.items} items usable: {report.seconds / 60:.1f} minutes, {report.words} words"
    )
    for name, seconds in sorted(report.bands.items()):
        what = name if name == NO_SOUND else f"sound {name}"
        click.echo(f"  {what}: {seconds / 3600:.2f} hours, {seconds / report.seconds:.0%}")
    if len(report.bands.keys() - {NO_SOUND}) > 1:
        click.echo("  bands are mixed: the model will tell speakers by their line; see the band in the provenance")
    tell_findings(report)


def tell_findings(report: Report) -> None:
    """Print every rejection kind, every flag, and the first rejected items."""
    for name, count in sorted(report.flags.items()):
        click.echo(f"  flagged {name}: {count} items, such as {report.flagged[name]}")
    for name, count in sorted(report.kinds.items()):
        click.echo(f"  rejected {name}: {count} items")
    for name, reason in report.rejected[:SHOWN]:
        click.echo(f"  rejected {reason if reason.startswith(name) else f'{name}: {reason}'}")
    more = report.items - report.usable - min(SHOWN, len(report.rejected))
    if more:
        click.echo(f"  ... and {more} more")
