"""`moshijax train`: train the model of a recipe, or resume."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from moshijax.cli.common import ProgressBar, overrides_of, recipe_overrides, show_log

if TYPE_CHECKING:
    from moshijax.train.evaluate import Evaluator
    from moshijax.train.experiment import ExperimentConfig


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
@recipe_overrides
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
    import jax

    from moshijax import config
    from moshijax.report.run import write_run_page
    from moshijax.train.loop import train
    from moshijax.train.run import hosts

    experiment = config.load(recipe, bindings)
    named = coordinator is not None or processes is not None or process is not None
    if distributed or (distributed is None and (named or hosts.in_cluster(os.environ))):
        hosts.join(coordinator, processes, process, lost_after=lost_after)
    show_log()
    with ProgressBar("training", shown=jax.process_index() == 0) as bar:
        train(
            experiment,
            run_dir,
            evaluators=evaluators_of(experiment, run_dir),
            recipe=config.dump(experiment),
            progress=lambda done, steps, values: bar(done, steps),
            report=write_run_page,
            allow_change=allow_change,
            lost_after=lost_after,
        )


def evaluators_of(experiment: ExperimentConfig, run_dir: Path) -> tuple[Evaluator, ...]:
    """What is measured besides the losses: of a codec with held-out data, how it sounds."""
    if experiment.task.kind != "codec" or experiment.eval_data is None:
        return ()
    from moshijax.eval.codec_training import CodecEvaluator

    return (CodecEvaluator(experiment, run_dir),)
