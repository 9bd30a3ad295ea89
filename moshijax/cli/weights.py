"""`moshijax weights`: published models in and out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from moshijax.errors import ConfigError


@click.group()
def command() -> None:
    """Published models in and out, bit for bit.

    \b
    Example:
      moshijax weights import moshiko models/moshiko
      moshijax weights export runs/first/lm mine --format kyutai
    """


@contextlib.contextmanager
def _shown() -> Iterator[Callable[[str], None]]:
    """Names as they are written, where somebody looks."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading", total=None)
        yield lambda name: bar.update(task, description=name)


def _megabytes(files: list[Path]) -> str:
    return f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB"


@command.command("import")
@click.argument("source", type=click.Path())
@click.argument("directory", type=click.Path())
def import_(source: str, directory: str) -> None:
    """Import the published model SOURCE into DIRECTORY, which every command takes in the place of a run.

    SOURCE is a safetensors file, the index of several, or a directory with its config.json. The codec and the tokenizer
    that lie beside a language model come along. Nothing is rounded: `moshijax weights export` gives the same tensors.

    \b
    Example:
      moshijax weights import moshiko models/moshiko
      moshijax export models/moshiko artifact
    """
    from moshijax.weights.transfer import import_weights

    with _shown() as progress:
        made = import_weights(source, directory, progress)
    files = [file for file in Path(directory).rglob("*") if file.is_file()]
    parts = {"lm": "a language model", "codec": "a codec"}[made.kind]
    parts += ", its codec" * (made.codec is not None) + ", its tokenizer" * (made.tokenizer is not None)
    click.echo(f"wrote {directory}: {parts}; {_megabytes(files)}")


@command.command()
@click.argument("source", type=click.Path())
@click.argument("directory", type=click.Path())
@click.option(
    "--format",
    "form",
    type=click.Choice(["kyutai", "kyutai-fused", "huggingface", "mlx"]),
    required=True,
    help="Names: of the PyTorch package in memory, of its released files, of Transformers, or of the MLX package.",
)
@click.option("--codec", type=click.Path(), help="The codec to put beside a language model that does not lead to it.")
@click.option("--max-file-gb", type=click.FloatRange(min=0, min_open=True), help="Split into files of this size.")
def export(source: str, directory: str, form: str, codec: str | None, max_file_gb: float | None) -> None:
    """Write SOURCE, a run or imported or published weights, into the new DIRECTORY under published names.

    \b
    Example:
      moshijax weights export runs/first/lm mine --format kyutai
    """
    from dataclasses import replace

    from moshijax.weights.source import open_source
    from moshijax.weights.transfer import export_weights

    found = open_source(source)
    if codec is not None:
        if found.kind != "lm":
            raise ConfigError(f"{source} is a codec; leave --codec out")
        found = replace(found, codec=open_source(codec, "codec"))
    with _shown() as progress:
        limit = None if max_file_gb is None else int(max_file_gb * 1e9)
        files = export_weights(found, directory, form, limit, progress)
    click.echo(f"wrote {directory}: {', '.join(file.name for file in files)}; {_megabytes(files)}")
