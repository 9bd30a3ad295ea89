"""`moshijax data import` and `moshijax data publish`: sets of TensorFlow Datasets in, and ours out."""

from __future__ import annotations

from pathlib import Path

import click

from moshijax import files
from moshijax.cli.common import PathName, ProgressBar
from moshijax.cli.recordings import tell


@click.command("import")
@click.argument("out", type=PathName(path_type=Path))
@click.option("--source", required=True, metavar="tfds:NAME", help="The set: tfds:NAME[/CONFIG][:VERSION].")
@click.option("--data-dir", type=PathName(path_type=Path), help="Where it is prepared. Default: ~/tensorflow_datasets.")
@click.option("--split", "splits", multiple=True, metavar="NAME", help="A split to read; several may be given.")
@click.option("--sample-rate", type=click.IntRange(4000, 384_000), help="In Hz, where the set does not say.")
def import_command(out, source, data_dir, splits, sample_rate) -> None:
    """Write a public set of speech as recordings with a manifest into the folder OUT.

    The set must have been prepared, as TFRecord or ArrayRecord, by TensorFlow Datasets; TensorFlow is not needed to
    read it (extra tfds). Run the same command again after an interruption.

    \b
    Example:
      moshijax data import libri --source tfds:librispeech --data-dir /data/tfds --split train_clean100
    """
    from moshijax.data.tfds_sets import import_set, open_set

    files.check_folder(out, (data_dir,), new=False)
    found = open_set(source, data_dir)
    with ProgressBar("reading") as update:
        report = import_set(
            found, out, splits, sample_rate,
            lambda done, total, report: update(done, total, f"{report.seconds / 3600:.2f} h"),
        )  # fmt: skip
    tell(report)
    click.echo(f"wrote {out / 'manifest.jsonl'}: {found.name} {found.folder.name}")


@click.command("publish")
@click.argument("dataset", type=PathName(path_type=Path))
@click.argument("out", type=PathName(path_type=Path))
@click.option("--name", required=True, help="Name of the set: small letters, digits and underlines.")
@click.option("--version", default="1.0.0", show_default=True, help="Version of the set.")
@click.option("--split", default="train", show_default=True, help="Split under which the records stand.")
@click.option("--description", default="", help="What it is, for people.")
def publish_command(dataset, out, name, version, split, description) -> None:
    """Write a prepared DATASET as a set of TensorFlow Datasets, which others open without moshijax.

    `tfds.builder_from_directory("OUT/NAME/VERSION").as_data_source("train")` reads it, without TensorFlow.

    \b
    Example:
      moshijax data publish prepared published --name my_calls --description "Calls of our own"
    """
    from moshijax.data.publish import publish
    from moshijax.data.records import RecordSource

    source = RecordSource(dataset)
    with ProgressBar("writing", len(source)) as update:
        folder = publish(source, out, name, version, split, description, update)
    click.echo(f"wrote {folder}: {len(source)} records; open it with tfds.builder_from_directory")
