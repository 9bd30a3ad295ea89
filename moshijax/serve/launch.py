"""A server from the command line's options: artifact, prompts, address, and what is printed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moshijax import files, runtime
from moshijax.errors import ConfigError, MoshijaxError
from moshijax.runtime import answers, manifest, prompt
from moshijax.serve import cache
from moshijax.serve.engine import Engine
from moshijax.serve.server import Server
from moshijax.serve.settings import Prompts, Settings

#: Callers of an artifact that answers in turns, unless told otherwise.
TURNS = 4

log = logging.getLogger("moshijax.serve")


def batch_of(description: dict[str, Any], path: Path, calls: int | None) -> int:
    """Return the smallest batch size of an artifact that holds as many calls; by default the largest.

    Raises:
      ConfigError: none is large enough.
    """
    batches = sorted(description["batches"])
    fitting = [batch for batch in batches if batch >= (calls or batches[-1])]
    if not fitting:
        raise ConfigError(
            f"{path} takes up to {batches[-1]} calls at once, not {calls}; rebuild it from itself: "
            f"moshijax export {path} {path}-b{calls} --batch {calls}"
        )
    return fitting[0]


def read_prompts(folder: Path | None, artifact: runtime.Artifact, limit: int) -> Prompts:
    """Read a folder of prompts, which callers may ask for by the names of the files.

    Raises:
      ConfigError: no folder, or a prompt that the artifact cannot take.
      DataError: a recording that cannot be read or used.
    """
    if folder is None:
        return Prompts()
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder; give one with voices (.wav) and texts (.txt)")
    voices, texts, others = {}, {}, []
    for path in sorted(folder.iterdir()):
        voice = text = None
        if path.suffix.lower() == ".wav":
            voices[path.stem] = voice = prompt.read_voice(path, artifact.sample_rate)
        elif path.suffix.lower() == ".txt":
            texts[path.stem] = text = files.read_text(path, "prompt").strip()
            if not 0 < len(text) <= limit:
                raise ConfigError(f"{path} holds {len(text)} characters; it must hold 1 to {limit}")
        else:
            others.append(path.name)
            continue
        try:
            prompt.make(artifact, voice, text)
        except MoshijaxError as error:
            raise type(error)(f"{path}: {error}") from None
    left_out = f"; left out, as neither .wav nor .txt: {', '.join(others)}" if others else ""
    log.info("prompts of %s: voices %d, texts %d%s", folder, len(voices), len(texts), left_out)
    return Prompts(voices, texts)


async def serve(
    path: Path,
    calls: int | None,
    platform: str | None,
    prompts: Path | None,
    settings: Callable[[Prompts], Settings],
    echo: Callable[[str], None],
) -> None:
    """Serve an artifact until a signal.

    Args:
      path: of the artifact.
      calls: how many callers at once must fit.
      platform: where to run.
      prompts: folder of what callers may ask for.
      settings: makes the server's settings, given its prompts.
      echo: prints a line.

    Raises:
      ConfigError: the artifact or an option is not usable.
      DataError: a damaged artifact or recording.
      MoshijaxError: the port is taken, or the engine failed.
    """
    began, compilations = time.monotonic(), cache.keep_compiled()
    description = manifest.read(path)
    if description["config"]["policy"]["type"] == manifest.ANSWER:
        batch, artifact = calls or TURNS, answers.load(path, platform)  # (every caller has a state of his own)
    else:
        batch, artifact = batch_of(description, path, calls), runtime.load(path, platform)
    chosen = settings(read_prompts(prompts, artifact, Settings.text_prompt))
    engine = Engine(artifact, batch, prompts=artifact.encodes)
    server = Server(engine, chosen)
    try:
        await server.start()
    except OSError as error:
        raise MoshijaxError(
            f"cannot listen at {chosen.host}:{chosen.port}: {error.strerror or error}; choose another --host or --port"
        ) from None
    shown = "localhost" if chosen.host in ("127.0.0.1", "0.0.0.0", "::") else chosen.host
    address = f"{'https' if chosen.tls else 'http'}://{shown}:{server.port}"
    echo(f"{address} is loading {path} for {batch} {'call' if batch == 1 else 'calls'} at once")

    def ready() -> None:
        step, frame = 1000 * engine.step_seconds, 1000 * artifact.frame_seconds
        echo(f"{compilations}, in {time.monotonic() - began:.1f} s; a step takes {step:.0f} of {frame:.0f} ms")
        echo(f"{address} takes calls")
        if step > frame:
            echo("warning: that is too slow for real time: sound will be dropped; serve fewer calls with --calls")

    await server.serve_until_signalled(ready)
