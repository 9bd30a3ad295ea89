"""`moshijax data dialogues`: scripts that a language model writes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from moshijax import files
from moshijax.cli.common import SEED, FiniteRange, PathName, ProgressBar
from moshijax.errors import ConfigError, Stopped

if TYPE_CHECKING:
    from moshijax.data.scripts import Generator


@click.command()
@click.argument("out", type=PathName(path_type=Path))
@click.option(
    "--generator", required=True, help="URL of an end-point of the OpenAI style, or a model's folder for Transformers."
)
@click.option("--model", default="", help="Name of the model, of an end-point.")
@click.option("--key", default="", help="Environment variable that holds the API key, of an end-point.")
@click.option("--device", default="cpu", show_default=True, help="Of PyTorch, for a folder.")
@click.option("--family", "families", multiple=True, help="Family of prompts; may be repeated. Default: all.")
@click.option("--given", multiple=True, metavar="PLACE=FILE", help="Entries for a place of the prompts, one per line.")
@click.option("--prompts", type=PathName(path_type=Path), help="Folder of families. Default: data/prompts.")
@click.option("--count", type=click.IntRange(1), default=100, show_default=True, help="Dialogues to ask for.")
@click.option("--turn-words", type=click.IntRange(1), default=80, show_default=True, help="Most words of an utterance.")
@click.option("--temperature", type=FiniteRange(0, 2), default=0.8, show_default=True, help="Of the draws of words.")
@click.option("--max-tokens", type=click.IntRange(1), default=1024, show_default=True, help="Most tokens of an answer.")
@click.option("--workers", type=click.IntRange(1), default=4, show_default=True, help="Requests at once.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed for prompts and answers.")
def command(
    out, generator, model, key, device, families, given, prompts, count, turn_words, temperature, max_tokens, workers,
    seed,
) -> None:  # fmt: skip
    """Let a language model write dialogues, and keep those that can be spoken in OUT/dialogues.txt.

    The families of prompts are in data/prompts. Answers are kept in OUT/answers: run the same command again after an
    interruption, or with a larger --count. Needs the extras `endpoint` (or `teacher`, for a folder) and `spoken`.

    \b
    Example:
      moshijax data dialogues scripts --generator http://localhost:8000/v1 --model llama --count 1000
      moshijax data dialogues facts --generator models/Qwen2.5-7B-Instruct --family knowledge --given paragraph=wiki.txt
    """
    from moshijax.data.scripts import load_families, write_scripts
    from moshijax.data.scripts.run import SCRIPT
    from moshijax.data.scripts.validation import ScriptRules
    from moshijax.shipped import folder

    places = _given(given)
    files.check_folder(out, (prompts, *places.values()), new=False)
    found = load_families(prompts or folder("data/prompts"), families, places)
    writer = _generator(generator, model, key, device, temperature, max_tokens)
    try:
        with ProgressBar("writing", count) as update:
            report = write_scripts(
                found, writer, out, count, seed, ScriptRules(turn_words), workers if "://" in generator else 1, update
            )
    except KeyboardInterrupt:
        raise Stopped("stopped; answers are kept: run the same command again to continue") from None
    click.echo(f"wrote {out / SCRIPT}: {report.kept.total()} dialogues of {report.asked} answers")
    for family in found:
        asked = report.kept[family.name] + report.families[family.name]
        click.echo(f"  {family.name}: {report.kept[family.name]} of {asked}")
    for name, number in sorted(report.rejected.items()):
        click.echo(f"  rejected {name}: {number} answers")


def _given(pairs: tuple[str, ...]) -> dict[str, Path]:
    found = {}
    for pair in pairs:
        place, equals, path = pair.partition("=")
        if not equals or not Path(path).is_file():
            raise ConfigError(f"--given {pair!r}: write PLACE=FILE, and a file that is there")
        found[place] = Path(path)
    return found


def _generator(where: str, model: str, key: str, device: str, temperature: float, max_tokens: int) -> Generator:
    from moshijax.data.endpoint import Endpoint
    from moshijax.data.scripts import ChatEndpoint, LocalModel

    if "://" in where:
        return ChatEndpoint(Endpoint(where, key), model, temperature, max_tokens)
    if model or key:
        raise ConfigError(f"--model and --key are for end-points, and {where!r} is a folder: leave them out")
    return LocalModel(where, device, temperature, max_tokens)
