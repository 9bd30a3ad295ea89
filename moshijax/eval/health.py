"""Health of a model over long calls, without references: artefacts, loops, stalls, and drift from bin to bin."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moshijax.data.manifest import read_manifest
from moshijax.errors import ConfigError
from moshijax.eval import health_report, speakers, token_health
from moshijax.eval.activity import of_level, segments, units
from moshijax.eval.calls import frame_levels
from moshijax.eval.evaluation import Evaluation, ProgressFn, Results, silent
from moshijax.eval.spoken_qa import conversation
from moshijax.eval.token_health import ARTEFACTS, SILENCE, WINDOW
from moshijax.optional import MissingPackage
from moshijax.runtime import audio
from moshijax.runtime.manifest import MANIFEST

if TYPE_CHECKING:
    from jaxtyping import Float

    from moshijax.eval.activity import Segments
    from moshijax.eval.speakers import SpeakerEmbedder
    from moshijax.runtime.artifact import Artifact
    from moshijax.runtime.hosting import Call

#: Neither speaks for so many seconds after the user has: the model has stalled.
STALL_SECONDS = 10.0
_DECIMALS = 6


@dataclass(frozen=True)
class Health(Evaluation):
    """Artefacts by the entropies of tokens, loops of text and audio, stalls and drift (`moshijax.eval.token_health`).

    The model hears the users of `calls` (right channels) one after the other, again from the first when all have
    spoken, until `minutes` are over.

    Attributes:
      artifact: of a model that converses.
      calls: manifest or folder of recordings.
      minutes: length of every long call.
      count: of long calls; they begin with different recordings and seeds.
      bin_minutes: of the bins of the drift.
      threshold_db: what is louder, relative to full scale, is speech.
      speakers: judge of voices, a name of `moshijax.eval.speakers.EMBEDDERS`; None: voices are not compared.
      platform: "cpu", "cuda" or "tpu"; None: what jax finds.
    """

    artifact: str
    calls: str
    minutes: float = 60.0
    count: int = 1
    bin_minutes: float = 5.0
    threshold_db: float = -40.0
    speakers: str | None = "resemblyzer"
    platform: str | None = None

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 < self.bin_minutes <= self.minutes < 24 * 60:
            raise ConfigError(
                f"minutes {self.minutes:g}, bin_minutes {self.bin_minutes:g}, count {self.count}: bins must be longer "
                "than 0 and fit into a call, and a call into a day"
            )
        if self.speakers is not None and self.speakers not in speakers.EMBEDDERS:
            raise ConfigError(f"speakers {self.speakers!r} must be None or one of {', '.join(speakers.EMBEDDERS)}")

    def run(self, out: Path, progress: ProgressFn = silent) -> Results:
        """See `Evaluation.run`; `call.wav`, the first long call, is written to `out`."""
        from moshijax import runtime
        from moshijax.runtime import play

        manifest = read_manifest(self.calls)
        description = conversation(self.artifact)
        rate = description["audio"]["sample_rate"]
        users = [audio.read_channel(item.audio, rate, "right") for item in manifest.items]
        samples = round(self.minutes * 60 * rate)
        heard = [_chained(users, first * len(users) // self.count, samples) for first in range(self.count)]
        results = Results(
            f"Health of {self.artifact}",
            f"{self.count} calls of {self.minutes:g} minutes, judged without any reference.",
        )
        embedder = _embedder(self.speakers, results)
        progress(0, None, "compiling")
        model = runtime.load(self.artifact, self.platform)
        size = min((b for b in description["batches"] if b >= self.count), default=max(description["batches"]))
        rows = runtime.Rows(model, size, prompts=False)
        calls, _ = play.play(rows, heard, progress=lambda done, total: progress(done, total, "frames"))
        audio.write(out / "call.wav", play.stereo(model, calls[0]), rate)
        examined = [_examine(self, model, call, embedder) for call in calls]
        for name in examined[0].figures:
            results.add(name, {f"call {n + 1}": one.figures[name] for n, one in enumerate(examined)})
        for n in range(len(examined[0].bins)):
            for name in examined[0].bins[n]:
                found = [one.bins[n][name] for one in examined if math.isfinite(one.bins[n][name])]
                if found:
                    results.values[f"bin_{n + 1}/{name}"] = round(float(np.mean(found)), _DECIMALS)
        results.sections += [
            partial(health_report.figures, results=results),
            partial(health_report.drift, bins=[one.bins for one in examined], minutes=self.bin_minutes),
            partial(health_report.windows, examined=examined[0], model=model),
        ]
        sha256 = hashlib.sha256((Path(self.artifact) / MANIFEST).read_bytes()).hexdigest()
        judges = () if embedder is None else embedder.packages
        sampling = description["sampling"]["defaults"]
        results.provenance = self.provenance(sha256, {"calls": manifest.sha256}, judges, sampling=sampling)
        return results


@dataclass(frozen=True)
class Examined:
    """What was found in one call.

    Attributes:
      figures: name -> (numerator, denominator).
      bins: figures of every bin, NaN where there is nothing to measure.
      text, audio: entropies of the text row `[T]` and of the codebooks `[Q, T]`.
      windows: silence and artefacts -> which windows have it `[W]`; the first window is frame 64 and on.
      loops: of "text" and "audio", in frames.
      stalls: in seconds.
    """

    figures: dict[str, tuple[float, float]]
    bins: list[dict[str, float]]
    text: Float[np.ndarray, " T"]
    audio: Float[np.ndarray, "Q T"]
    windows: dict[str, np.ndarray]
    loops: dict[str, np.ndarray]
    stalls: Segments


def _chained(users: Sequence[np.ndarray], first: int, samples: int) -> Float[np.ndarray, " N"]:
    """The users one after the other, beginning with one of them, until there are enough samples."""
    parts, total = [], 0
    while total < samples:
        parts.append(users[first % len(users)])
        total, first = total + len(parts[-1]), first + 1
    return np.concatenate(parts)[:samples]


def _embedder(name: str | None, results: Results) -> SpeakerEmbedder | None:
    if name is None:
        return None
    try:
        return speakers.EMBEDDERS[name]()
    except MissingPackage as error:
        results.notes.append(f"voices are not compared: {error}")
        return None


def _examine(settings: Health, model: Artifact, call: Call, embedder: SpeakerEmbedder | None) -> Examined:
    special, rate = model.manifest["text"]["special"], model.sample_rate
    voice = [
        row for row, stream in enumerate(model.streams) if (stream["kind"], stream["speaker"]) == ("audio", "model")
    ]
    codes = call.codes[voice]
    text, heard = token_health.entropies(call.text_tokens[None])[0], token_health.entropies(codes)
    windows = token_health.judge(text, heard)
    levels = frame_levels(call.pcm, model.frame_size)
    audible = levels > settings.threshold_db
    padding = {special["pad"], special["epad"]}
    loops = {
        "text": token_health.text_loops(call.text_tokens, padding),
        "audio": token_health.audio_loops(codes, audible),
    }
    spoken, asked = (units(of_level(pcm, rate, settings.threshold_db)) for pcm in (call.pcm, call.user))
    said = np.flatnonzero((call.text_tokens >= 0) & ~np.isin(call.text_tokens, list(padding)))
    frames, frame = len(call.text_tokens), model.frame_seconds
    seconds = frames * frame
    words = segments((t * frame, (t + 1) * frame) for t in said)
    stuck = stalls(segments([*spoken, *words]), asked, seconds)
    similar = {} if embedder is None else speakers.consistency(embedder, call.pcm, call.user, rate, spoken, asked)

    ill = np.any([windows[name] for name in ARTEFACTS], axis=0)
    figures = {"artefact_free": (float((~ill).sum()), float(len(ill)))}
    for name in (SILENCE, *ARTEFACTS):
        figures[name.replace(" ", "_")] = (float(windows[name].sum()), float(len(ill)))
    for name, spans in loops.items():
        figures[f"{name}_loops/share"] = (float((spans[:, 1] - spans[:, 0]).sum()), float(frames))
        figures[f"{name}_loops/per_hour"] = (float(len(spans)), seconds / 3600)
    figures["stalls/per_hour"] = (float(len(stuck)), seconds / 3600)
    figures |= speakers.figures(similar)

    bins = []
    for first in np.arange(0, settings.minutes - 1e-9, settings.bin_minutes) * 60:
        last = min(first + settings.bin_minutes * 60, seconds)
        own = slice(round(first / frame), round(last / frame))
        chosen = slice(*(max(0, round(edge / frame / WINDOW) - 1) for edge in (first, last)))
        loud = levels[own][audible[own]]
        bins.append(
            {
                "artefact_free": _mean(~ill[chosen]),
                "text_entropy": _mean(text[own]),
                "audio_entropy": _mean(np.median(heard[:, own], axis=0)),
                "level_db": 10 * math.log10(_mean(10 ** (loud / 10))) if len(loud) else math.nan,
                "speech_share": _mean(audible[own]),
                "text_tokens_per_minute": 60 * int(((said >= own.start) & (said < own.stop)).sum()) / (last - first),
                **({"voice_similarity": speakers.within(similar, first, last)} if similar else {}),
            }
        )
    return Examined(figures, bins, text, heard, windows, loops, stuck)


def _mean(values: np.ndarray) -> float:
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else math.nan


def stalls(model: Segments, user: Segments, seconds: float) -> Segments:
    """Return where nobody speaks for `STALL_SECONDS` after the user has spoken last: the answer that never comes.

    Args:
      model, user: when each speaks or, the model, writes.
      seconds: length of the call.
    """
    turns = sorted([(start, end, "model") for start, end in model] + [(start, end, "user") for start, end in user])
    return segments(_waits(turns, seconds))


def _waits(turns: Sequence[tuple[float, float, str]], seconds: float) -> Iterator[tuple[float, float]]:
    last, who = 0.0, "model"
    for start, end, speaker in [*turns, (seconds, seconds, "end")]:
        if who == "user" and start - last >= STALL_SECONDS:
            yield last, start
        if end > last:
            last, who = end, speaker
