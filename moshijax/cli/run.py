"""`moshijax run`: a recorded call played through an exported artifact."""

from __future__ import annotations

from typing import Any

import click

from moshijax.cli.common import PathName, ProgressBar
from moshijax.runtime.options import OPTIONS, Option, arguments


def _options(command: Any) -> Any:
    """Add the options of an offline call to a command."""
    for option in reversed(OPTIONS):
        command = _click_option(option)(command)
    return command


def _click_option(option: Option) -> Any:
    form: dict[str, Any] = {"help": option.help, "default": option.default, "metavar": option.metavar}
    if option.type is bool:
        form["is_flag"] = True
    else:
        form["type"] = click.Choice(option.choices) if option.choices else option.type
        form["multiple"] = option.repeated
        form["show_default"] = option.default is not None and not option.repeated
    return click.option(f"--{option.name}", option.key, **form)


@click.command()
@click.argument("artifact", type=PathName())
@_options
def command(artifact: str, **values: Any) -> None:
    """Play a recorded user channel through ARTIFACT, frame by frame, as a live call would; or let it speak a text.

    Writes what the model says as audio, and prints its words with their times and how the steps kept up with real
    time. Models of conversation, recognition and translation take --user, those of synthesis --text. The same without
    click and rich: python -m moshijax.runtime ARTIFACT --user IN.wav --out OUT.wav

    \b
    Example:
      moshijax run runs/first/artifact --user question.wav --out reply.wav --text-out reply.json
      moshijax run speech --text "Good morning." --out morning.wav
    """
    from moshijax.runtime import play

    with ProgressBar("playing") as progress:
        result = play.run(artifact, progress=progress, **arguments(values))
    for line in play.report_lines(result):
        click.echo(line)
