"""`moshijax data`: recordings or texts to shards of grids, and a look inside."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from moshijax import files
from moshijax.cli.common import SEED, FiniteRange, PathName, ProgressBar
from moshijax.errors import ConfigError, DataError, Stopped

if TYPE_CHECKING:
    from moshijax.data.checks import CheckRules, Report

_SHOWN = 10  # rejected items printed one by one; all of them are in the report file


@click.group()
def command() -> None:
    """Make, check and inspect training data.

    \b
    Example:
      moshijax data synthesize data/dialogues calls --seed 1
      moshijax data prepare calls/manifest.jsonl prepared --codec runs/first/codec
      moshijax data report prepared
    """


def _speakers(pairs: tuple[str, ...]) -> dict[str, str]:
    from moshijax.data.transcript import SPEAKERS

    speakers = dict(SPEAKERS)
    for pair in pairs:
        label, equals, speaker = pair.rpartition("=")
        if not equals or speaker not in ("model", "user"):
            raise ConfigError(f"--speaker {pair!r}: write LABEL=model or LABEL=user")
        speakers[label] = speaker
    return speakers


def _channels(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    try:
        model, user = (int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--channels {text!r}: write two channel numbers from 0, such as 0,1") from None
    return model, user


def rule_options(function):
    """Add the options that decide how recordings are judged to a command."""
    for option in (
        click.option("--strict", is_flag=True, help="Exit with 3 if any item is rejected or flagged."),
        click.option(
            "--speaker",
            "speaker",
            multiple=True,
            metavar="LABEL=WHO",
            help="Which speaker a label means: model or user.",
        ),
        click.option("--channels", metavar="MODEL,USER", help="Channel numbers, counted from 0; 1,0 swaps them."),
        click.option(
            "--min-score", type=FiniteRange(), default=0.0, help="Alignment score below which a word counts as low."
        ),
    ):
        function = option(function)
    return function


def _rules(strict: bool, speaker: tuple[str, ...], channels: str | None, min_score: float) -> CheckRules:
    from moshijax.data.checks import CheckRules

    return CheckRules(
        speakers=_speakers(speaker), channels=_channels(channels), min_score=min_score, strict=strict
    )  # fmt: skip


def _tell(report: Report) -> None:
    """Print the counts of a report: every rejection kind, every flag, and the first rejected items."""
    click.echo(
        f"{report.usable} of {report.items} items usable: {report.seconds / 60:.1f} minutes, {report.words} words"
    )
    for name, count in sorted(report.flags.items()):
        click.echo(f"  flagged {name}: {count} items, such as {report.flagged[name]}")
    for name, count in sorted(report.kinds.items()):
        click.echo(f"  rejected {name}: {count} items")
    for name, reason in report.rejected[:_SHOWN]:
        click.echo(f"  rejected {name}: {reason}")
    if len(report.rejected) > _SHOWN:
        click.echo(f"  ... and {len(report.rejected) - _SHOWN} more")


@command.command()
@click.argument("texts", type=PathName(path_type=Path))
@click.argument("out", type=PathName(path_type=Path))
@click.option("--seed", type=SEED, default=0, show_default=True, help="The same seed gives the same bytes.")
@click.option(
    "--copies", type=click.IntRange(1, 100_000), default=1, help="Versions of each dialogue, each in other voices."
)
@click.option(
    "--calls", type=click.IntRange(1, 10_000_000), default=1000, help="Number of calls to draw from a question file."
)
@click.option(
    "--workers", type=click.IntRange(1), default=None, help="Number of processes. Default: one per core, at most 8."
)
def synthesize(texts: Path, out: Path, seed: int, copies: int, calls: int, workers: int | None) -> None:
    """Speak TEXTS with espeak-ng: two-channel recordings, exact word times and a manifest in the folder OUT.

    TEXTS is a file of dialogues, a folder of such files, or a file of lines
    `question => answer` (lines without an arrow get no answer). The name of a
    folder that ships with moshijax, such as data/dialogues, works from anywhere.

    \b
    Example:
      moshijax data synthesize data/dialogues calls --seed 1 --copies 10
      moshijax data synthesize data/small_world/world.txt answers --calls 2000
    """
    from moshijax.data.synthesis import draw_calls, parse_world
    from moshijax.data.synthesis import texts as scripts
    from moshijax.data.synthesis.run import synthesize as speak

    texts = shipped(texts)
    files.check_folder(out, (texts,), new=False)
    if texts.is_file() and scripts.is_world(scripts.read_text(texts)):
        world = parse_world(scripts.read_text(texts), str(texts))
        answered = calls if not world.unrelated else calls * 3 // 4 if world.questions else 0
        dialogues = draw_calls(world, answered, calls - answered, seed=seed)
    else:
        dialogues = scripts.load(texts, seed=seed, copies=copies)
    with ProgressBar("speaking", len(dialogues)) as update:
        result = speak(dialogues, out, seed=seed, workers=workers or min(8, os.cpu_count() or 1), progress=update)
    click.echo(
        f"wrote {result.manifest}: {result.items} recordings, {result.seconds / 60:.1f} minutes, {result.words} words"
    )
    for name, reason in result.rejected[:_SHOWN]:
        click.echo(f"  not spoken {name}: {reason}")
    if result.rejected:
        click.echo(f"  {len(result.rejected)} of {len(dialogues)} dialogues were not spoken")


def shipped(path: Path) -> Path:
    """Return the path itself if it exists, else the file or folder of that name that ships with the package."""
    if path.exists() or path.parts[:1] != ("data",):
        return path
    from moshijax.shipped import folder

    found = folder(path.as_posix())
    return found if found.exists() else path


@command.command()
@click.argument("manifest", type=PathName(path_type=Path))
@click.argument("out", type=PathName(path_type=Path))
@click.option("--codec", type=PathName(), help="Codec: a run, a published file or a folder with one.")
@click.option("--num-codebooks", type=int, help="Number of codebooks to keep. Default: all that the codec uses.")
@click.option("--shard-items", type=click.IntRange(1), default=256, show_default=True, help="Recordings per shard.")
@click.option("--tokenizer", type=PathName(path_type=Path), help="For text files: the tokenizer.model to pack with.")
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
    "--copies", type=click.IntRange(1), default=1, help="Records per recording, each with its own random draws."
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed for main speakers and augmentation.")
@rule_options
def prepare(
    manifest, out, codec, num_codebooks, shard_items, tokenizer, streams, augment, noise, copies, seed, strict, speaker,
    channels, min_score,
) -> None:  # fmt: skip
    """Check the recordings of MANIFEST, encode them, and write shards of codes and words to the folder OUT.

    Run the same command again after an interruption: complete shards are kept. A MANIFEST that ends in .txt is text,
    one document per line, and is packed for text-only training steps (with --tokenizer, without --codec).

    \b
    Example:
      moshijax data prepare calls/manifest.jsonl prepared --codec runs/first/codec --num-codebooks 8
      moshijax data prepare podcasts/manifest.jsonl podcasts --codec models/moshiko --streams diarized --copies 2
      moshijax data prepare stories.txt stories --tokenizer runs/first/lm/tokenizer.model
    """
    from moshijax.data.augmentation import UserAugmentation
    from moshijax.data.manifest import read_manifest
    from moshijax.data.prepare import PrepareConfig
    from moshijax.data.prepare import prepare as run

    files.check_folder(out, (manifest, codec, tokenizer, noise), new=False)
    if manifest.suffix == ".txt":
        if tokenizer is None:
            raise ConfigError(f"{manifest} is text, which is packed with a tokenizer: add --tokenizer tokenizer.model")
        from moshijax.data.packed_text import prepare_text
        from moshijax.data.text import Tokenizer

        index = prepare_text(manifest, out, Tokenizer.load(tokenizer))
        click.echo(f"wrote {out}: {index['documents']} documents, {index['tokens']} tokens")
        return
    if codec is None:
        raise ConfigError("recordings are encoded with a codec: add --codec RUN_OR_FILE")
    content = read_manifest(manifest)
    rules = dataclasses.replace(_rules(strict, speaker, channels, min_score), streams=streams)
    if noise is not None and not augment:
        raise ConfigError("--noise is for --augment: add it, or leave --noise out")
    from moshijax.data.encoder import CodecEncoder

    encoder = CodecEncoder.load(codec, num_codebooks)
    augmentation = UserAugmentation(clips=noise) if augment else None
    config = PrepareConfig(rules, shard_items, augmentation=augmentation, copies=copies, seed=seed)
    try:
        with ProgressBar("encoding", len(content.items)) as update:
            index, report, written = run(
                content, out, encoder, config,
                lambda done, total, found: update(done, total, f"{found.seconds / 60:.1f} min"),
            )  # fmt: skip
    except KeyboardInterrupt:
        raise Stopped(f"stopped; complete shards are in {out}: run the same command again to continue") from None
    _tell(report)
    click.echo(f"{_done(out, index, written)}, {index['codec']['num_codebooks']} codebooks")


def _done(out: Path, index: dict, written: int) -> str:
    """What a job did to a folder: `kept` if all shards were there and nothing that they were made of has changed."""
    shards = len(index["shards"])
    if not written:
        return f"kept {out}, whose recordings have not changed: {shards} shards"
    return f"wrote {out}: {shards} shards" + (f" ({shards - written} kept)" if written < shards else "")


@command.command()
@click.argument("manifest", type=PathName(path_type=Path))
@click.option("--against", type=PathName(path_type=Path), help="Another manifest, which must not share any recording.")
@click.option(
    "--tokenizer",
    type=PathName(path_type=Path),
    help="Also count words that are too close together for their frames.",
)
@rule_options
def validate(manifest, against, tokenizer, strict, speaker, channels, min_score) -> None:
    """Check every recording and transcript of MANIFEST, and report what is wrong.

    Exits with 3 if nothing is usable; with --strict, if anything is rejected or flagged.

    \b
    Example:
      moshijax data validate calls/manifest.jsonl --against heldout/manifest.jsonl
    """
    from moshijax.data.checks import overlap
    from moshijax.data.checks import validate as check
    from moshijax.data.manifest import read_manifest

    content = read_manifest(manifest)
    rules = _rules(strict, speaker, channels, min_score)
    report: Report
    with ProgressBar("checking", len(content.items)) as update:
        done = iter(range(1, len(content.items) + 1))
        report = check(content.items, rules, lambda: update(next(done)))
    _tell(report)
    if tokenizer is not None:
        _tell_crowding(content, rules, tokenizer)
    if against is not None:
        shared = overlap(content.items, read_manifest(against).items)
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
    rate, counts = configs.MIMI.frame_rate, PlacementCounts()
    for item in content.items:
        checked = check_header(item, rules)
        if checked.rejected is None:
            frames = int(-(-checked.info.duration * rate // 1))
            counts += place_text(checked.words, frames, rate, encode)[1]
    click.echo(
        f"text row at {rate} frames/s: {counts.words} words placed, {counts.shifted} shifted later, "
        f"{counts.pulled} pulled earlier, {counts.lost_tokens} tokens lost"
    )


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
                   f"{text['pulled']} pulled earlier, {text['lost_tokens']} tokens lost")  # fmt: skip
    click.echo(f"wrote {out}")


@command.command()
@click.argument("manifest", type=PathName(path_type=Path))
@click.argument("out", type=PathName(path_type=Path), required=False)
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
@rule_options
def teacher(manifest, out, kind, model, layer, strict, speaker, channels, min_score) -> None:
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
    from moshijax.data.teacher import compute_features, make_teacher

    content = read_manifest(manifest) if kind == "phonemes" else read_recordings(manifest)
    out = out or content.path.parent / "teacher"
    files.check_folder(out, (manifest,), new=False)
    rules = _rules(strict, speaker, channels, min_score)
    maker = make_teacher(kind, model, layer)
    with ProgressBar("features", len(content.items)) as update:
        index, found, written = compute_features(
            content, out, maker, rules, progress=lambda done, total, _: update(done, total)
        )
    _tell(found)
    click.echo(f"{_done(out, index, written)}, {index['kind']}, {index['dim']} numbers, {index['rate']} Hz")
