"""`moshijax train`: train the model of a recipe, or resume."""

from __future__ import annotations

import logging
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


def show_log() -> None:
    """Log lines of this package on standard output, without decoration."""
    logger = logging.getLogger("moshijax")
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        handler = logging.StreamHandler(click.get_text_stream("stdout"))
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
    logger.propagate = False


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
      moshijax train tiny_moshi.gin --run-dir runs/tiny --gin.steps=2000
    """
    bindings = overrides_of(overrides)
    from moshijax import config
    from moshijax.train.loop import train

    experiment = config.load(recipe, bindings)
    show_log()
    train(experiment, run_dir, recipe=config.dump(experiment))
