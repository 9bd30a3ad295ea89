"""`moshijax export`: the streaming artifact of a trained model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from moshijax import files
from moshijax.cli.common import FiniteRange, PathName, ProgressBar
from moshijax.errors import ConfigError

#: Options whose keywords are other words.
OPTIONS = {"batches": "batch", "conditions": "condition", "null_conditions": "null-condition"}


def _names(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))


def _numbers(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    try:
        names = _names(context, parameter, value)
        return names and tuple(int(name) for name in names)
    except ValueError:
        raise ConfigError(f"--batch {value} must be whole numbers with commas between them, as in 1,16") from None


@click.command()
@click.argument("source", type=PathName())
@click.argument("artifact", type=PathName())
@click.option("--platforms", callback=_names, help="Any of cpu,cuda,tpu. Default: cpu, or as in the older artifact.")
@click.option(
    "--batch",
    "batches",
    callback=_numbers,
    help="Batch sizes: calls that a program steps at once. Default: 1, or as in the older artifact.",
)
@click.option(
    "--weights-dtype",
    type=click.Choice(["float32", "bfloat16", "int8"]),
    help="How the weights of the model are stored; codec and vocoder are float32.",
)
@click.option(
    "--cache-dtype",
    type=click.Choice(["computed", "int8"]),
    help="Type of the keys and values of calls. Default: that of the computation, or as in the older artifact.",
)
@click.option("--top-k-limit", type=click.IntRange(min=0), help="The largest top-k a caller may ask for. Default: 250.")
@click.option("--codec", type=PathName(), help="The codec, where the source does not lead to it.")
@click.option("--tokenizer", type=PathName(), help="SentencePiece model or tokenizer.json, where the source has none.")
@click.option(
    "--policy",
    type=click.Choice(["conversation", "recognition", "synthesis", "translation"]),
    help="What the model is used for. Default: what published weights say, else conversation.",
)
@click.option("--vocoder", type=PathName(), help="The unit vocoder of a LLaMA-Omni, which SOURCE is then.")
@click.option("--condition", "conditions", multiple=True, metavar="NAME=VALUE", help="Default condition of calls.")
@click.option(
    "--null-condition", "null_conditions", multiple=True, metavar="NAME=VALUE", help="Condition of the unguided branch."
)
@click.option(
    "--guidance", type=FiniteRange(0, 1e6), help="Build classifier-free guidance in, with this coefficient by default."
)
def command(
    source: str, artifact: str, codec: str | None, tokenizer: str | None, vocoder: str | None, **options: Any
) -> None:
    """Build the streaming artifact ARTIFACT from SOURCE.

    SOURCE is the run directory of a language model, published weights, or an older artifact, from which everything is
    rebuilt. The platforms need not be present on this machine. With --vocoder, SOURCE is a LLaMA-Omni, published or a
    run, and the artifact answers questions one by one.

    \b
    Example:
      moshijax export runs/lm artifact --platforms cpu,cuda,tpu --batch 1,16
      moshijax export Llama-3.1-8B-Omni artifact --vocoder vocoder --platforms cuda --weights-dtype bfloat16
    """
    from moshijax.export import artifact as artifacts
    from moshijax.export import source as sources
    from moshijax.runtime.manifest import ANSWER, MANIFEST, read

    use = {name: options.pop(name) for name in ("policy", "conditions", "null_conditions", "guidance")}
    options = {name: value for name, value in options.items() if value is not None}
    artifacts.check_request(options.get("platforms", ("cpu",)), options.get("batches", (1,)))
    files.check_folder(artifact, (source, codec, tokenizer, vocoder))
    unused: list[str] = []
    with ProgressBar("reading the models") as bar:

        def progress(name: str) -> None:
            bar.retitle(f"writing {name}")

        is_artifact = (Path(source) / MANIFEST).is_file()
        if vocoder or (is_artifact and read(source)["config"]["policy"]["type"] == ANSWER):
            path = _answers(source, artifact, vocoder, tokenizer, {"codec": codec, **use, **options}, progress)
        elif is_artifact:
            if codec or tokenizer or any(use.values()):
                raise ConfigError(
                    f"{source} is an artifact and has its codec, text pieces, use and conditions; omit --codec, "
                    "--tokenizer, --policy, --condition and --guidance"
                )
            path = artifacts.rebuild(source, artifact, progress=progress, **options)
        else:
            *models, used = sources.load(source, codec, tokenizer, **use)
            path = artifacts.build(*models, artifact, progress=progress, **used, **options)
            unused = sources.unused_fields(source)
    size = sum(file.stat().st_size for file in path.iterdir())
    if unused:
        click.echo(f"not used, because an artifact has no place for it: {', '.join(unused)}")
    click.echo(f"wrote {path}: {len(list(path.iterdir()))} files, {size / 1e6:.1f} MB")


def _answers(
    source: str,
    artifact: str,
    vocoder: str | None,
    tokenizer: str | None,
    options: dict[str, Any],
    progress: Callable[[str], None],
) -> Path:
    """Build the artifact of a LLaMA-Omni, or without a vocoder from another artifact.

    Raises:
      ConfigError: options of calls, or that the other artifact says; else as `moshijax.export.answer.build`.
    """
    from moshijax.export import answer, answer_source
    from moshijax.weights import omni

    taken = {name: options.pop(name) for name in ("platforms", "weights_dtype", "top_k_limit") if name in options}
    for name, value in options.items():
        if value:
            option = OPTIONS.get(name, name.replace("_", "-"))
            raise ConfigError(f"--{option} is for calls, and {source} answers questions; omit it")
    if vocoder is None:
        if tokenizer:
            raise ConfigError(f"{source} is an artifact and has its text in it; omit --tokenizer")
        return answer.rebuild(source, artifact, progress=progress, **taken)
    voice = omni.load_vocoder(vocoder)
    model, text, trim = answer_source.load(source, tokenizer)
    return answer.build(model, voice, text, artifact, trim=trim, progress=progress, **taken)
