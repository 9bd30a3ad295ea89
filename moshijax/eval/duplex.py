"""Duplex dynamics of recordings and of a model that hears their users, beside those of a reference set."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from moshijax.data.manifest import Item, read_manifest
from moshijax.data.transcript import SPEAKERS, parse_alignments, read_sidecar
from moshijax.errors import ConfigError, DataError
from moshijax.eval import duplex_report, dynamics
from moshijax.eval.activity import of_level, segments, units
from moshijax.eval.calls import WORD_SECONDS
from moshijax.eval.dynamics import Activity
from moshijax.eval.evaluation import Evaluation, ProgressFn, Results, silent
from moshijax.eval.spoken_qa import conversation
from moshijax.runtime import audio
from moshijax.runtime.manifest import MANIFEST

if TYPE_CHECKING:
    from moshijax.eval.activity import Segments

SOURCES = ("level", "words")


@dataclass(frozen=True)
class DuplexDynamics(Evaluation):
    """Units, pauses, gaps and overlaps, answers, yielding, and backchannels (`moshijax.eval.dynamics`).

    The recordings have two channels: left the model's speaker, right the user. With an artifact its answers, aligned
    with what it hears, take the place of the left channel in a further set of figures. An object "events" in a sidecar
    says which of the user's words are backchannels; without it short ones count as such.

    Attributes:
      calls: manifest or folder of recordings.
      reference: the same for the set to compare with, such as the training data; None: none.
      artifact: of a model that converses; None: only the recordings are measured.
      activity: "level": speech is what is louder than `threshold_db`; "words": the times of words, in the sidecars and
        in the model's own text. All sets are measured by the same one.
      threshold_db: relative to full scale, of frames of 20 ms.
      most: calls of each set, the first ones.
      shown: calls drawn on the page.
      platform: "cpu", "cuda" or "tpu"; None: what jax finds.
    """

    calls: str
    reference: str | None = None
    artifact: str | None = None
    activity: str = "level"
    threshold_db: float = -40.0
    most: int = 256
    shown: int = 6
    platform: str | None = None

    def __post_init__(self) -> None:
        if self.activity not in SOURCES:
            raise ConfigError(f"activity {self.activity!r} must be one of {', '.join(SOURCES)}")
        if self.most < 1 or self.shown < 1:
            raise ConfigError(f"most {self.most} and shown {self.shown} must be at least 1")
        if not -90 <= self.threshold_db < 0:
            raise ConfigError(f"threshold_db {self.threshold_db:g} must be from -90 to below 0")

    def run(self, out: Path, progress: ProgressFn = silent) -> Results:
        """See `Evaluation.run`; values are `<set>/<figure>` with the figures of `moshijax.eval.dynamics.Dynamics`."""
        manifests = {"calls": self.calls} | ({"reference": self.reference} if self.reference else {})
        read = {name: read_manifest(path) for name, path in manifests.items()}
        found = {name: _recorded(self, manifest.items[: self.most], progress) for name, manifest in read.items()}
        model = ""
        if self.artifact is not None:
            found["model"] = _played(self, read["calls"].items[: self.most], found["calls"], progress)
            model = hashlib.sha256((Path(self.artifact) / MANIFEST).read_bytes()).hexdigest()
        _check_heard(self, found)
        measured = {name: dynamics.measure(calls.values()) for name, calls in found.items()}
        results = Results(
            f"Who speaks when in {self.artifact or self.calls}",
            "Speech is what is louder than a threshold." if self.activity == "level" else "Speech is words.",
            {f"{name}/{key}": value for name, one in measured.items() for key, value in one.values.items()},
            sections=[
                partial(draw, measured=measured) for draw in (duplex_report.figures, duplex_report.distributions)
            ],
        )
        for name, calls in found.items():
            each = {call: dynamics.parts(activity) for call, activity in calls.items()}
            for key in next(iter(each.values())):
                results.add(f"{name}/{key}", {call: own[key] for call, own in each.items()})
        shown = dict(list(found.get("model", found["calls"]).items())[: self.shown])
        results.sections.append(partial(duplex_report.timelines, calls=shown))
        if all(call.backchannels is None for call in found["calls"].values()):
            results.notes.append(
                f"no sidecar of {self.calls} has events: a user's unit shorter than "
                f"{dynamics.BACKCHANNEL_SECONDS:g} s, spoken while the model speaks, counts as a backchannel"
            )
        for name, calls in found.items():
            if mute := sum(not len(call.model) for call in calls.values()):
                results.notes.append(
                    f"{duplex_report.SETS[name]}: the model says nothing in {mute} of {len(calls)} calls"
                )
        more = {"sampling": conversation(self.artifact)["sampling"]["defaults"]} if self.artifact else {}
        results.provenance = self.provenance(model, {name: one.sha256 for name, one in read.items()}, **more)
        return results


def _recorded(settings: DuplexDynamics, items: tuple[Item, ...], progress: ProgressFn) -> dict[str, Activity]:
    """The activity in recordings, by id."""
    found = {}
    for number, item in enumerate(items):
        pcm, rate = audio.read(item.audio)
        if pcm.shape[1] != 2:
            raise DataError(
                f"{item.audio} has {pcm.shape[1]} channel(s), a call has two: left the model's speaker, right the user"
            )
        seconds = len(pcm) / rate
        sidecar = read_sidecar(item.sidecar) if settings.activity == "words" or item.sidecar.exists() else {}
        if settings.activity == "level":
            model, user = (of_level(channel, rate, settings.threshold_db) for channel in pcm.T)
        else:
            words, _ = parse_alignments(sidecar["alignments"], seconds)
            model, user = (
                segments((word.start, word.end) for word in words if word.speaker == who) for who in ("model", "user")
            )
        found[item.id] = Activity(units(model), units(user), seconds, _marked(item, sidecar))
        progress(number + 1, len(items), "recordings")
    return found


def _marked(item: Item, sidecar: Mapping) -> Segments | None:
    """The user's backchannels that a sidecar marks."""
    if "events" not in sidecar:
        return None
    try:
        return segments(
            (float(start), float(end))
            for kind, (start, end), who in sidecar["events"]
            if kind == "backchannel" and SPEAKERS.get(who) == "user"
        )
    except (TypeError, ValueError):
        raise DataError(f'{item.sidecar}: "events" must be a list of [kind, [start, end], speaker or null]') from None


