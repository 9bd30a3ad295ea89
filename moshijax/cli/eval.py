"""`moshijax eval`: run the evaluation that a recipe names."""

from __future__ import annotations

from pathlib import Path

import click

from moshijax import files
from moshijax.cli.common import PathName, ProgressBar, overrides_of, recipe_overrides, show_log


@click.command("eval", context_settings={"ignore_unknown_options": True})
@click.argument("recipe", type=PathName())
@click.option(
    "--out",
    type=PathName(path_type=Path),
    required=True,
    help="Folder for report.html, results.json and recordings; created if it does not exist.",
)
@recipe_overrides
def command(recipe: str, out: Path, overrides: tuple[str, ...]) -> None:
    """Run the evaluation that RECIPE names, and write its figures and a report with audio.

    RECIPE is a gin file, or the name of a recipe that ships with the package: eval/codec.gin measures how much of a
    recording a codec keeps, eval/spoken_qa.gin plays spoken questions to an exported artifact and scores the answers.

    \b
    Example:
      moshijax eval eval/codec.gin --out report --gin.evaluation.codec=runs/codec --gin.evaluation.speech=speech
      moshijax eval eval/spoken_qa.gin --out report --gin.evaluation.artifact=runs/first/artifact
    """
    files.check_folder(out, (recipe,), new=False)
    bindings = overrides_of(overrides)
    from moshijax import config
    from moshijax.eval import evaluation

    chosen = config.load(recipe, bindings, root=evaluation.EvaluationConfig).evaluation
    show_log()
    with ProgressBar("evaluating") as bar:
        results = evaluation.run(chosen, out, bar)
    for name, value in results.values.items():
        click.echo(f"{name} {value:.4g}")
    for note in results.notes:
        click.echo(note)
    click.echo(f"wrote {out / evaluation.REPORT}")
