"""`moshijax quickstart`: the main job end to end on the embedded default."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moshijax import files
from moshijax.cli.common import SEED, PathName, ProgressBar
from moshijax.quickstart.settings import Folder, Settings
from moshijax.quickstart.stages import Stage

if TYPE_CHECKING:
    from moshijax.eval.evaluation import ProgressFn


class _Screen:
    """One bar per stage on a terminal; elsewhere a line when a stage begins and every half minute."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._bar: ProgressBar | None = None

    def __enter__(self) -> _Screen:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.__exit__()
            self._bar = None

    def start(self, index: int, stage: Stage) -> ProgressFn:
        label = f"[{index + 1}/{self._count}] {stage.title}"
        bar = self._bar = ProgressBar(label).__enter__()
        if not bar.shown:
            click.echo(f"{label} ...", err=True)
        said = time.monotonic()

        def tell(done: float, total: float | None, note: str) -> None:
            nonlocal said
            bar(done, total, note)
            if not bar.shown and time.monotonic() - said > 30:
                said = time.monotonic()
                click.echo(f"{label}: {done:g}" + (f" of {total:g} {note}" if total else f" {note}"), err=True)

        return tell

    def finish(self, index: int, stage: Stage, marker: Mapping[str, Any], before: bool) -> None:
        self.__exit__()
        if "left_out" in marker:
            note = f"left out: {marker['left_out']}"
        else:
            note = "done before" if before else f"{marker['seconds']:6.1f} s"
        click.echo(f"[{index + 1}/{self._count}] {stage.title:26} {note}", err=True)


@click.command("quickstart")
@click.option(
    "--run-dir",
    type=PathName(path_type=Path),
    default=Path("runs/quickstart"),
    show_default=True,
    help="Where everything is written; an interrupted run continues there.",
)
@click.option("--until", help="Stop after this stage (synthesize, tokenizer, teacher, hearing, codec, ...).")
@click.option(
    "--seed", type=SEED, default=0, show_default=True, help="Seed of voices, data order, parameters and sampling."
)
def command(run_dir: Path, until: str | None, seed: int) -> None:
    """Make speech, train a small codec and a small Moshi, export it, and let it answer held-out calls.

    Takes about a quarter of an hour on two CPU cores, and writes report.html, reply.wav, artifact/ and the measured
    figures. If it is killed at any time, the same command continues.

    \b
    Example:
      moshijax quickstart --run-dir runs/first
    """
    files.check_folder(run_dir, new=False)
    from moshijax.eval import heard, spoken_qa
    from moshijax.quickstart import page, pipeline, stages

    logging.getLogger("moshijax").setLevel(logging.WARNING)
    folder, settings = Folder(run_dir), Settings(seed=seed)
    begun = time.monotonic()
    with _Screen(len(pipeline.STAGES)) as screen:
        stages.run(pipeline.STAGES, settings, folder, until, screen.start, screen.finish)
    if until is not None and until != pipeline.STAGES[-1].name:
        click.echo(f"done until {until}; the same command without --until continues")
        return
    for line in spoken_qa.summary_lines(files.read_json(folder.figures)):
        click.echo(line)
    if (words := page.words_heard(folder)) is not None:
        for line in heard.summary_lines(words):
            click.echo(line)
    click.echo(
        f"\n{folder.report}  {folder.reply}  {folder.artifact}/  after {(time.monotonic() - begun) / 60:.1f} min\n"
    )
    click.echo("next:")
    for line in page.next_commands(settings, folder):
        click.echo(f"  {line}")
