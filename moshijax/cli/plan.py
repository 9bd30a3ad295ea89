"""`moshijax plan`: the memory and time of a recipe or an artifact, before it runs."""

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
@click.argument("source", metavar="RECIPE|ARTIFACT", type=PathName())
@click.option(
    "--devices", type=click.IntRange(min=1), help="Number of devices. Default: that of the slice, or one card."
)
@click.option("--memory-gb", type=FiniteRange(min=0, min_open=True), help="Memory of a device, in 10^9 bytes.")
@click.option(
    "--topology",
    help="Devices to compile for: cuda:l40s, cuda:h100, cuda:h200 or cuda:a100, or a TPU slice such as v5p-256.",
)
@click.option("--batch", type=click.IntRange(min=1), help="Calls of an artifact's step. Default: its smallest batch.")
@click.option("--device", "kind", help="Kind of device whose peak speed the times assume, such as h100.")
@click.option(
    "--mfu",
    type=FiniteRange(0, 1, min_open=True),
    help="Fraction of the peak that the times of training assume. Default: 0.4.",
)
@recipe_overrides
def command(
    source: str,
    devices: int | None,
    memory_gb: float | None,
    topology: str | None,
    batch: int | None,
    kind: str | None,
    mfu: float | None,
    overrides: tuple[str, ...],
) -> None:
    """Compile the steps of a recipe, or of an artifact, for devices that need not be present.

    Of an artifact that answers questions, all programs are compiled, and the plan says how many callers fit.

    Nothing is allocated and no data is read. With --topology the compiler is that of the devices themselves, and the
    plan says what it made of a step: memory, traffic against its floor, time, kernels, copies and collectives. NVIDIA
    cards need the extra compile-cuda (for training steps: cuda13), TPU slices the extra tpu.

    Without it, the steps of a recipe are compiled for the accelerators of this machine if it has enough of them, and
    otherwise for as many CPU devices: parameters and moments are exact there, but bfloat16 activations are counted as
    the CPU holds them, larger than on an accelerator. Exits with 1 if a step needs more memory than --memory-gb, or
    than a device of the topology has.

    \b
    Examples:
      moshijax plan quickstart/moshi.gin --devices 8 --memory-gb 80 --device h100 --gin.mesh.fsdp=8
      moshijax plan artifact --topology cuda:l40s --batch 16
    """
    from moshijax.runtime.manifest import MANIFEST

    if (Path(source) / MANIFEST).is_file():
        unused = {"--devices": devices, "--memory-gb": memory_gb, "--device": kind, "--mfu": mfu}
        named = [name for name, value in unused.items() if value is not None] + list(overrides)
        if named or topology is None:
            wrong = f"{named[0]} is for recipes" if named else "no topology is given"
            raise ConfigError(f"{source} is an artifact and {wrong}; use --topology, such as cuda:l40s, and --batch")
        from moshijax.export import planning as serving

        plan = serving.plan(source, topology, batch)
        for line in plan.lines:
            click.echo(line)
        if plan.verdict is not None:
            raise MoshijaxError(plan.verdict)
        return
    if batch is not None:
        if not source.endswith(".gin") and not Path(source).exists():
            raise ConfigError(f"there is no artifact at {source}: check the path")
        raise ConfigError(f"--batch is for artifacts, and {source} is none; set the batch size of a recipe in it")
    _plan_recipe(source, devices, memory_gb, topology, kind, 0.4 if mfu is None else mfu, overrides)


def _plan_recipe(
    recipe: str,
    devices: int | None,
    memory_gb: float | None,
    topology: str | None,
    kind: str | None,
    mfu: float,
    overrides: tuple[str, ...],
) -> None:
    bindings = overrides_of(overrides)
    from moshijax import config
    from moshijax.compiled import targets
    from moshijax.train.plan import planning

    experiment = config.load(recipe, bindings)
    if topology is not None:
        devices = targets.count_devices(topology, devices)
    if devices is None:
        raise ConfigError("no number of devices given; use --devices N, or --topology, such as cuda:h100")
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
