"""`moshijax data`: recordings or texts to shards of grids, and a look inside."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from moshijax import files
from moshijax.cli import (
    align,
    deduplicate,
    dialogues,
    diarize,
    exchanges,
    fisher,
    instructions,
    public_sets,
    separate,
    synthesize,
    text,
    transcribe,
    widen,
)
from moshijax.cli.common import SEED, PathName, ProgressBar
from moshijax.cli.recordings import SHOWN, rule_options, rules_of, tell, tell_findings
from moshijax.cli.runner import Place, runner_options
from moshijax.errors import ConfigError, DataError, Stopped

if TYPE_CHECKING:
    from moshijax.data.findings import Report
    from moshijax.data.job import Runner
    from moshijax.data.line import Line


@click.group()
def command() -> None:
    """Make, check and inspect training data.

    \b
    Example:
      moshijax data synthesize data/dialogues calls --seed 1
      moshijax data prepare calls/manifest.jsonl prepared --codec runs/first/codec
      moshijax data report prepared
    """


command.add_command(transcribe.command, "transcribe")
command.add_command(align.command, "align")
command.add_command(deduplicate.command, "deduplicate")
command.add_command(text.text)
command.add_command(text.tokenizer)
command.add_command(public_sets.import_command)
command.add_command(public_sets.publish_command)
command.add_command(exchanges.units)
command.add_command(exchanges.exchanges)
command.add_command(diarize.command, "diarize")
command.add_command(fisher.command, "fisher")
command.add_command(separate.command, "separate")
command.add_command(widen.command, "widen")
command.add_command(instructions.command, "spoken")
command.add_command(synthesize.synthesize)
command.add_command(synthesize.timing)
command.add_command(dialogues.command, "dialogues")


@command.command()
@click.argument("inputs", metavar="MANIFEST_OR_TEXTS...", type=Place(), nargs=-1, required=True)
@click.argument("out", type=Place())
@click.option("--codec", type=PathName(), help="Codec: a run, a published file or a folder with one.")
@click.option("--num-codebooks", type=int, help="Number of codebooks to keep. Default: all that the codec uses.")
@click.option(
    "--shard-items",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Recordings per shard, or texts (one of more than 1 MB counts as several).",
)
@click.option(
    "--tokenizer", type=PathName(path_type=Path), help="For texts: the tokenizer.model or tokenizer.json to pack with."
)
@click.option(
    "--streams",
    type=click.Choice(["two", "mixed", "diarized"]),
    default="two",
    show_default=True,
    help="One channel per speaker; all speakers in one stream; or two streams cut from one by diarization.",
)
@click.option("--augment", is_flag=True, help="Change the user's channel: level, noise, echo and reverberation.")
@click.option("--noise", type=PathName(), help="Recordings of noise for --augment: a folder or a manifest.")
@click.option(
    "--line",
    multiple=True,
    metavar="NAME=P",
    help="For --augment: probability of what the user calls over: telephone, mu_law (of telephones), opus or loss.",
)
@click.option(
    "--copies", type=click.IntRange(1), default=1, help="Records per recording, each with its own random draws."
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed for main speakers and augmentation.")
@runner_options
@rule_options
def prepare(
    inputs, out, codec, num_codebooks, shard_items, tokenizer, streams, augment, noise, line, copies, seed, runner,
    runner_options, strict, speaker, channels, min_score,
) -> None:  # fmt: skip
    """Check the recordings of a manifest or folder, encode them, and write shards of codes and words to the folder OUT.

    Run the same command again after an interruption: complete shards are kept. Inputs and OUT may be in buckets, such
    as gs://bucket/calls. Files that end in .txt, or patterns for
    such names in quotes, are text, one document per line. They are packed for text-only training steps (with
    --tokenizer, without --codec).

    \b
    Example:
      moshijax data prepare calls/manifest.jsonl prepared --codec runs/first/codec --num-codebooks 8
      moshijax data prepare podcasts/manifest.jsonl podcasts --codec models/moshiko --streams diarized --copies 2
      moshijax data prepare calls/manifest.jsonl noisy --codec runs/first/codec --augment --noise noise --line opus=0.3
      moshijax data prepare stories.txt 'books/*.txt' text --tokenizer runs/first/lm/tokenizer.model
      moshijax data prepare gs://b/calls gs://b/grids --codec /models/mimi --runner beam:DataflowRunner
    """
    from moshijax.data.augmentation import UserAugmentation
    from moshijax.data.manifest import read_recordings
    from moshijax.data.on_beam import runner_of
    from moshijax.data.prepare import PrepareConfig
    from moshijax.data.prepare import prepare as run

    files.check_folder(out, (*inputs, codec, tokenizer, noise), new=False)
    works = runner_of(runner, runner_options)
    texts = [path for path in inputs if path.suffix == ".txt"]
    if texts:
        if len(texts) < len(inputs):
            raise ConfigError(f"{texts[0]} is text, but another input is not: prepare them one after the other")
        if tokenizer is None:
            raise ConfigError(f"{texts[0]} is text, which is packed with a tokenizer: add --tokenizer tokenizer.model")
        used = {"inputs", "out", "tokenizer", "shard_items", "strict", "runner", "runner_options"}
        _refuse_all_but(used, f"{texts[0]} is text")
        _prepare_text(texts, out, tokenizer, shard_items, strict, works)
        return
    if len(inputs) > 1:
        raise ConfigError(f"{len(inputs)} manifests are given: prepare one at a time, each into its own folder")
    (manifest,) = inputs
    if tokenizer is not None:
        raise ConfigError(
            "--tokenizer is for texts; of recordings the words are kept, to be written by any: leave it out"
        )
    if codec is None:
        raise ConfigError("recordings are encoded with a codec: add --codec RUN_OR_FILE")
    content = read_recordings(manifest)
    rules = dataclasses.replace(rules_of(strict, speaker, channels, min_score), streams=streams)
    for option, given in (("--noise", noise), ("--line", line)):
        if given and not augment:
            raise ConfigError(f"{option} is for --augment: add it, or leave {option} out")
    augmentation = UserAugmentation(clips=noise, line=_line(line)) if augment else None
    from moshijax.data.encoder import CodecEncoder

    encoder = CodecEncoder.load(codec, num_codebooks)
    config = PrepareConfig(rules, shard_items, augmentation=augmentation, copies=copies, seed=seed)
    try:
        with ProgressBar("encoding", len(content.items)) as update:
            index, report, written = run(
                content, out, encoder, config,
                lambda done, total, found: update(done, total, f"{found.seconds / 60:.1f} min"), works,
            )  # fmt: skip
    except KeyboardInterrupt:
        raise _stopped(out) from None
    tell(report)
    click.echo(f"{_done(out, index, written)}, {index['codec']['num_codebooks']} codebooks")


def _line(pairs: tuple[str, ...]) -> Line:
    """Read NAME=P of `--line`."""
    from moshijax.data.line import Line

    names, given = ("telephone", "mu_law", "opus", "loss"), {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            given[name] = float(value)
        except ValueError:
            name = ""
        if name not in names:
            raise ConfigError(f"--line {pair!r}: write one of {', '.join(names)}, and =P with a P from 0 to 1")
    return Line(**given)


def _refuse_all_but(names: set[str], why: str) -> None:
    """Raise ConfigError if the command line sets a parameter that would have no effect."""
    context = click.get_current_context()
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
        if given and parameter.name not in names:
            raise ConfigError(f"{parameter.opts[0]} is for recordings, and {why}: leave it out")


def _prepare_text(texts: list[Path], out: Path, tokenizer: Path, shard_items: int, strict: bool, works: Runner) -> None:
    from moshijax.data.documents import prepare_text
    from moshijax.data.text import Tokenizer

    try:
        with ProgressBar("packing") as update:
            index, report, written = prepare_text(
                texts, out, Tokenizer.load(tokenizer), shard_items, strict,
                lambda done, total, found: update(done, total, f"{found.usable} documents"), works,
            )  # fmt: skip
    except KeyboardInterrupt:
        raise _stopped(out) from None
    click.echo(f"{report.usable} of {report.items} documents usable: {report.words} words")
    tell_findings(report)
    tokens = sum(sum(shard["tokens"]) for shard in index["shards"])
    click.echo(f"{_done(out, index, written, 'texts')}, {tokens} tokens")


def _stopped(out: Path) -> Stopped:
    return Stopped(f"stopped; complete shards are in {out}: run the same command again to continue")


def _done(out: Path, index: dict, written: int, unit: str = "recordings") -> str:
    """What a job did to a folder: `kept` if all shards were there and nothing that they were made of has changed."""
    shards = len(index["shards"])
    if not written:
        return f"kept {out}, whose {unit} have not changed: {shards} shards"
    return f"wrote {out}: {shards} shards" + (f" ({shards - written} kept)" if written < shards else "")


@command.command()
@click.argument("manifest", type=Place())
@click.option("--against", type=PathName(path_type=Path), help="Another manifest, which must not share any recording.")
@click.option(
    "--tokenizer",
    type=PathName(path_type=Path),
    help="Also count words that are too close together for their frames.",
)
@rule_options
def validate(manifest, against, tokenizer, strict, speaker, channels, min_score) -> None:
    """Check every recording and transcript of MANIFEST (or of a folder), and report what is wrong.

    Exits with 3 if nothing is usable; with --strict, if anything is rejected or flagged.

    \b
    Example:
      moshijax data validate calls/manifest.jsonl --against heldout/manifest.jsonl
    """
    from moshijax.data.checks import validate as check
    from moshijax.data.manifest import read_recordings
    from moshijax.data.twins import overlap

    content = read_recordings(manifest)
    rules = rules_of(strict, speaker, channels, min_score)
    report: Report
    with ProgressBar("checking", len(content.items)) as update:
        done = iter(range(1, len(content.items) + 1))
        report = check(content.items, rules, lambda: update(next(done)))
    tell(report)
    if tokenizer is not None:
        _tell_crowding(content, rules, tokenizer)
    if against is not None:
        shared = overlap(content.items, read_recordings(against).items)
        if shared:
            first, second = shared[0]
            raise DataError(
                f"{len(shared)} recordings of {manifest} are also in {against}, such as {first} = {second}: "
                "take them out of one of the two"
            )
        click.echo(f"no recording is also in {against}")
    report.require_usable(manifest, strict=strict)


def _tell_crowding(content, rules, tokenizer: Path) -> None:
    from moshijax.codec import configs
    from moshijax.data.checks import check_header
    from moshijax.data.interleave import PlacementCounts, place_text
    from moshijax.data.text import Tokenizer

    encode = Tokenizer.load(tokenizer).encode
    rate, counts, unknown = configs.MIMI.frame_rate, PlacementCounts(), []
    for item in content.items:
        checked = check_header(item, rules)
        if checked.rejected is None:
            frames = int(-(-checked.info.duration * rate // 1))
            found = place_text(checked.words, frames, rate, encode)[1]
            counts += found
            unknown += [(word, number, item.id) for word, number in found.unknown.items()]
    click.echo(
        f"text row at {rate} frames/s: {counts.words} words placed, {counts.shifted} shifted later, "
        f"{counts.pulled} pulled earlier, {counts.lost_tokens} tokens lost"
    )
    for word, number, name in unknown[:SHOWN]:
        click.echo(f"  the tokenizer lacks characters of {word!r}, {number} times in {name}")
    if unknown:
        click.echo(f"  {counts.unknown.total()} such words are left out of the text; byte_fallback writes all of them")


@command.command()
@click.argument("dataset", type=PathName(path_type=Path))
@click.argument("item", default="0")
@click.option("--tokenizer", type=PathName(path_type=Path), help="Show the text row too.")
@click.option("--width", type=click.IntRange(10), default=100, help="Frames per block of lines.")
def inspect(dataset: Path, item: str, tokenizer: Path | None, width: int) -> None:
    """Show one ITEM (number or id) of a prepared DATASET as a picture in text.

    \b
    Example:
      moshijax data inspect prepared 12 --tokenizer runs/first/lm/tokenizer.model
    """
    from moshijax.data.look import find, picture
    from moshijax.data.records import RecordSource
    from moshijax.data.text import Tokenizer

    source = _dialogues(RecordSource(dataset))
    codec = source.index["codec"]
    model = None if tokenizer is None else Tokenizer.load(tokenizer)
    for line in picture(find(source, item), codec["sample_rate"] / codec["frame_size"], model, width):
        click.echo(line)


def _dialogues(source):
    if source.index["kind"] != "dialogue":
        raise DataError(f"{source.folder} holds {source.index['kind']} data: give a folder of prepared recordings")
    return source


@command.command()
@click.argument("dataset", type=PathName(path_type=Path))
@click.option("--tokenizer", type=PathName(path_type=Path), help="Also count how full the text row is.")
@click.option("--out", type=PathName(path_type=Path), help="The page. Default: report.html in DATASET.")
def report(dataset: Path, tokenizer: Path | None, out: Path | None) -> None:
    """Summarise a prepared DATASET on a page: lengths, words, talk and overlap, code use, findings.

    \b
    Example:
      moshijax data report prepared --tokenizer runs/first/lm/tokenizer.model
    """
    from moshijax.data.look import write_page
    from moshijax.data.records import RecordSource
    from moshijax.data.text import Tokenizer

    source = _dialogues(RecordSource(dataset))
    out = out or dataset / "report.html"
    files.check_outputs([out], (tokenizer, *(file for file in dataset.iterdir() if file.suffix != ".html")))
    with ProgressBar("reading", len(source)) as update:
        summary = write_page(source, out, None if tokenizer is None else Tokenizer.load(tokenizer), update)
    words: Counter[str] = Counter(summary["words"])
    click.echo(f"{summary['items']} items, {summary['seconds'] / 60:.1f} minutes, {words.total()} words")
    click.echo(f"talk: model {summary['talk_share']['model']:.1%}, user {summary['talk_share']['user']:.1%}, "
               f"both at once {summary['overlap_share']:.1%}")  # fmt: skip
    if "text" in summary:
        text = summary["text"]
        click.echo(f"text row: {text['filled_share']:.1%} filled; {text['shifted']} words shifted later, "
                   f"{text['pulled']} pulled earlier, {text['unknown'].total()} left out, "
                   f"{text['lost_tokens']} tokens lost")  # fmt: skip
    click.echo(f"wrote {out}")


@command.command()
@click.argument("manifest", type=Place())
@click.argument("out", type=Place(), required=False)
@click.option(
    "--kind",
    type=click.Choice(["phonemes", "wavlm"]),
    default="phonemes",
    show_default=True,
    help="Source of the features.",
)
@click.option(
    "--model", help="For --kind wavlm: folder or name of a WavLM, HuBERT or wav2vec 2.0 model for Transformers."
)
@click.option(
    "--layer", type=int, default=-1, show_default=True, help="For --kind wavlm: the layer whose hidden states are used."
)
@runner_options
@rule_options
def teacher(manifest, out, kind, model, layer, runner, runner_options, strict, speaker, channels, min_score) -> None:
    """Compute the features that the codec's semantic level is distilled from, 50 per second and channel.

    They go to OUT (default: the folder `teacher` beside MANIFEST) with a `teacher.json` that names kind, size and rate.
    After an interruption the same command continues after the last complete shard.
    The kind `phonemes` reads the list "phonemes" of every sidecar file. The kind `wavlm` (extra `teacher`) runs a
    speech model on the sound alone; MANIFEST may then be a folder of any audio files.

    \b
    Example:
      moshijax data teacher calls/manifest.jsonl
      moshijax data teacher speech --kind wavlm --model wavlm-large
    """
    from moshijax.data.manifest import read_manifest, read_recordings
    from moshijax.data.on_beam import runner_of
    from moshijax.data.teacher import compute_features, make_teacher

    works = runner_of(runner, runner_options)
    content = read_manifest(manifest) if kind == "phonemes" else read_recordings(manifest)
    out = out or content.path.parent / "teacher"
    files.check_folder(out, (manifest,), new=False)
    rules = rules_of(strict, speaker, channels, min_score)
    maker = make_teacher(kind, model, layer)
    with ProgressBar("features", len(content.items)) as update:
        index, found, written = compute_features(
            content, out, maker, rules, progress=lambda done, total, _: update(done, total), runner=works
        )
    tell(found)
    click.echo(f"{_done(out, index, written)}, {index['kind']}, {index['dim']} numbers, {index['rate']} Hz")
