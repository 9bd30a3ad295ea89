"""`moshijax data units` and `moshijax data exchanges`: what LLaMA-Omni is trained on."""

from __future__ import annotations

from pathlib import Path

import click

from moshijax import files
from moshijax.cli.common import SEED, FiniteRange, PathName, ProgressBar
from moshijax.cli.recordings import rule_options, rules_of, tell
from moshijax.errors import ConfigError, Stopped


@click.command()
@click.argument("features", type=PathName(path_type=Path))
@click.argument("out", type=PathName(path_type=Path))
@click.option("--count", type=click.IntRange(1, 32768), default=1000, show_default=True, help="Number of units.")
@click.option(
    "--frames",
    type=click.IntRange(1),
    default=100_000,
    show_default=True,
    help="Features to look at, of all recordings.",
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed for the features and the first centroids.")
def units(features: Path, out: Path, count: int, frames: int, seed: int) -> None:
    """Make units of speech: the centroids of FEATURES by k-means, as the file OUT.npy.

    FEATURES is a folder that `data teacher` made, of a speech model (--kind wavlm reads HuBERT too) or of phonemes.

    \b
    Example:
      moshijax data teacher speech --kind wavlm --model mhubert-base --layer 11
      moshijax data units speech/teacher units.npy --count 1000
    """
    from moshijax.data.speech_units import fit

    if out.suffix != ".npy":
        raise ConfigError(f"{out} is to hold an array of NumPy: name it {out.stem}.npy")
    files.check_outputs([out], (features,))
    found = fit(features, out, count, frames, seed=seed)
    click.echo(f"wrote {out}: {count} units of {found} features")


@click.command()
@click.argument("manifest", type=PathName(path_type=Path))
@click.argument("out", type=PathName(path_type=Path))
@click.option("--features", required=True, type=PathName(), help="Folder that `data teacher` made of MANIFEST.")
@click.option("--centroids", required=True, type=PathName(), help="File that `data units` made of such features.")
@click.option(
    "--bands",
    type=click.Choice(["80", "128"]),
    default="128",
    show_default=True,
    help="Log-mel bands of the encoder: 128 for large-v3, 80 for smaller ones.",
)
@click.option(
    "--question-margin", type=FiniteRange(0, 5), default=0.3, show_default=True, help="Seconds around a question."
)
@click.option(
    "--answer-margin", type=FiniteRange(0, 5), default=0.06, show_default=True, help="Seconds around an answer."
)
@click.option("--speech", is_flag=True, help="Keep the samples of the answers, which a vocoder is trained on.")
@click.option("--shard-items", type=click.IntRange(1), default=256, show_default=True, help="Recordings per shard.")
@rule_options
def exchanges(
    manifest, out, features, centroids, bands, question_margin, answer_margin, speech, shard_items, strict, speaker,
    channels, min_score,
) -> None:  # fmt: skip
    """Cut the two-channel recordings of MANIFEST into questions and answers, and write shards of them to OUT.

    A question is what the user says until the model speaks, kept as the frames that an encoder of Whisper hears; the
    answer is kept as text and as units. Questions that nobody answers teach the model to stay silent. Run the same
    command again after an interruption: complete shards are kept.

    \b
    Example:
      moshijax data exchanges speech exchanges --features speech/teacher --centroids units.npy
    """
    from moshijax.data.exchanges import ExchangeConfig, prepare_exchanges
    from moshijax.data.manifest import read_manifest

    files.check_folder(out, (manifest, features, centroids), new=False)
    content = read_manifest(manifest)
    rules = rules_of(strict, speaker, channels, min_score)
    config = ExchangeConfig(rules, shard_items, int(bands), question_margin, answer_margin, speech)
    try:
        with ProgressBar("cutting", len(content.items)) as update:
            index, report, written = prepare_exchanges(
                content, out, features, centroids, config,
                lambda done, total, found: update(done, total, f"{found.seconds / 60:.1f} min"),
            )  # fmt: skip
    except KeyboardInterrupt:
        raise Stopped(f"stopped; complete shards are in {out}: run the same command again to continue") from None
    tell(report)
    notes = [note for shard in index["shards"] for note in shard["exchanges"]]
    answered = sum(bool(answer) for _, _, answer in notes)
    found = sum(count for _, count, _ in notes)
    shards = len(index["shards"])
    kept = f" ({shards - written} kept)" if written < shards else ""
    click.echo(
        f"wrote {out}: {shards} shards{kept}, {len(notes)} exchanges, {answered} of them answered, {found} units of "
        f"{index['units']['count']}"
    )
