"""`moshijax data synthesize` and `data timing`: texts to recordings with word times, and when people speak in them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from moshijax import files, optional
from moshijax.cli import instructions
from moshijax.cli.common import SEED, FiniteRange, PathName, ProgressBar, workers_option
from moshijax.cli.recordings import SHOWN, rule_options, rules_of, tell
from moshijax.errors import ConfigError, Stopped

if TYPE_CHECKING:
    from moshijax.data.checks import CheckRules
    from moshijax.data.findings import Report
    from moshijax.data.synthesis import Cast, Dialogue
    from moshijax.data.synthesis.timing import Timing

BUILT_IN = ("espeak-ng", "hibari")


@click.command()
@click.argument("texts", type=PathName(path_type=Path))
@click.argument("out", type=PathName(path_type=Path))
@click.option("--seed", type=SEED, default=0, show_default=True, help="The same seed gives the same bytes.")
@click.option(
    "--copies",
    type=click.IntRange(1, 100_000),
    help="Versions of each dialogue, each in other voices.  [default: 1]",
)
@click.option(
    "--calls", type=click.IntRange(1, 10_000_000), help="Calls to draw from a file of questions.  [default: 1000]"
)
@click.option(
    "--voices",
    default="espeak-ng",
    show_default=True,
    help="Who speaks where TEXTS name no voice: espeak-ng, hibari, or a file with one voice per line.",
)
@click.option("--timing", type=PathName(path_type=Path), help="Statistics that gaps and backchannels are drawn from.")
@click.option("--listen", metavar="MODEL", help="Whisper model that hears every clip again; rejects what it mishears.")
@click.option("--language", default="en", show_default=True, help="Code of the language, for --listen.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="For --listen.")
@click.option(
    "--most-misheard", type=FiniteRange(0, 1), default=0.3, show_default=True, help="Share of letters, for --listen."
)
@workers_option
def synthesize(
    texts, out, seed, copies, calls, voices, timing, listen, language, device, most_misheard, workers
) -> None:  # fmt: skip
    """Speak TEXTS: two-channel recordings, word times and a manifest in the folder OUT.

    TEXTS is a file of dialogues, a folder of such files, a JSON file of instructions (see `data spoken`), or a file
    of lines `question => answer` (lines without an arrow get no answer). The name of a folder that ships with
    moshijax, such as data/dialogues, works from anywhere. Run the same command again after an interruption.

    \b
    Example:
      moshijax data synthesize data/dialogues calls --seed 1 --copies 10
      moshijax data synthesize data/small_world/world.txt answers --calls 2000 --voices hibari
      moshijax data synthesize alpaca_data.json alpaca --voices cast.txt --timing fisher.json --listen tiny.en
    """
    from moshijax.data.synthesis import timing as times
    from moshijax.data.synthesis.hearing import Listening
    from moshijax.data.synthesis.run import REPORT
    from moshijax.data.synthesis.run import synthesize as speak

    texts = shipped(texts)
    files.check_folder(out, (texts, timing), new=False)
    reference = None if timing is None else times.read(timing)
    dialogues = _dialogues(texts, seed, copies, calls, _cast(voices))
    if reference is not None:
        dialogues = [times.draw(dialogue, reference, seed) for dialogue in dialogues]
    listening = None if listen is None else Listening(listen, language, device, most_misheard)
    try:
        with ProgressBar("speaking", len(dialogues)) as update:
            result = speak(dialogues, out, seed=seed, workers=workers, progress=update, listening=listening)
    except KeyboardInterrupt:
        raise Stopped("stopped; what is spoken is kept: run the same command again to continue") from None
    click.echo(
        f"wrote {result.manifest}: {result.items} recordings, {result.seconds / 60:.1f} minutes, {result.words} words"
    )
    for name, count in sorted(result.kinds.items()):
        click.echo(f"  rejected {name}: {count} dialogues")
    for name, reason in result.rejected[:SHOWN]:
        click.echo(f"  not spoken {name}: {reason}")
    if result.rejected:
        click.echo(f"  {len(result.rejected)} of {len(dialogues)} dialogues were not spoken; all are in {out / REPORT}")
    if reference is not None:
        from moshijax.data.checks import CheckRules

        made, _ = _fitted(result.manifest, CheckRules())
        _compare([(str(timing), reference), (str(out), made)])


def _dialogues(texts: Path, seed: int, copies: int | None, calls: int | None, cast: Cast) -> list[Dialogue]:
    from moshijax.data import instructions as sets
    from moshijax.data.synthesis import CallRanges, draw_calls, parse_world
    from moshijax.data.synthesis import texts as scripts

    questions = texts.suffix not in sets.SUFFIXES and texts.is_file() and scripts.is_world(files.read_text(texts))
    if questions and copies is not None:
        raise ConfigError(f"--copies is for dialogues, and {texts} holds questions: say with --calls how many to draw")
    if not questions and calls is not None and texts.exists():
        raise ConfigError(f"--calls is for files of questions, and {texts} holds dialogues: use --copies")
    if questions:
        world, calls = parse_world(files.read_text(texts), str(texts)), calls or 1000
        answered = calls if not world.unrelated else calls * 3 // 4 if world.questions else 0
        return draw_calls(world, answered, calls - answered, seed=seed, ranges=CallRanges(cast=cast))
    copies = copies or 1
    if texts.suffix in sets.SUFFIXES:
        found, report = sets.read(texts, sets.SpokenRules(seed=seed))
        click.echo(f"{len(found)} dialogues of {report.entries} entries of {texts}")
        instructions.tell(report)
        return scripts.of_exchanges(found, seed, copies, cast)
    return scripts.load(texts, seed, copies, cast)


def _cast(name: str) -> Cast:
    from moshijax.data.synthesis import CASTS
    from moshijax.data.synthesis.texts import load_cast

    if name in BUILT_IN:
        return CASTS[name]
    if not Path(name).is_file():
        raise ConfigError(f"--voices {name!r}: use {' or '.join(BUILT_IN)}, or a file of voices")
    return load_cast(Path(name))


def shipped(path: Path) -> Path:
    """Return the path itself if it exists, else the file or folder of that name that ships with the package."""
    if path.exists() or path.parts[:1] != ("data",):
        return path
    from moshijax.shipped import folder

    found = folder(path.as_posix())
    return found if found.exists() else path


@click.command()
@click.argument("recordings", type=PathName(path_type=Path))
@click.argument("out", type=PathName(path_type=Path))
@click.option("--beside", type=PathName(path_type=Path), metavar="TIMING", help="Another OUT to compare with.")
@click.option("--picture", type=PathName(path_type=Path), metavar="PNG", help="Picture of it to write (extra eval).")
@rule_options
def timing(recordings, out, beside, picture, strict, speaker, channels, min_score) -> None:
    """Measure when people speak in RECORDINGS with transcripts, for `data synthesize --timing OUT`.

    OUT is a JSON file: gaps between turns (negative where they overlap), and how often, where and with which words
    people give backchannels.

    \b
    Example:
      moshijax data timing fisher/manifest.jsonl fisher.json
      moshijax data timing calls/manifest.jsonl calls.json --beside fisher.json --picture calls.png
    """
    from moshijax.data.synthesis import timing as times

    files.check_outputs([out] if picture is None else [out, picture], (recordings, beside))
    if picture is not None and picture.suffix != ".png":
        raise ConfigError(f"--picture {picture} is to be a PNG file: name it {picture.stem}.png")
    if picture is not None:
        optional.load("matplotlib")
    reference = [] if beside is None else [(str(beside), times.read(beside))]
    found, report = _fitted(recordings, rules_of(strict, speaker, channels, min_score))
    report.require_usable(recordings, strict=strict)
    tell(report)
    times.write(found, out)
    columns = [*reference, (str(recordings), found)]
    _compare(columns)
    if picture is not None:
        _draw(columns, picture)
    click.echo(f"wrote {out}" if picture is None else f"wrote {out}, {picture}")


def _fitted(recordings: Path, rules: CheckRules) -> tuple[Timing, Report]:
    from moshijax.data.checks import check_header
    from moshijax.data.findings import Report
    from moshijax.data.manifest import read_recordings
    from moshijax.data.synthesis import timing as times

    content, report = read_recordings(recordings), Report()

    def calls():
        for item in content.items:
            checked = check_header(item, dataclasses.replace(rules, strict=False))
            report.add(checked)
            if checked.rejected is None:
                yield checked.words, checked.info.duration

    return times.fit(calls()), report


def _draw(columns: Sequence[tuple[str, Timing]], picture: Path) -> None:
    """Write a picture of several timings beside each other."""
    from moshijax.report.turn_timing import Timed, turn_timing

    sets = {}
    for name, timing in columns:
        figures = timing.figures()
        shares = {name: figures[name] for name in ("overlapping changes", "backchannels per long turn")}
        note = f"{timing.changes} changes of the speaker, {figures['changes per minute']:.1f} a minute"
        sets[name] = Timed(timing.gaps, timing.places, shares, note)
    with files.staged(picture) as partial:
        turn_timing(sets).savefig(partial, format="png", dpi=130)


def _compare(columns: Sequence[tuple[str, Timing]]) -> None:
    """Print the figures of several timings side by side."""
    names = [name if len(name) <= 24 else "..." + name[-21:] for name, _ in columns]
    click.echo(" " * 28 + "".join(f"{name:>26}" for name in names))
    tables = [timing.figures() for _, timing in columns]
    for name in tables[0]:
        click.echo(f"  {name:<26}" + "".join(f"{table[name]:>26.3f}" for table in tables))
