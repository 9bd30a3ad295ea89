"""`moshijax data text` and `moshijax data tokenizer`: raw text to clean text, and to a vocabulary."""

from __future__ import annotations

from pathlib import Path

import click

from moshijax import files
from moshijax.cli.common import SEED, FiniteRange, PathName, ProgressBar, workers_option
from moshijax.cli.recordings import tell_findings
from moshijax.errors import ConfigError, Stopped


@click.command()
@click.argument("inputs", metavar="FILES...", type=PathName(path_type=Path), nargs=-1, required=True)
@click.argument("out", type=PathName(path_type=Path))
@click.option("--field", default="text", show_default=True, help="Of JSON lines: which holds the text, as in a.b.")
@click.option("--language", default="en", show_default=True, help="Code of the language to keep, or any.")
@click.option(
    "--min-language", type=FiniteRange(0, 1), default=0.85, show_default=True, help="Least probability of it."
)
@click.option(
    "--language-model",
    type=PathName(path_type=Path),
    help="fastText model that tells languages. Default: lid.176.ftz, which the extra text brings.",
)
@click.option(
    "--quality",
    default="rules",
    show_default=True,
    metavar="rules|none|MODEL",
    help="Gopher's rules, nothing, or a fastText model that tells good sources from the web.",
)
@click.option("--min-quality", type=FiniteRange(0, 1), default=0.5, show_default=True, help="For a model: the least.")
@click.option("--web-label", default="web", show_default=True, help="For a model: its label for the web.")
@click.option(
    "--duplicate-model", type=PathName(path_type=Path), help="fastText model that labels lines `duplicate` or not."
)
@click.option(
    "--against",
    type=PathName(path_type=Path),
    multiple=True,
    help="Texts of an evaluation: documents that share a stretch of words with them are left out.",
)
@click.option("--against-field", default="text", show_default=True, help="Of JSON lines of evaluations: the field.")
@click.option(
    "--shard-files",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Files of a shard, in which a line is kept once.",
)
@workers_option
def text(
    inputs, out, field, language, min_language, language_model, quality, min_quality, web_label, duplicate_model,
    against, against_field, shard_files, workers,
) -> None:  # fmt: skip
    """Filter the documents of FILES and write text-*.txt, one document a line, and report.json to the folder OUT.

    FILES are web archives (.warc, .wet), dumps of Wikipedia and its family or of StackExchange (.xml), JSON lines
    (.jsonl) or texts (.txt, one document a line), also compressed, or patterns for such names in quotes. Lines and
    documents that are there before, nearly the same, of another language or of low quality are left out and counted.
    Every process filters a shard at a time; what comes out is the same for any number of them. Run the same command
    again after an interruption: complete shards are kept.

    \b
    Example:
      moshijax data text 'crawl/*.warc.wet.gz' web --shard-files 8 --against mmlu.jsonl
      moshijax data text enwiki-latest-pages-articles1.xml-p1p41242.bz2 wiki --quality none
      moshijax data prepare 'web/*.txt' 'wiki/*.txt' packed --tokenizer tokenizer.model
    """
    from moshijax.data.raw_text import contamination
    from moshijax.data.raw_text.collect import REPORT, collect
    from moshijax.data.raw_text.rules import TextRules

    files.check_folder(out, (*inputs, *against, language_model, duplicate_model), new=False)
    evaluations = contamination.read(against, against_field)
    rules = TextRules(
        language=None if language == "any" else language,
        min_language=min_language,
        language_model=language_model,
        heuristics=quality == "rules",
        quality_model=None if quality in ("rules", "none") else Path(quality),
        web_label=web_label,
        min_quality=min_quality,
        duplicate_model=duplicate_model,
        evaluations=evaluations,
    )
    try:
        with ProgressBar("filtering") as update:
            made = collect(
                inputs, out, rules, field, shard_files,
                lambda done, total, found: update(done, total, f"{found.usable} documents"), workers,
            )  # fmt: skip
    except KeyboardInterrupt:
        raise Stopped(f"stopped; complete shards are in {out}: run the same command again to continue") from None
    report = made.report
    click.echo(f"{report.usable} of {report.items} documents kept: {report.words} words")
    tell_findings(report)
    if made.lines_removed:
        click.echo(f"  left out {made.lines_removed} lines of kept documents")
    if against:
        click.echo(f"  looked for {evaluations.texts - evaluations.short} texts of evaluations; "
                   f"{evaluations.short} are too short to look for")  # fmt: skip
    did = "wrote" if made.written else "kept"
    click.echo(f"{did} {out}: {len(made.files)} files of text, {REPORT}")


@click.command()
@click.argument("inputs", metavar="TEXTS...", type=PathName(path_type=Path), nargs=-1, required=True)
@click.argument("out", type=PathName(path_type=Path))
@click.option("--vocab-size", type=click.IntRange(5), default=32_000, show_default=True, help="Number of pieces.")
@click.option(
    "--sentences", type=click.IntRange(1), default=1_000_000, show_default=True, help="Stretches of text to draw."
)
@click.option(
    "--character-coverage",
    type=FiniteRange(0.9, 1),
    default=0.9999,
    show_default=True,
    help="Share of all letters whose characters are pieces; others are written as bytes.",
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the draw.")
def tokenizer(inputs, out, vocab_size, sentences, character_coverage, seed) -> None:
    """Train a SentencePiece model on TEXTS, one document a line, and write it to the file OUT.

    It is a unigram model as Moshi's: digits are split, characters that are no piece become bytes, and the ids 0 to 3
    are EPAD, BOS, EOS and PAD. The same texts, options and seed give the same file.

    \b
    Example:
      moshijax data tokenizer 'web/*.txt' 'wiki/*.txt' tokenizer.model
    """
    from moshijax.data.text import train_tokenizer
    from moshijax.data.vocabulary import sample

    files.check_outputs([out], inputs)
    if out.suffix != ".model":
        raise ConfigError(f"{out} is to hold a SentencePiece model: name it {out.stem}.model")
    with ProgressBar("drawing") as update:
        drawn = sample(inputs, sentences, seed, update)
    made = train_tokenizer(drawn.sentences, vocab_size, character_coverage=character_coverage)
    made.save(out)
    click.echo(f"drew {len(drawn.sentences)} of {drawn.of} sentences of {drawn.documents} documents")
    for name, count in sorted(drawn.kinds.items()):
        click.echo(f"  rejected {name}: {count} documents")
    if drawn.first:
        click.echo(f"  rejected {drawn.first}")
    click.echo(f"wrote {out}: {made.vocab_size} pieces, sha256 {made.sha256[:12]}")
    if made.vocab_size < vocab_size:
        click.echo(f"  --vocab-size {vocab_size} asks for more pieces than there are in so little text")
