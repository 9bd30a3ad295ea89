"""`moshijax train`: train the model of a recipe, or resume."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import click

from moshijax.errors import ConfigError

GIN = "--gin."


def overrides_of(arguments: tuple[str, ...]) -> list[str]:
    """`--gin.path=VALUE` and `--gin.path VALUE` as `path=VALUE`.

    Raises:
      ConfigError: another option, or one without a value.
    """
    found, rest = [], list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith(GIN):
            raise ConfigError(
                f"unknown argument {argument!r}; fields of the recipe are set by {GIN}path.to.field=VALUE"
            )
        if "=" not in argument:
            if not rest:
                raise ConfigError(f"{argument} has no value; write {argument}=VALUE")
            argument = f"{argument}={rest.pop(0)}"
        found.append(argument.removeprefix(GIN))
    return found


class Echo(logging.Handler):
    """Log lines on standard output, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(record.getMessage())


def show_log() -> None:
    """Show the log of this package, without decoration."""
    logger = logging.getLogger("moshijax")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if not any(isinstance(handler, Echo) for handler in logger.handlers):
        logger.addHandler(Echo())


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[int, int, Mapping[str, float]], None]]:
    """A bar on the terminal for `train(progress=...)`; nothing where the output is no terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("training", total=None)
        yield lambda done, steps, values: bar.update(task, completed=done, total=steps)


@click.command("train", context_settings={"ignore_unknown_options": True})
@click.argument("recipe")
@click.option(
    "--run-dir", type=click.Path(path_type=Path), required=True, help="Where the run lives; resumed if it is there."
)
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED, metavar="[--gin.path.to.field=VALUE ...]")
def command(recipe: str, run_dir: Path, overrides: tuple[str, ...]) -> None:
    """Train the model of RECIPE, or continue the run that is in the run directory.

    RECIPE is a gin file, or the name of a recipe that ships with the package. Stopped by SIGTERM or Ctrl-C it saves at
    the next step and exits with 75; the same command continues, and the result is that of a run that never stopped.

    \b
    Example:
      moshijax train quickstart_moshi.gin --run-dir runs/moshi --gin.steps=2000
    """
    bindings = overrides_of(overrides)
    from moshijax import config
    from moshijax.report.run import write_run_page
    from moshijax.train.loop import train

    experiment = config.load(recipe, bindings)
    show_log()
    with progress_bar() as progress:
        train(experiment, run_dir, recipe=config.dump(experiment), progress=progress, report=write_run_page)
