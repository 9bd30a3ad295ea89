"""`moshijax weights`: published models in and out."""

from __future__ import annotations

from pathlib import Path

import click

from moshijax import files
from moshijax.cli.common import SEED, FiniteRange, PathName, ProgressBar
from moshijax.errors import ConfigError


@click.group()
def command() -> None:
    """Import and export published models, bit for bit.

    \b
    Example:
      moshijax weights import moshiko models/moshiko
      moshijax weights export runs/first/lm mine --format kyutai
    """


def _megabytes(files: list[Path]) -> str:
    return f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB"


@command.command("import")
@click.argument("source", type=PathName())
@click.argument("directory", type=PathName())
@click.option("--adapter", type=PathName(), help="A LoRA adapter file for the model; its config.json lies beside it.")
def import_(source: str, directory: str, adapter: str | None) -> None:
    """Import the published model SOURCE into DIRECTORY, which every command accepts in place of a run.

    SOURCE is a safetensors file, the index of several, or a directory with its config.json. The codec and the tokenizer
    that lie beside a language model are imported too. Nothing is rounded: `moshijax weights export` gives the same
    tensors.

    \b
    Example:
      moshijax weights import moshiko models/moshiko
      moshijax export models/moshiko artifact
    """
    from moshijax.weights.transfer import import_weights

    files.check_folder(directory, (source, adapter))
    with ProgressBar("reading") as bar:
        made = import_weights(source, directory, bar.retitle, adapter)
    written = [file for file in Path(directory).rglob("*") if file.is_file()]
    parts = made.family.title
    parts += ", an adapter" * (made.adapter is not None)
    parts += ", its codec" * (made.codec is not None) + ", its tokenizer" * (made.tokenizer is not None)
    click.echo(f"wrote {directory}: {parts}; {_megabytes(written)}")


@command.command()
@click.argument("source", type=PathName())
@click.argument("directory", type=PathName())
@click.option(
    "--format",
    "form",
    type=click.Choice(["kyutai", "kyutai-fused", "huggingface", "mlx"]),
    required=True,
    help="Names: of the PyTorch package in memory, of its released files, of Transformers, or of the MLX package.",
)
@click.option("--codec", type=PathName(), help="The codec to put beside a language model that does not lead to it.")
@click.option("--max-file-gb", type=FiniteRange(1e-6, 1e6), help="Split into files of this size.")
@click.option("--merge-adapter", is_flag=True, help="Add the LoRA adapter to the weights.")
@click.option("--release", is_flag=True, help="Omit the depth steps of the user's rows, which a call never runs.")
def export(
    source: str,
    directory: str,
    form: str,
    codec: str | None,
    max_file_gb: float | None,
    merge_adapter: bool,
    release: bool,
) -> None:
    """Write SOURCE, a run or imported or published weights, into the new DIRECTORY under published names.

    \b
    Example:
      moshijax weights export runs/first/lm mine --format kyutai
      moshijax weights export runs/instruct moshi --format kyutai-fused --codec models/moshiko --release
    """
    from dataclasses import replace

    from moshijax.export import source as sources
    from moshijax.weights.families.codec import CODEC
    from moshijax.weights.opening import open_model
    from moshijax.weights.transfer import export_weights

    files.check_folder(directory, (source, codec))
    model = open_model(source)
    if codec is not None and not model.family.comes_with_codec:
        raise ConfigError(f"{source} is {model.family.title}, which needs no other codec; omit --codec")
    if model.family.comes_with_codec and (codec is not None or model.codec is None):
        path = codec or sources.codec_of(source)
        model = replace(model, codec=None if path is None else open_model(path, CODEC.kind))
    if release:
        model = model.family.released(model)
    with ProgressBar("reading") as bar:
        limit = None if max_file_gb is None else int(max_file_gb * 1e9)
        written = export_weights(model, directory, form, limit, bar.retitle, merge_adapter)
    click.echo(f"wrote {directory}: {', '.join(file.name for file in written)}; {_megabytes(written)}")


@command.command()
@click.argument("path", type=PathName())
@click.option("--reference", type=PathName(), help="The record. Default: reference.json, reference.npz beside PATH.")
def verify(path: str, reference: str | None) -> None:
    """Compare the model at PATH with recorded numbers of the PyTorch package.

    Prints the largest error of every part, then "equal", "equal within ..." or what differs first (exit code 1).

    \b
    Example:
      moshijax weights verify models/moshiko --reference moshiko.json
    """
    from moshijax.errors import MoshijaxError
    from moshijax.weights import verify as verifying

    parts = verifying.verify(path, reference)
    for part in parts:
        shown = f"{part.size - int(part.error)} of {part.size} equal" if part.ids else f"{part.error:.1e}"
        click.echo(f"{part.name:22} {shown}")
    line = verifying.verdict(parts)
    if line.startswith("differs"):
        raise MoshijaxError(f"{path} {line}; fetch or convert the file again")
    click.echo(f"{path}: {line}")


@command.command()
@click.argument("source", type=PathName())
@click.argument("directory", type=PathName())
@click.option("--tokenizer", required=True, type=PathName(), help="The new tokenizer.model or tokenizer.json.")
@click.option("--old-tokenizer", type=PathName(), help="The current one, if SOURCE does not have it.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the rows for new pieces.")
def retokenize(source: str, directory: str, tokenizer: str, old_tokenizer: str | None, seed: int) -> None:
    """Give the language model SOURCE another text vocabulary, of any size, and write it into DIRECTORY.

    Only text tables and heads change: they keep the rows of special ids and of pieces that both vocabularies have, and
    the others are initialised. DIRECTORY is like that of `moshijax weights import`.

    \b
    Example:
      moshijax weights retokenize models/moshiko models/moshiko-ja --tokenizer japanese.model
    """
    from dataclasses import replace

    from moshijax.data.text import Tokenizer
    from moshijax.weights import retokenize as changing
    from moshijax.weights.families.lm import LANGUAGE_MODEL
    from moshijax.weights.opening import open_model
    from moshijax.weights.transfer import write_imported

    files.check_folder(directory, (source, tokenizer, old_tokenizer))
    model = open_model(source, LANGUAGE_MODEL.kind)
    present = old_tokenizer or model.tokenizer
    if present is None:
        raise ConfigError(f"{source} has no tokenizer; give the one it was trained with as --old-tokenizer")
    old, new = Tokenizer.load(present), Tokenizer.load(tokenizer)  # whose special ids no text can become
    changed = replace(changing.retokenize(model, old.pieces, new.pieces, seed), tokenizer=Tokenizer.file(tokenizer))
    with ProgressBar("reading") as bar:
        write_imported(changed, directory, bar.retitle)
    kept = int((changing.carried(old.pieces, new.pieces) >= 0).sum())
    click.echo(f"wrote {directory}: {new.vocab_size} pieces, {kept} of them carried over")
