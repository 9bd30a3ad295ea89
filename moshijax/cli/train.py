"""`moshijax train`: train the model of a recipe, or resume."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from moshijax import files
from moshijax.cli.common import FiniteRange, PathName, ProgressBar, overrides_of, recipe_overrides, show_log
from moshijax.errors import ConfigError

if TYPE_CHECKING:
    from moshijax.train.evaluate import Evaluator
    from moshijax.train.experiment import ExperimentConfig


@click.command("train", context_settings={"ignore_unknown_options": True})
@click.argument("recipe", type=PathName())
@click.option(
    "--run-dir", type=PathName(path_type=Path), required=True, help="Directory of the run; an existing run resumes."
)
@click.option(
    "--allow-change",
    metavar="NAMES",
    default="",
    help="What may differ from the run: fields of the recipe with commas between them, and 'data'. Changes are logged.",
)
@click.option(
    "--coordinator",
    metavar="HOST:PORT",
    envvar="JAX_COORDINATOR_ADDRESS",
    help="Address of process 0; identical on every host. Not needed under Slurm, Open MPI or on Cloud TPU.",
)
@click.option("--processes", type=int, envvar="JAX_NUM_PROCESSES", help="Number of processes of the run.")
@click.option("--process", type=int, envvar="JAX_PROCESS_ID", help="Number of this process, from 0.")
@click.option(
    "--distributed/--alone",
    default=None,
    help="Find the other processes through the cluster, or run alone. Default: look if the cluster names several.",
)
@click.option(
    "--lost-after",
    type=FiniteRange(min=2),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Silence after which another process counts as lost and the run ends. One that exits is noticed at once.",
)
@recipe_overrides
def command(
    recipe: str,
    run_dir: Path,
    allow_change: str,
    coordinator: str | None,
    processes: int | None,
    process: int | None,
    distributed: bool | None,
    lost_after: float,
    overrides: tuple[str, ...],
) -> None:
    """Train the model of RECIPE, or continue the run that is in the run directory.

    RECIPE is a gin file, or the name of a recipe that ships with the package. Stopped by SIGTERM or Ctrl-C it saves at
    the next step and exits with 75; the same command resumes, with the result of a run that never stopped.

    On several hosts the same command runs on each, with a run directory that all of them see; tools/launch starts them.

    \b
    Example:
      moshijax train quickstart/moshi.gin --run-dir runs/moshi --gin.steps=2000
    """
    files.check_folder(run_dir, (recipe,), new=False)
    bindings = overrides_of(overrides)
    import jax

    from moshijax import config
    from moshijax.report.run import PageWriter
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
            reporter=PageWriter(run_dir),
            allow_change=tuple(filter(None, allow_change.split(","))),
            lost_after=lost_after,
        )


def evaluators_of(experiment: ExperimentConfig, run_dir: Path) -> tuple[Evaluator, ...]:
    """Return what is measured besides the losses: how a codec sounds, and how a language model answers calls.

    Raises:
      ConfigError: calls for a model that answers none.
    """
    kind = experiment.task.kind
    if experiment.speaking is not None:
        if kind != "lm":
            raise ConfigError(f"speaking is set, but a model of kind {kind!r} answers no calls; set speaking = None")
        from moshijax.eval.speaking import SpeakingEvaluator

        return (SpeakingEvaluator(experiment, run_dir),)
    if kind == "codec" and experiment.held_out:
        from moshijax.eval.codec_training import CodecEvaluator

        return (CodecEvaluator(experiment, run_dir),)
    return ()