def _played(
    settings: DuplexDynamics, items: tuple[Item, ...], recorded: Mapping[str, Activity], progress: ProgressFn
) -> dict[str, Activity]:
    """The same calls with the artifact's answers, aligned with what it heard."""
    from moshijax import runtime
    from moshijax.runtime import play
    from moshijax.runtime.text import words_of

    description = conversation(settings.artifact)
    rate = description["audio"]["sample_rate"]
    users = [audio.read_channel(item.audio, rate, "right") for item in items]
    model = runtime.load(settings.artifact, settings.platform)
    rows = runtime.Rows(model, max(description["batches"]), prompts=False)
    calls, _ = play.play(rows, users, progress=lambda done, total: progress(done, total, "frames"))
    found = {}
    for item, call in zip(items, calls, strict=True):
        before = recorded[item.id]
        if settings.activity == "level":
            spoken = of_level(play.stereo(model, call)[:, 0], rate, settings.threshold_db)
        else:  # (text gives the start of a word, and not its end)
            words = words_of(model, call.text_tokens)
            spoken = segments((word.start, max(word.end, word.start + WORD_SECONDS)) for word in words)
        spoken = segments((start, min(end, before.seconds)) for start, end in spoken)
        found[item.id] = dataclasses.replace(before, model=units(spoken))
    return found


def _check_heard(settings: DuplexDynamics, found: Mapping[str, Mapping[str, Activity]]) -> None:
    for name, calls in found.items():
        if not any(len(call.user) for call in calls.values()):
            where = settings.reference if name == "reference" else settings.calls
            remedy = (
                f"lower threshold_db, which is {settings.threshold_db:g}"
                if settings.activity == "level"
                else 'add words of the user, or set activity to "level"'
            )
            raise DataError(f"{where}: no right channel has any speech of a user: {remedy}, or swap the channels")
