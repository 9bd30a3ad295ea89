"""`moshijax train`: train the model of a recipe, or resume."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from moshijax.errors import ConfigError

if TYPE_CHECKING:
    from moshijax.train.evaluate import Evaluator
    from moshijax.train.experiment import ExperimentConfig

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
    """Show the log of this package, without decoration; of the first process of a run alone."""
    import jax

    logger = logging.getLogger("moshijax")
    logger.setLevel(logging.INFO if jax.process_index() == 0 else logging.ERROR)
    logger.propagate = False
    if not any(isinstance(handler, Echo) for handler in logger.handlers):
        logger.addHandler(Echo())


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[int, int, Mapping[str, float]], None]]:
    """A bar on the terminal for `train(progress=...)`; nothing where the output is no terminal, or in any process but
    the first of a run."""
    import jax
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
    with Progress(*columns, console=console, disable=not console.is_terminal or jax.process_index() > 0) as bar:
        task = bar.add_task("training", total=None)
        yield lambda done, steps, values: bar.update(task, completed=done, total=steps)


@click.command("train", context_settings={"ignore_unknown_options": True})
@click.argument("recipe")
@click.option(
    "--run-dir", type=click.Path(path_type=Path), required=True, help="Where the run lives; resumed if it is there."
)
@click.option(
    "--allow-change",
    is_flag=True,
    help="Go on although the recipe or the data is not that of the run; what changed is logged.",
)
@click.option(
    "--coordinator",
    metavar="HOST:PORT",
    envvar="JAX_COORDINATOR_ADDRESS",
    help="Of the first of several processes, the same for all. Not needed under Slurm, Open MPI, on TPU.",
)
@click.option("--processes", type=int, envvar="JAX_NUM_PROCESSES", help="How many processes the run has.")
@click.option("--process", type=int, envvar="JAX_PROCESS_ID", help="Which of them this one is, from 0.")
@click.option(
    "--distributed/--alone",
    default=None,
    help="Ask the cluster for the other processes of the run, or do not. Default: ask if it names several.",
)
@click.option(
    "--lost-after",
    type=click.FloatRange(min=2),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="After so long a silence another process counts as lost, and the run ends. One that ends is noticed at once.",
)
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED, metavar="[--gin.path.to.field=VALUE ...]")
def command(
    recipe: str,
    run_dir: Path,
    allow_change: bool,
    coordinator: str | None,
    processes: int | None,
    process: int | None,
    distributed: bool | None,
    lost_after: float,
    overrides: tuple[str, ...],
) -> None:
    """Train the model of RECIPE, or continue the run that is in the run directory.

    RECIPE is a gin file, or the name of a recipe that ships with the package. Stopped by SIGTERM or Ctrl-C it saves at
    the next step and exits with 75; the same command continues, and the result is that of a run that never stopped.

    On several hosts the same command runs on each, with a run directory that all of them see; tools/launch starts them.

    \b
    Example:
      moshijax train quickstart/moshi.gin --run-dir runs/moshi --gin.steps=2000
    """
    bindings = overrides_of(overrides)
    from moshijax import config
    from moshijax.report.run import write_run_page
    from moshijax.train.loop import train
    from moshijax.train.run import hosts

    experiment = config.load(recipe, bindings)
    named = coordinator is not None or processes is not None or process is not None
    if distributed or (distributed is None and (named or hosts.in_cluster(os.environ))):
        hosts.join(coordinator, processes, process, lost_after=lost_after)
    show_log()
    with progress_bar() as progress:
        train(
            experiment,
            run_dir,
            evaluators=evaluators_of(experiment, run_dir),
            recipe=config.dump(experiment),
            progress=progress,
            report=write_run_page,
            allow_change=allow_change,
            lost_after=lost_after,
        )


def evaluators_of(experiment: ExperimentConfig, run_dir: Path) -> tuple[Evaluator, ...]:
    """What is measured besides the losses: of a codec with held-out data, how it sounds."""
    if experiment.task.kind != "codec" or experiment.eval_data is None:
        return ()
    from moshijax.eval.codec import CodecEvaluator

    return (CodecEvaluator(experiment, run_dir),)
