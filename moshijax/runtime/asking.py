"""One recorded question and its answer, for `moshijax run`: text, sound, and how long the first sound took."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moshijax import files
from moshijax.errors import ConfigError
from moshijax.runtime import answers, audio
from moshijax.runtime.answers import OMEGAS, AnswerOptions, Answers
from moshijax.runtime.checks import check_sampling, split_seed


def refuse(artifact: str | Path, given: Mapping[str, Any]) -> None:
    """Refuse options that only calls have.

    Raises:
      ConfigError: one was given.
    """
    for name, value in given.items():
        if value:
            raise ConfigError(f"{artifact} answers a question and takes no {name}; omit --{name}")


def run(
    artifact: str | Path,
    user: str | Path | None,
    out: str | Path | None = None,
    *,
    text_out: str | Path | None = None,
    channel: str | None = None,
    seed: int = 0,
    sampling: Mapping[str, float] | None = None,
    omega: int | None = None,
    platform: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Answer one recorded question, and measure the time to the first sound for several omegas.

    Args:
      artifact: the directory that `moshijax.export.answer.build` wrote.
      user: the question, one voice, no longer than the artifact's clip.
      out, text_out: the WAV, one channel, and the JSON to write.
      channel, seed, sampling, platform: as `moshijax.runtime.options` describes them.
      omega: units before a piece of sound is made; None: the artifact's default.
      progress: is told (tokens, tokens that the answer may have).

    Returns:
      {"text", "tokens", "units", "seconds", "sound_seconds", "omega", "latency", "complete", "out"}; `seconds` until
      the answer was complete, `latency` as `moshijax.runtime.answers.Latency`, first with the answer's own omega.

    Raises:
      ConfigError: the artifact, a file or an option is not usable.
      DataError: a damaged artifact, or a question that cannot be answered.
      MoshijaxError: a file cannot be written, or a package is missing.
    """
    files.check_outputs((out, text_out), (artifact, user))
    if user is None:
        raise ConfigError(f"{artifact} takes a recording: give --user")
    split_seed(seed)
    loaded = answers.load(artifact, platform)
    check_sampling(loaded, sampling or {})
    pcm = loaded.check_question(audio.read_channel(user, loaded.sample_rate, channel))
    caller, options = Answers(loaded), AnswerOptions(seed, sampling, omega)
    chosen = loaded.manifest["answer"]["omega"] if omega is None else omega
    answers.latency(caller, pcm, options, 1)  # what a device does once, such as filling its caches, is not measured
    pieces = []
    for piece in caller.answer(pcm, options):
        pieces.append(piece)
        progress(len(pieces), loaded.manifest["answer"]["tokens"])
    progress(1, 1)
    found = [answers.latency(caller, pcm, options, n) for n in (chosen, *OMEGAS, None)]
    sound = np.concatenate([piece.pcm for piece in pieces])
    result = {
        "text": "".join(piece.text for piece in pieces).strip(),
        "tokens": [piece.token for piece in pieces],
        "units": [unit for piece in pieces for unit in piece.units],
        "seconds": pieces[-1].seconds,
        "sound_seconds": len(sound) / loaded.sample_rate,
        "omega": chosen,
        "latency": [{**dataclasses.asdict(row), "total_ms": row.total_ms} for row in found],
        "complete": pieces[-1].complete,
        "out": None if out is None else str(out),
    }
    if out is not None:
        audio.write(out, sound, loaded.sample_rate)
    if text_out is not None:
        files.write(Path(text_out), json.dumps({k: v for k, v in result.items() if k != "out"}, indent=1) + "\n")
    return result


def report_lines(result: Mapping[str, Any]) -> list[str]:
    """Return what a person reads: the answer, the time to its first sound, and the table by omega."""
    chosen, *table = result["latency"]
    lines = [result["text"] or "(the answer has no text)"]
    if not result["units"]:
        lines.append("the answer has no units of speech, and so no sound")
    if not result["complete"]:
        lines.append(f"the answer was cut off after {len(result['tokens'])} tokens, for more of which there is no room")
    lines += [
        f"{len(result['tokens'])} tokens and {len(result['units'])} units in {result['seconds']:.2f} s, "
        f"{result['sound_seconds']:.2f} s of sound",
        f"time to first audio: {chosen['total_ms']:.1f} ms at omega {result['omega']}",
        "",
        "omega   text ms  vocoder ms  total ms  units  first sound ms",
    ]
    for row in table:
        lines.append(
            f"{row['omega'] or 'whole':>5}  {row['text_ms']:8.1f}  {row['voice_ms']:10.1f}  {row['total_ms']:8.1f}  "
            f"{row['units']:5}  {row['sound_ms']:14.0f}"
        )
    if result["out"]:
        lines.append(f"wrote {result['out']}")
    return lines
