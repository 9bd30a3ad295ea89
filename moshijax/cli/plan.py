"""`moshijax plan`: the memory and time of a recipe, before it runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click

from moshijax.cli.common import FiniteRange, PathName, overrides_of, recipe_overrides
from moshijax.errors import ConfigError, MoshijaxError

RECIPE_VARIABLE = "MOSHIJAX_PLAN_RECIPE"


@click.command("plan", context_settings={"ignore_unknown_options": True})
@click.argument("recipe", type=PathName())
@click.option("--devices", type=click.IntRange(min=1), help="Number of devices. Default: that of the topology.")
@click.option("--memory-gb", type=FiniteRange(min=0, min_open=True), help="Memory of a device, in 10^9 bytes.")
@click.option("--topology", help="A TPU slice to compile for, such as v5p-256 or v6e-64; needs libtpu.")
@click.option("--device", "kind", help="Kind of device whose peak speed the times assume, such as h100.")
@click.option(
    "--mfu",
    type=FiniteRange(0, 1, min_open=True),
    default=0.4,
    show_default=True,
    help="Fraction of the peak that the times assume.",
)
@recipe_overrides
def command(
    recipe: str,
    devices: int | None,
    memory_gb: float | None,
    topology: str | None,
    kind: str | None,
    mfu: float,
    overrides: tuple[str, ...],
) -> None:
    """Compile the steps of RECIPE for devices that need not be present, and print their memory and time.

    Nothing is allocated and no data is read. The steps are compiled for the accelerators of this machine if it has
    enough of them, for a described TPU slice with --topology, and otherwise for as many CPU devices. On CPU devices the
    parameters and moments are exact, but bfloat16 activations are counted as the CPU holds them, larger than on an
    accelerator. Exits with 1 if a step needs more than --memory-gb.

    \b
    Example:
      moshijax plan quickstart/moshi.gin --devices 8 --memory-gb 80 --device h100 --gin.mesh.fsdp=8
    """
    bindings = overrides_of(overrides)
    from moshijax import config
    from moshijax.train.plan import planning

    experiment = config.load(recipe, bindings)
    if topology is not None:
        devices = planning.topology_devices(topology, devices)
    if devices is None:
        raise ConfigError("no number of devices given; use --devices N, or --topology with a TPU slice")
    experiment.mesh.shape(devices)  # refuses what does not multiply
    request = planning.Request(Path(recipe).name, devices, memory_gb, topology, kind, mfu)
    # In a separate process: the number of CPU devices is fixed when jax starts.
    done = subprocess.run(
        [sys.executable, "-m", "moshijax.cli.plan", request.to_text()],
        env={**os.environ, RECIPE_VARIABLE: config.dump(experiment)},
        capture_output=True,
        text=True,
    )
    click.echo(done.stdout, nl=False)
    if done.returncode:
        message = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "planning failed"
        error = ConfigError if done.returncode == ConfigError.exit_code else MoshijaxError
        raise error(message.removeprefix("error: "))


def child(text: str) -> int:
    """Run the process that plans; the recipe is in the environment."""
    import tempfile

    from moshijax import config
    from moshijax.train.plan import planning

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.gin"
        path.write_text(os.environ.pop(RECIPE_VARIABLE), encoding="utf-8")
        experiment = config.load(path)
    try:
        plan = planning.make(experiment, planning.Request.from_text(text))
    except MoshijaxError as error:
        click.echo(f"error: {' '.join(str(error).split())}", err=True)
        return error.exit_code
    for line in plan.lines:
        click.echo(line)
    if plan.verdict is not None:
        click.echo(f"error: {plan.verdict}", err=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(child(sys.argv[1]))
