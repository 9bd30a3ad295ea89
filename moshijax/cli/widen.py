"""`moshijax data widen`: narrow recordings with the highs that they lack."""

from __future__ import annotations

from pathlib import Path

import click

from moshijax import files
from moshijax.cli.common import FiniteRange, PathName
from moshijax.cli.recordings import max_rejected_option, run_stage
from moshijax.cli.transcribe import recognizer_of


@click.command()
@click.argument("recordings", type=PathName(path_type=Path))
@click.argument("out", type=PathName(path_type=Path))
@click.option(
    "--audiosr", required=True, type=PathName(path_type=Path), help="Python of an environment in which AudioSR is."
)
@click.option(
    "--audiosr-model", type=click.Choice(["speech", "basic"]), default="speech", show_default=True, help="Its weights."
)
@click.option(
    "--model",
    default="tiny.en",
    show_default=True,
    help="Whisper model of CTranslate2 that hears the words: a folder, tiny.en (extra hear), or a name in the cache.",
)
@click.option("--language", default="en", show_default=True, help="Code of the language that is spoken.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where both run.")
@click.option(
    "--max-changed",
    type=FiniteRange(0, 1),
    default=0.1,
    show_default=True,
    help="Share of words that are heard before or after alone, above which a recording is rejected.",
)
@max_rejected_option
def command(recordings, out, audiosr, audiosr_model, model, language, device, max_changed, max_rejected) -> None:
    """Give RECORDINGS, a folder or a manifest, the highs that they lack: WAV files at 48 kHz in OUT.

    Every recording is heard by a recogniser before and after, and rejected if its words changed; transcripts are
    copied. Run the same command again after an interruption. Nothing is downloaded.

    \b
    Example:
      moshijax data widen fisher wide --audiosr envs/audiosr/bin/python --device cuda
    """
    from moshijax.data.manifest import read_recordings
    from moshijax.data.remake import MANIFEST
    from moshijax.data.widen import widen
    from moshijax.data.widener import AudioSR
    from moshijax.data.word_sources import Heard

    files.check_folder(out, (recordings,), new=False)
    content = read_recordings(recordings)
    source, widener = Heard(recognizer_of(model, language, device)), AudioSR(audiosr, audiosr_model, device)
    try:
        found = run_stage(
            "widening", len(content.items), "finished recordings",
            lambda progress: widen(content, widener, source, out, max_changed, max_rejected, progress),
        )  # fmt: skip
    finally:
        widener.close()
    click.echo(f"{found.seconds / 3600:.2f} hours kept; wrote {out / MANIFEST}")
