"""Calls as files: recordings in; time-aligned stereo, text and a log of events out, the same bytes for one seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moshijax import files
from moshijax.data.manifest import Item, read_recordings
from moshijax.data.transcript import parse_alignments, read_sidecar
from moshijax.errors import ConfigError
from moshijax.eval import dynamics
from moshijax.eval.activity import of_level, units
from moshijax.eval.dynamics import Activity
from moshijax.eval.evaluation import Evaluation, ProgressFn, Results, silent
from moshijax.eval.spoken_qa import conversation
from moshijax.runtime import audio
from moshijax.runtime.manifest import MANIFEST

if TYPE_CHECKING:
    from moshijax.report.page import Page
    from moshijax.runtime.artifact import Artifact
    from moshijax.runtime.hosting import Call

CALLS = "calls"
_AT_ONCE = 64  # calls in memory
SIDES = ("model", "user")


@dataclass(frozen=True)
class CallRunner(Evaluation):
    """What a model answers to recordings, one call each.

    Every call gives in the folder `calls`, under its name: a stereo WAV in grid time, in which everything that belongs
    to one frame is at one place; a JSON with the model's text, words and tokens; and `.events.jsonl`, one line for each
    word and each stretch of speech, by time. Times are on two clocks. `slot` is grid time, which published figures use;
    `causal` is when a caller hears it, later by the delay of the artifact for what the model says.

    Attributes:
      artifact: of a model that converses.
      calls: manifest or folder of recordings: the user alone, or in the right channel of two.
      left: who is in the left channel of the WAV, "model" or "user". MTR-DuplexBench (arXiv 2511.10262) wants its
        recordings back by their names, with the user on the left.
      seed: of the first call; the next ones have the next.
      tail_seconds: silence after each recording, time for a late answer.
      paced: run in real time, as a live call; the files are the same.
      threshold_db: what is louder, relative to full scale, is speech.
      shown: calls on the page, to see and hear.
      platform: "cpu", "cuda" or "tpu"; None: what jax finds.
    """

    artifact: str
    calls: str
    left: str = "model"
    seed: int = 0
    tail_seconds: float = 0.0
    paced: bool = False
    threshold_db: float = -40.0
    shown: int = 6
    platform: str | None = None

    def __post_init__(self) -> None:
        if self.left not in SIDES:
            raise ConfigError(f"left {self.left!r} must be one of {', '.join(SIDES)}")
        if self.shown < 1 or not 0 <= self.tail_seconds < 3600 or not 0 <= self.seed < 2**32:
            raise ConfigError(
                f"shown {self.shown}, tail_seconds {self.tail_seconds:g}, seed {self.seed}: must be at least 1, from 0 "
                "to an hour, and from 0 to 2^32 - 1"
            )

    def run(self, out: Path, progress: ProgressFn = silent) -> Results:
        """See `Evaluation.run`; the calls are written to `out / "calls"`."""
        from moshijax import runtime
        from moshijax.runtime import play
        from moshijax.runtime.rows import CallOptions

        recordings = read_recordings(self.calls)
        items, description = recordings.items, conversation(self.artifact)
        progress(0, None, "compiling")
        model = runtime.load(self.artifact, self.platform)
        rows = runtime.Rows(model, max(description["batches"]), prompts=False)
        results = Results(
            f"Calls to {self.artifact}", f"{len(items)} recordings of {self.calls}, with seed {self.seed}."
        )
        shown: list[tuple[str, np.ndarray, Activity]] = []
        heard: dict[str, Activity] = {}
        written = hashlib.sha256()
        for first in range(0, len(items), _AT_ONCE):
            some = items[first : first + _AT_ONCE]
            options = [CallOptions(self.seed + first + n) for n in range(len(some))]
            users = [_user(item, model.sample_rate) for item in some]
            played, _ = play.play(rows, users, options, tail_seconds=self.tail_seconds, paced=self.paced)
            for item, call in zip(some, played, strict=True):
                heard[item.id] = self._activity(model, call)
                for path in self._write(out / CALLS / item.id, model, call, item, heard[item.id]):
                    written.update(path.read_bytes())
                progress(len(heard), len(items), "calls")
                if len(shown) < self.shown:
                    shown.append((item.id, play.stereo(model, call), heard[item.id]))
        delay = model.max_delay * model.frame_seconds
        _latencies(results, heard, delay)
        results.sections.append(partial(_draw, results=results, shown=shown, model=model, delay=delay))
        sha256 = hashlib.sha256((Path(self.artifact) / MANIFEST).read_bytes()).hexdigest()
        more = {"sampling": description["sampling"]["defaults"], "written": written.hexdigest()}
        results.provenance = self.provenance(sha256, {"calls": recordings.sha256}, **more)
        return results

    def _activity(self, model: Artifact, call: Call) -> Activity:
        spoken, asked = (units(of_level(pcm, model.sample_rate, self.threshold_db)) for pcm in (call.pcm, call.user))
        return Activity(spoken, asked, len(call.user) / model.sample_rate)

    def _write(self, path: Path, model: Artifact, call: Call, item: Item, heard: Activity) -> Iterator[Path]:
        """Write the files of one call; yield them in a fixed order."""
        from moshijax.runtime import play

        path.parent.mkdir(parents=True, exist_ok=True)
        stereo = play.stereo(model, call)
        wav, text, log = (path.with_name(path.name + suffix) for suffix in (".wav", ".json", ".events.jsonl"))
        audio.write(wav, stereo if self.left == "model" else stereo[:, ::-1], model.sample_rate)
        transcript = play.transcript(model, call)
        files.write_json(text, transcript)
        said = [(word["word"], word["start"], word["end"]) for word in transcript["words"]]
        lines = events(heard, said, _asked(item, heard.seconds), model.max_delay * model.frame_seconds)
        files.write(log, "".join(json.dumps(line) + "\n" for line in lines))
        yield from (wav, text, log)


def events(
    heard: Activity,
    said: Sequence[tuple[str, float, float]],
    asked: Sequence[tuple[str, float, float]],
    delay: float,
) -> list[dict[str, Any]]:
    """Return what happens in a call, by slot time: words, and stretches of speech without a pause of 0.2 s.

    Args:
      heard: the speech.
      said, asked: words of the model and of the user, with their times.
      delay: seconds by which a caller hears the model after its slot.
    """
    found = []
    for speaker, words, speech in (("model", said, heard.model), ("user", asked, heard.user)):
        later = delay if speaker == "model" else 0.0
        spans = [("word", text, start, end) for text, start, end in words]
        spans += [("speech", None, start, end) for start, end in speech]
        for event, text, start, end in spans:
            times = {"slot": [round(float(x), 4) for x in (start, end)]}
            times["causal"] = [round(float(x) + later, 4) for x in (start, end)]
            found.append({"event": event, "speaker": speaker, **times, **({} if text is None else {"text": text})})
    return sorted(found, key=lambda one: (one["slot"], one["speaker"], one["event"]))


def _user(item: Item, rate: int) -> np.ndarray:
    """The user of a recording: its only channel, or the right one."""
    pcm, own = audio.read(item.audio)
    if pcm.shape[1] == 1:
        return audio.resample(np.ascontiguousarray(pcm[:, 0]), own, rate)
    return audio.read_channel(item.audio, rate, "right")


def _asked(item: Item, seconds: float) -> list[tuple[str, float, float]]:
    """The words of the user, where a sidecar knows them."""
    if not item.sidecar.exists():
        return []
    words, _ = parse_alignments(read_sidecar(item.sidecar)["alignments"], seconds)
    return [(word.text, word.start, word.end) for word in words if word.speaker == "user"]


def _latencies(results: Results, heard: dict[str, Activity], delay: float) -> None:
    """Seconds from the end of a turn to the answer, on both clocks, and how many turns are answered."""
    reactions = {name: dynamics.reactions(call) for name, call in heard.items()}
    for clock, later in (("slot", 0.0), ("causal", delay)):
        parts = {n: (sum(r.responses) + later * len(r.responses), len(r.responses)) for n, r in reactions.items()}
        results.add(f"response/{clock}_seconds", parts)
    turns = {n: (len(r.responses), len(r.responses) + r.unanswered) for n, r in reactions.items()}
    results.add("response/rate", turns)
    results.values["calls"] = float(len(heard))


def _draw(
    page: Page, results: Results, shown: Sequence[tuple[str, np.ndarray, Activity]], model: Artifact, delay: float
) -> None:
    from moshijax.eval import duplex_report

    values = results.values
    page.section(
        "Answers",
        f"Seconds from the end of a turn to the model's first sound: in slots, and as a caller hears it, {delay:.2f} s "
        "later. Neither has computing or network time in it.",
    )
    named = {"response/rate": "turns answered", "response/slot_seconds": "seconds, slots",
             "response/causal_seconds": "seconds, causal"}  # fmt: skip
    page.table(("", "mean"), [(label, f"{values[n]:.3f}" if n in values else "-") for n, label in named.items()])
    duplex_report.timelines(page, {name: heard for name, _, heard in shown})
    page.clips(((name, "left the model, right the user", pcm) for name, pcm, _ in shown), model.sample_rate)
