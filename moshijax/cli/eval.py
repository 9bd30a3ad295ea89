"""`moshijax eval`: run the evaluation that a recipe names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from moshijax import files
from moshijax.cli.common import PathName, ProgressBar, overrides_of, recipe_overrides, show_log
from moshijax.errors import ConfigError

if TYPE_CHECKING:
    from moshijax.eval.evaluation import Results


@click.command("eval", context_settings={"ignore_unknown_options": True})
@click.argument("recipe", type=PathName(), required=False)
@click.option(
    "--compare",
    type=PathName(path_type=Path),
    nargs=2,
    metavar="A B",
    help="In place of a recipe: two folders that this command wrote, or two folders of such folders.",
)
@click.option(
    "--gather",
    type=PathName(path_type=Path),
    metavar="FOLDER",
    help="In place of a recipe: a folder of folders that this command wrote, all of one model, for one page.",
)
@click.option(
    "--out",
    type=PathName(path_type=Path),
    required=True,
    help="Folder for report.html, results.json and recordings; created if it does not exist.",
)
@recipe_overrides
def command(
    recipe: str | None,
    compare: tuple[Path, Path] | None,
    gather: Path | None,
    out: Path,
    overrides: tuple[str, ...],
) -> None:
    """Run the evaluation that RECIPE names, and write its figures and a report with audio; or compare two models.

    RECIPE is a gin file, or the name of a recipe that ships with the package: eval/codec.gin measures how much of a
    recording a codec keeps, eval/spoken_qa.gin plays spoken questions to an exported artifact and scores the answers,
    eval/heard.gin counts the words that a recogniser hears in recordings, through a codec, and in a model's answers,
    eval/dynamics.gin measures who speaks when, eval/full_duplex_bench.gin answers and scores that benchmark,
    eval/audio_lm.gin counts how often the right one of two recordings is the more likely one, eval/health.gin looks for
    artefacts, loops, stalls and drift in hour-long calls, eval/open_questions.gin asks questions with many right
    answers, eval/text_benchmarks.gin runs lm-evaluation-harness on the text, and eval/call_runner.gin writes calls as
    files.

    --compare puts the results of two models on the same data side by side, with 95 % intervals of the differences: two
    models, or one before and after a fine-tuning or a quantisation. --gather puts all evaluations of one model on one
    page, with their plots and audio.

    \b
    Example:
      moshijax eval eval/codec.gin --out report --gin.evaluation.codec=runs/codec --gin.evaluation.speech=speech
      moshijax eval eval/spoken_qa.gin --out report --gin.evaluation.artifact=runs/first/artifact
      moshijax eval --compare before after --out comparison
      moshijax eval --gather after --out page
    """
    if compare or gather:
        option = "--compare" if compare else "--gather"
        if recipe is not None or (compare and gather):
            raise ConfigError(
                f"{option} reads results and runs nothing, so it takes no {'--gather' if recipe is None else 'recipe'} "
                f"({gather if recipe is None else recipe}); leave it out"
            )
        files.check_folder(out, compare or (gather,), new=False)
        from moshijax.eval import comparison, evaluation, gathering

        results = comparison.compare(*compare) if compare else gathering.gather(gather)
        evaluation.save(results, out)
    else:
        results = _run(recipe, out, overrides)
    for name, value in results.values.items():
        click.echo(f"{name} {value:.4g}")
    for note in results.notes:
        click.echo(note)
    click.echo(f"wrote {out / 'report.html'}")


def _run(recipe: str | None, out: Path, overrides: tuple[str, ...]) -> Results:
    if recipe is None:
        raise ConfigError("no recipe: name one, such as eval/spoken_qa.gin, or results with --compare or --gather")
    files.check_folder(out, (recipe,), new=False)
    bindings = overrides_of(overrides)
    from moshijax import config
    from moshijax.eval import evaluation

    chosen = config.load(recipe, bindings, root=evaluation.EvaluationConfig).evaluation
    show_log()
    with ProgressBar("evaluating") as bar:
        return evaluation.run(chosen, out, bar)
