"""`moshijax data spoken`: written instructions to a script of spoken dialogues."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from moshijax import files
from moshijax.cli.common import SEED, FiniteRange, PathName
from moshijax.errors import ConfigError

if TYPE_CHECKING:
    from moshijax.data.instructions import SpokenReport


@click.command()
@click.argument("instructions", type=PathName(path_type=Path))
@click.argument("out", type=PathName(path_type=Path))
@click.option(
    "--question-words", type=click.IntRange(1), default=40, show_default=True, help="Most words of a question."
)
@click.option("--answer-words", type=click.IntRange(1), default=60, show_default=True, help="Most words of an answer.")
@click.option("--fillers", type=FiniteRange(0, 1), default=0.2, show_default=True, help="Share of questions with one.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed for the fillers.")
def command(instructions: Path, out: Path, question_words: int, answer_words: int, fillers: float, seed: int) -> None:
    """Turn INSTRUCTIONS into OUT.txt: a script of spoken dialogues for `data synthesize`.

    INSTRUCTIONS is a JSON list or JSON lines, as of Alpaca, ShareGPT or UltraChat. Numbers, dates, money, units,
    symbols and acronyms are written as they are said, markup goes, and answers are shortened to whole sentences.
    Entries with code, addresses, tables or formulas are left out. Needs the extra `spoken`. `data synthesize` takes
    INSTRUCTIONS too, if no option is needed.

    \b
    Example:
      moshijax data spoken alpaca_data.json alpaca.txt --answer-words 40
    """
    from moshijax.data.instructions import SpokenRules, read, write_script

    files.check_outputs([out], (instructions,))
    if out.suffix != ".txt":
        raise ConfigError(f"{out} is to hold a script, which `data synthesize` knows by .txt: name it {out.stem}.txt")
    found, report = read(instructions, SpokenRules(question_words, answer_words, fillers, seed))
    write_script(found, out)
    click.echo(f"wrote {out}: {len(found)} dialogues of {report.entries} entries")
    tell(report)


def tell(report: SpokenReport) -> None:
    """Print what instructions lost on their way to speech."""
    for name, count in sorted(report.rejected.items()):
        click.echo(f"  rejected {name}: {count} entries")
    if report.shortened:
        click.echo(f"  shortened: {report.shortened} answers, by {report.sentences} sentences")
    if report.turns:
        click.echo(f"  left out: {report.turns} later turns of conversations")
    for name, count in sorted(report.removed.items()):
        click.echo(f"  removed {name}: {count}")
