"""`moshijax run`: a recorded call played through an exported artifact."""

from __future__ import annotations

import click

from moshijax.cli.common import ProgressBar
from moshijax.runtime.artifact import PLATFORMS


@click.command()
@click.argument("artifact", type=click.Path())
@click.option("--user", type=click.Path(), help="Recording of the user, for artifacts that hear.")
@click.option("--text", help="Text to speak, for synthesis; a new line is another speaker's turn.")
@click.option(
    "--out", type=click.Path(), help="WAV to write: left the model, right the user; synthesis has one channel."
)
@click.option("--text-out", type=click.Path(), help="JSON to write: text, words with times, tokens, frame timings.")
@click.option("--as-heard", is_flag=True, help="Add the delay of a live call to the model's channel.")
@click.option("--channel", type=click.Choice(["left", "right"]), help="The user's channel in a stereo recording.")
@click.option("--tail", "tail_seconds", type=float, help="Seconds of silence after the recording. Default: as needed.")
@click.option("--condition", "conditions", multiple=True, metavar="NAME=VALUE", help="Another than the artifact's.")
@click.option("--voice-prompt", type=click.Path(), help="Recording of the voice to speak with.")
@click.option("--text-prompt", help="What the model is told before the call, such as its role.")
@click.option("--seed", default=0, show_default=True, help="Seed of all sampling.")
@click.option("--temperature", type=float, help="Audio temperature; 0 is greedy. Default: the artifact's.")
@click.option("--text-temperature", type=float, help="Text temperature; 0 is greedy.")
@click.option("--top-k", type=int, help="Audio top-k; 0 is off.")
@click.option("--text-top-k", type=int, help="Text top-k; 0 is off.")
@click.option("--pad-bonus", type=float, help="Added to the text logit of PAD: above 0 the model says less.")
@click.option("--guidance", type=float, help="Coefficient of guidance, where the artifact has it; 1 is off.")
@click.option("--batch", type=int, help="Which of the artifact's batch sizes to run. Default: the smallest.")
@click.option("--platform", type=click.Choice(PLATFORMS), help="Where to run. Default: what jax finds here.")
def command(artifact: str, user: str | None, out: str | None, **options) -> None:
    """Play a recorded user channel through ARTIFACT, frame by frame, as a live call would; or let it speak a text.

    Writes what the model says as audio and prints its words with their times and how the steps kept up with real
    time. Models of conversation, recognition and translation take --user, those of synthesis --text. The same without
    click and rich: python -m moshijax.runtime ARTIFACT --user IN.wav --out OUT.wav

    \b
    Example:
      moshijax run runs/first/artifact --user question.wav --out reply.wav --text-out reply.json
      moshijax run speech --text "Good morning." --out morning.wav
    """
    from moshijax.runtime import play as call
    from moshijax.runtime.rows import SAMPLING_INPUTS

    sampling = {name: value for name in SAMPLING_INPUTS if (value := options.pop(name)) is not None}
    with ProgressBar("playing") as progress:
        result = call.run(artifact, user, out, sampling=sampling, progress=progress, **options)
    for line in call.report_lines(result):
        click.echo(line)
