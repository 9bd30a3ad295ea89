"""`moshijax serve`: real-time calls on an exported artifact."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path
from typing import Any

import click

from moshijax.cli.common import FiniteRange, PathName, show_log
from moshijax.errors import ConfigError

QUICKSTART = Path("runs/quickstart/artifact")


@click.command()
@click.argument("artifact", type=PathName(path_type=Path), required=False)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; 0.0.0.0 is all of them.")
@click.option("--port", type=click.IntRange(0, 65535), default=8998, show_default=True, help="0 takes any free one.")
@click.option("--calls", type=click.IntRange(min=1), help="Callers at once. Default: the artifact's largest batch.")
@click.option("--tls", "own_tls", is_flag=True, help="https, with a certificate that is made here.")
@click.option("--tls-cert", type=PathName(path_type=Path), help="https, with this certificate (PEM).")
@click.option("--tls-key", type=PathName(path_type=Path), help="Its key (PEM).")
@click.option("--token", envvar="MOSHIJAX_TOKEN", help="What callers must know. Also from MOSHIJAX_TOKEN.")
@click.option("--origin", "origins", multiple=True, metavar="URL", help="Pages of this other host may call.")
@click.option("--proxied", is_flag=True, help="Take callers' addresses from X-Forwarded-For, which a proxy sets.")
@click.option("--prompts", type=PathName(path_type=Path), help="Folder of voices (.wav) and texts (.txt) to ask for.")
@click.option(
    "--calls-per-minute", type=click.IntRange(min=1), default=60, show_default=True, help="From one address, at most."
)
@click.option("--call-seconds", type=FiniteRange(1), default=3600.0, show_default=True, help="The longest call.")
@click.option("--drain-seconds", type=FiniteRange(0), default=30.0, show_default=True, help="For calls after SIGTERM.")
@click.option("--platform", type=click.Choice(["cpu", "cuda", "tpu"]), help="Where to run. Default: what jax finds.")
def command(
    artifact: Path | None,
    calls: int | None,
    platform: str | None,
    prompts: Path | None,
    own_tls: bool,
    tls_cert: Path | None,
    tls_key: Path | None,
    **options: Any,
) -> None:
    """Answer calls on ARTIFACT in real time, with a page for browsers.

    Without ARTIFACT, the one of the last quickstart (runs/quickstart) answers. SIGTERM or Ctrl-C lets calls end.

    \b
    Example:
      moshijax serve runs/first/artifact
    """
    artifact = artifact or _of_quickstart()
    if (tls_cert is None) != (tls_key is None) or (own_tls and tls_cert):
        raise ConfigError("give --tls-cert and --tls-key together, or --tls alone")
    from moshijax.serve import cache, launch, tls
    from moshijax.serve.settings import Settings

    show_log()
    certificate = tls.own_certificate(cache.folder() / "tls") if own_tls else (tls_cert, tls_key)
    context = tls.context(*certificate) if certificate[0] else None
    make = functools.partial(Settings, tls=context, **options)
    asyncio.run(launch.serve(artifact, calls, platform, prompts, lambda found: make(prompts=found), click.echo))


def _of_quickstart() -> Path:
    if not QUICKSTART.is_dir():
        raise ConfigError(f"there is no {QUICKSTART}: name an artifact, or make one with moshijax quickstart")
    return QUICKSTART
