"""`moshijax eval`: figures of a codec, with clips to hear."""

from __future__ import annotations

from pathlib import Path

import click

from moshijax.cli.common import ProgressBar, overrides_of, recipe_overrides, show_log


@click.command("eval", context_settings={"ignore_unknown_options": True})
@click.argument("recipe")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of report.html and metrics.json.")
@recipe_overrides
def command(recipe: str, out: Path, overrides: tuple[str, ...]) -> None:
    """Measure the codec that RECIPE names: distances, stability of the codes, phonemes told apart.

    RECIPE is a gin file, or the name of a recipe that ships with the package. The codec is a run directory or published
    weights; the speech a manifest or a folder.

    \b
    Example:
      moshijax eval eval/codec.gin --out report --gin.codec=runs/codec --gin.speech=speech
    """
    bindings = overrides_of(overrides)
    from moshijax import config
    from moshijax.eval.codec import CodecEvaluation, evaluate

    evaluation = config.load(recipe, bindings, root=CodecEvaluation)
    show_log()
    with ProgressBar("clips", evaluation.clips) as update:
        measured = evaluate(evaluation, out, progress=update)
    for name, value in measured.values.items():
        click.echo(f"{name} {value:.4g}")
    for note in measured.notes:
        click.echo(note)
    click.echo(f"wrote {out / 'report.html'}")
