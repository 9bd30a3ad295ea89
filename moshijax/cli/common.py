"""What several commands share: the progress bar, overrides of a recipe, the log, and a check of folders."""

from __future__ import annotations

import logging
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import click

from moshijax.annotations import shown
from moshijax.errors import ConfigError

GIN = "--gin."
#: What every random generator takes.
SEED = click.IntRange(0, 2**32 - 1)


class PathName(click.Path):
    """A path that the system can look up, whether or not something is there."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path; bad usage if it holds NUL, or a name that is too long."""
        if "\0" in str(value) or any(len(os.fsencode(name)) > 255 for name in Path(value).parts):
            self.fail(f"{shown(str(value))} cannot be a path: names are of at most 255 bytes without NUL.", param, ctx)
        return super().convert(value, param, ctx)


class FiniteRange(click.FloatRange):
    """A range of numbers that holds neither NaN nor infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number; bad usage if it is none, not finite or outside the range."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number

    def _describe_range(self) -> str:
        """Return the bounds for the help text; click has no words for a range without them."""
        return "finite" if self.min is None and self.max is None else super()._describe_range()


class ProgressBar:
    """A progress bar on standard error, shown while entered; silent where standard error is not a terminal.

    It disappears at the end, so that the lines a command prints are what remains.

    Args:
      title: what is being done.
      total: number of steps, None while unknown.
      shown: false silences the bar, for all but the first process of a run.
    """

    def __init__(self, title: str, total: float | None = None, shown: bool = True) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"), TimeElapsedColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        self.shown = shown and console.is_terminal
        self._bar = Progress(*columns, console=console, transient=True, disable=not self.shown)
        self._task = self._bar.add_task(title, total=total, count="", note="")

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def __call__(self, done: float, total: float | None = None, note: str = "") -> None:
        """Show that `done` of `total` steps are done; a total given before stays if it is None here."""
        whole = self._bar.tasks[self._task].total if total is None else total
        count = f"{done:g}" if whole is None else f"{done:g}/{whole:g}"
        self._bar.update(self._task, completed=done, total=whole, count=count, note=note)

    def retitle(self, title: str) -> None:
        """Name the part that is being worked on."""
        self._bar.update(self._task, description=title)


def overrides_of(arguments: tuple[str, ...]) -> list[str]:
    """Return `--gin.path=VALUE` and `--gin.path VALUE` as `path=VALUE`.

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


def recipe_overrides(function: Any) -> Any:
    """Add the argument `overrides` to a command that takes a recipe; `overrides_of` reads it."""
    metavar = "[--gin.path.to.field=VALUE ...]"
    return click.argument("overrides", nargs=-1, type=click.UNPROCESSED, metavar=metavar)(function)


def workers_option(function: Any) -> Any:
    """Add the argument `workers`, a number of processes, to a command."""

    def number(_: click.Context, __: click.Parameter, given: int | None) -> int:
        return given or min(8, os.cpu_count() or 1)

    return click.option(
        "--workers",
        type=click.IntRange(1),
        callback=number,
        help="Number of processes. Default: one per core, at most 8.",
    )(function)


class Echo(logging.Handler):
    """Write log lines to standard output, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        click.echo(record.getMessage())


def show_log() -> None:
    """Show the log of this package without decoration, in the first process of a run alone."""
    import jax

    logger = logging.getLogger("moshijax")
    logger.setLevel(logging.INFO if jax.process_index() == 0 else logging.ERROR)
    logger.propagate = False
    if not any(isinstance(handler, Echo) for handler in logger.handlers):
        logger.addHandler(Echo())


def writable(folder: Path) -> bool:
    """Return whether a file can be created in `folder`, which is created if it does not exist."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
