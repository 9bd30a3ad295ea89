"""`moshijax quickstart`: the main job end to end on the embedded default."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from moshijax.quickstart.settings import Folder, Settings
from moshijax.quickstart.stages import Stage, Tell


class _Screen:
    """One bar per stage on a terminal; elsewhere a line when a stage begins and every half minute."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.console = Console(stderr=True)
        columns = (
            TextColumn("{task.description:34}"),
            BarColumn(bar_width=28),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self.bars = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        self.said = 0.0

    def start(self, index: int, stage: Stage) -> Tell:
        label = f"[{index + 1}/{self.count}] {stage.title}"
        task = self.bars.add_task(label, total=None, note="")
        if not self.console.is_terminal:
            click.echo(f"{label} ...", err=True)
        self.said = time.monotonic()

        def tell(done: float, total: float | None, note: str) -> None:
            self.bars.update(task, completed=done, total=total, note=note)
            if not self.console.is_terminal and time.monotonic() - self.said > 30:
                self.said = time.monotonic()
                click.echo(f"{label}: {done:g}" + (f" of {total:g} {note}" if total else f" {note}"), err=True)

        return tell

    def finish(self, index: int, stage: Stage, marker: Mapping[str, Any], before: bool) -> None:
        for task in list(self.bars.task_ids):
            self.bars.remove_task(task)
        note = "done before" if before else f"{marker['seconds']:6.1f} s"
        self.bars.console.print(f"[{index + 1}/{self.count}] {stage.title:26} {note}", markup=False, highlight=False)


@click.command("quickstart")
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path),
    default=Path("runs/quickstart"),
    show_default=True,
    help="Where everything is written; an interrupted run goes on there.",
)
@click.option("--until", help="Stop after this stage (synthesize, tokenizer, teacher, codec, prepare, moshi, ...).")
@click.option("--seed", default=0, show_default=True, help="Seed of voices, data order, parameters and sampling.")
def command(run_dir: Path, until: str | None, seed: int) -> None:
    """Make speech, train a small codec and a small Moshi, export it, and let it answer held-out calls.

    Takes about a quarter of an hour on two CPU cores. Killed at any time, the same command goes on. It ends with
    report.html, reply.wav, artifact/ and the measured figures.

    \b
    Example:
      moshijax quickstart --run-dir runs/first
    """
    from moshijax.quickstart import calls, page, pipeline, stages

    logging.getLogger("moshijax").setLevel(logging.WARNING)
    folder, settings = Folder(run_dir), Settings(seed=seed)
    screen = _Screen(len(pipeline.STAGES))
    begun = time.monotonic()
    with screen.bars:
        stages.run(pipeline.STAGES, settings, folder, until, screen.start, screen.finish)
    if until is not None and until != pipeline.STAGES[-1].name:
        click.echo(f"done until {until}; the same command without --until goes on")
        return
    import json

    for line in calls.summary_lines(json.loads(folder.figures.read_text(encoding="utf-8"))):
        click.echo(line)
    click.echo(
        f"\n{folder.report}  {folder.reply}  {folder.artifact}/  after {(time.monotonic() - begun) / 60:.1f} min\n"
    )
    click.echo("next:")
    for line in page.next_commands(settings, folder):
        click.echo(f"  {line}")
