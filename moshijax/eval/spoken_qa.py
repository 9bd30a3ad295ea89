"""Spoken questions, answered by an exported artifact that hears only the user's channel, and the controls."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from moshijax.data.manifest import Item, read_manifest
from moshijax.data.records import digest
from moshijax.data.transcript import SPEAKERS, read_sidecar
from moshijax.errors import ConfigError, DataError
from moshijax.eval import calls as scores
from moshijax.eval import spoken_qa_report
from moshijax.eval.calls import HeldOutCall
from moshijax.eval.evaluation import Evaluation, ProgressFn, Results, silent
from moshijax.files import staged, write_json

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from moshijax.runtime.artifact import Artifact
    from moshijax.runtime.hosting import Call
    from moshijax.runtime.play import Timing

CALLS, RECORDINGS, REPLY = "calls.json", "recordings.npz", "reply.wav"
LIVE_REPEATS = 8  # times that the timed live call hears its question


@dataclass(frozen=True)
class SpokenQA(Evaluation):
    """Answers to spoken questions: exactly the right words, silence where it is due, and a voice that follows its text.

    Every recording of `calls` has the user in its right channel, and in its sidecar an object "meta" with the strings
    "question" and "answer" ("" where silence is right), and optionally "kind" ("question", "unrelated" or "silence")
    and "group", a name under which figures are counted.

    Attributes:
      artifact: of a model that converses.
      calls: manifest or folder of calls that the model was not trained on.
      untrained: artifact of the same model before its training, as a control; None: no such control.
      controls: questions of `calls` that the untrained model plays.
      shown: calls on the page, to see and hear.
      platform: "cpu", "cuda" or "tpu"; None: what jax finds.
    """

    artifact: str
    calls: str
    untrained: str | None = None
    controls: int = 32
    shown: int = 6
    platform: str | None = None

    def __post_init__(self) -> None:
        if self.controls < 1 or self.shown < 1:
            raise ConfigError(f"controls {self.controls} and shown {self.shown} must be at least 1")

    def run(self, out: Path, progress: ProgressFn = silent) -> Results:
        """See `Evaluation.run`; `calls.json`, `recordings.npz` and `reply.wav`, one live call, are written to `out`."""
        from moshijax.runtime import manifest

        played = play(self, out / REPLY, progress)
        played.save(out)
        results = spoken_qa_report.results(f"Spoken questions to {self.artifact}", played)
        results.values = dict(flat(played.figures))
        for name, found in by_call(played.calls).items():
            results.add(name, found)
        sampling = manifest.read(self.artifact)["sampling"]["defaults"]
        model = hashlib.sha256((Path(self.artifact) / manifest.MANIFEST).read_bytes()).hexdigest()
        asked = digest([(question.item.id, question.meta) for question in read_questions(self.calls)])
        data = {"calls": read_manifest(self.calls).sha256, "questions": asked}
        results.provenance = self.provenance(model, data, sampling=sampling)
        return results


class Recording(NamedTuple):
    """Everything of a played call of T frames.

    Attributes:
      text: int32 text tokens.
      codes: int32 columns of the grid.
      pcm: the model's voice.
      user: the user's voice.
    """

    text: Int[np.ndarray, " T"]
    codes: Int[np.ndarray, "K T"]
    pcm: Float[np.ndarray, " N"]
    user: Float[np.ndarray, " N"]


@dataclass(frozen=True)
class PlayedCalls:
    """What was played.

    Attributes:
      calls: every call, in the order of the manifest.
      untrained: those that the untrained model played, or None.
      shown: indices of the calls that were recorded, the best example first.
      recordings: of the shown calls, by index.
      step_seconds: wall time of each step of one live call.
      sample_rate, frame_size: of the artifact, in Hz and samples.
      figures: the scores, as JSON values.
    """

    calls: tuple[HeldOutCall, ...]
    untrained: tuple[HeldOutCall, ...] | None
    shown: tuple[int, ...]
    recordings: Mapping[int, Recording]
    step_seconds: Float[np.ndarray, " steps"]
    sample_rate: int
    frame_size: int
    figures: Mapping[str, Any]

    @property
    def frame_seconds(self) -> float:
        """The duration of a frame."""
        return self.frame_size / self.sample_rate

    def save(self, folder: Path) -> None:
        """Write `calls.json` and `recordings.npz`.

        Raises:
          MoshijaxError: a file cannot be written.
        """
        recorded = {f"{name}_{n}": value for n in self.shown for name, value in self.recordings[n]._asdict().items()}
        with staged(folder / RECORDINGS) as partial, partial.open("wb") as file:
            np.savez_compressed(file, step_seconds=self.step_seconds, **recorded)
        saved = {
            "shown": self.shown,
            "calls": [dataclasses.asdict(call) for call in self.calls],
            "untrained": None if self.untrained is None else [dataclasses.asdict(call) for call in self.untrained],
            "sample_rate": self.sample_rate,
            "frame_size": self.frame_size,
            "figures": self.figures,
        }
        write_json(folder / CALLS, saved)

    @classmethod
    def load(cls, folder: Path) -> PlayedCalls:
        """Read what `save` wrote."""

        def calls(found: list[dict[str, Any]] | None) -> tuple[HeldOutCall, ...] | None:
            if found is None:
                return None
            return tuple(HeldOutCall(**{**call, "words": tuple(map(tuple, call["words"]))}) for call in found)

        saved = json.loads((folder / CALLS).read_text(encoding="utf-8"))
        with np.load(folder / RECORDINGS) as file:
            recordings = {
                n: Recording(*(file[f"{name}_{n}"] for name in Recording._fields)) for n in saved["shown"]
            }  # fmt: skip
            step_seconds = file["step_seconds"]
        return cls(
            calls(saved["calls"]) or (), calls(saved["untrained"]), tuple(saved["shown"]), recordings, step_seconds,
            saved["sample_rate"], saved["frame_size"], saved["figures"],
        )  # fmt: skip


@dataclass(frozen=True)
class Question:
    """A recording to play.

    Attributes:
      item: of the manifest.
      meta: of the sidecar.
      user_end: second at which its user stops; None: no word.
    """

    item: Item
    meta: Mapping[str, str]
    user_end: float | None


def read_questions(manifest: str | Path) -> list[Question]:
    """Read the calls of a manifest, in order.

    Raises:
      DataError: the manifest or a sidecar cannot be used, or a sidecar has no question and answer.
    """
    found = []
    for item in read_manifest(manifest).items:
        sidecar = read_sidecar(item.sidecar)
        meta = sidecar.get("meta")
        if not isinstance(meta, dict) or not all(isinstance(meta.get(name), str) for name in ("question", "answer")):
            raise DataError(
                f'{item.sidecar} has no "meta" with the strings "question" and "answer"; add them, or use another set'
            )
        kind = "question" if meta["answer"] else "unrelated" if meta["question"] else "silence"
        try:
            ends = [float(end) for _, (_, end), speaker, *_ in sidecar["alignments"] if SPEAKERS.get(speaker) == "user"]
        except (TypeError, ValueError):
            raise DataError(f'{item.sidecar}: "alignments" must be a list of [word, [start, end], speaker]') from None
        found.append(Question(item, {"kind": kind, "group": "all", **meta}, max(ends, default=None)))
    return found


def play(settings: SpokenQA, reply: Path, progress: ProgressFn = silent) -> PlayedCalls:
    """Play every call with the largest batch of the artifact, and one live call with the smallest.

    Args:
      settings: what is played.
      reply: WAV file for the live call, left the model, right the user.
      progress: told the frames done.

    Raises:
      ConfigError: the artifact does not run here, or does not converse.
      DataError: artifact or recordings are damaged.
    """
    from moshijax import runtime
    from moshijax.runtime import audio
    from moshijax.runtime import play as calls

    questions = read_questions(settings.calls)
    description = conversation(settings.artifact)
    sample_rate, frame_size = description["audio"]["sample_rate"], description["audio"]["frame_size"]
    users = [audio.read_channel(question.item.audio, sample_rate, "right") for question in questions]
    asked = [n for n, question in enumerate(questions) if question.meta["kind"] == "question"][: settings.controls]
    if settings.untrained is None:
        asked = []
    frames = sum(len(user) // frame_size for user in users)
    every = frames + sum(len(users[n]) // frame_size for n in asked)

    progress(0, None, "compiling")
    model = runtime.load(settings.artifact, settings.platform)
    rows = runtime.Rows(model, max(description["batches"]), prompts=False)
    played, _ = calls.play(rows, users, progress=lambda done, total: progress(done, every, "frames"))
    results = [result(model, question, call) for question, call in zip(questions, played, strict=True)]

    untrained = None
    if settings.untrained is not None:
        control = runtime.load(settings.untrained, settings.platform)
        before, _ = calls.play(
            runtime.Rows(control, max(control.manifest["batches"]), prompts=False),
            [users[n] for n in asked],
            progress=lambda done, total: progress(frames + done, every, "frames"),
        )
        untrained = tuple(result(control, questions[n], call) for n, call in zip(asked, before, strict=True))

    progress(every, every, "one live call")
    live = runtime.Rows(model, min(description["batches"]), prompts=False)
    shown = choose(results, settings.shown)
    heard = users[shown[0]]
    (answer, *_), timing = calls.play(live, [heard, np.tile(heard, LIVE_REPEATS)])
    audio.write(reply, calls.stereo(model, answer), sample_rate)
    return PlayedCalls(
        tuple(results),
        untrained,
        tuple(shown),
        {n: Recording(played[n].text_tokens, played[n].codes, played[n].pcm, played[n].user) for n in shown},
        timing.step_seconds,
        sample_rate,
        frame_size,
        measure(results, untrained, played, sample_rate, frame_size, timing),
    )


def conversation(artifact: str) -> dict[str, Any]:
    """Return the description of an artifact that listens and speaks.

    Raises:
      ConfigError: it does not do both, or is no artifact.
    """
    from moshijax.runtime import manifest

    description = manifest.read(artifact)
    if any("pcm" not in description[side]["step"] for side in ("inputs", "outputs")):
        raise ConfigError(f"{artifact} does not both listen and speak; give the artifact of a conversation")
    return description


def result(model: Artifact, question: Question, played: Call) -> HeldOutCall:
    """Return what was asked and answered in one call."""
    from moshijax.runtime.text import words_of

    words = words_of(model, played.text_tokens)
    meta = question.meta
    delay = None
    if words and question.user_end is not None:
        delay = round(words[0][1] - question.user_end, 3)
    return HeldOutCall(
        id=question.item.audio.stem,
        group=meta["group"],
        kind=meta["kind"],
        asked=meta["question"],
        expected=meta["answer"],
        answered=" ".join(word for word, _, _ in words),
        words=tuple(words),
        answer_delay=delay,
    )


def choose(results: Sequence[HeldOutCall], count: int) -> list[int]:
    """Choose calls of the first group to show, at least one.

    Questions with different answers come first, correctly answered and long ones before others, then one unrelated
    utterance.
    """
    group = results[0].group
    questions = [n for n, r in enumerate(results) if r.kind == "question" and r.group == group]
    questions.sort(key=lambda n: (not results[n].right, -len(scores.normalise(results[n].expected)), n))
    picked: list[int] = []
    for n in questions:
        if all(results[n].expected != results[m].expected for m in picked):
            picked.append(n)
    unrelated = [n for n, r in enumerate(results) if r.kind == "unrelated" and r.group == group]
    return [*picked[: max(1, count - 1)], *unrelated[:1]][:count] or [0]


def measure(
    results: Sequence[HeldOutCall],
    untrained: Sequence[HeldOutCall] | None,
    played: Sequence[Call],
    sample_rate: int,
    frame_size: int,
    timing: Timing,
) -> dict[str, Any]:
    """Return every figure, from the calls alone."""
    groups = {}
    for group in dict.fromkeys(r.group for r in results):
        own = [r for r in results if r.group == group]
        groups[group] = {
            "exact": rate(scores.exact(own)),
            "unrelated_answered": rate(scores.answered(own, "unrelated")),
            "chance": finite(scores.chance(own)),
        }
    energy = scores.speech_energy(
        ((one.pcm, r.words) for one, r in zip(played, results, strict=True)), sample_rate, frame_size
    )
    delays = [r.answer_delay for r in results if r.kind == "question" and r.right and r.answer_delay is not None]
    before = None
    if untrained is not None:
        before = {"exact": rate(scores.exact(untrained)), "answered": rate(scores.answered(untrained, "question"))}
    return {
        "groups": groups,
        "silent_answered": rate(scores.answered(results, "silence")),
        "untrained": before,
        "answer_delay_seconds": round(float(np.median(delays)), 3) if delays else None,
        "energy": {
            name: value if isinstance(value, int) else finite(value)
            for name, value in dataclasses.asdict(energy).items()
        },
        "timing": timing.summary(),
    }


def by_call(results: Sequence[HeldOutCall]) -> dict[str, dict[str, tuple[float, float]]]:
    """Return what every call adds to the rates of `measure`, by their names, as `Results.add` takes it."""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    names = {"question": "groups/{}/exact/rate", "unrelated": "groups/{}/unrelated_answered/rate"}
    names["silence"] = "silent_answered/rate"
    for number, call in enumerate(results):
        hit = call.right if call.kind == "question" else bool(scores.normalise(call.answered))
        if call.kind in names:  # (others are counted nowhere)
            own = found.setdefault(names[call.kind].format(call.group), {})
            own[f"{number} {call.id}"] = (float(hit), 1.0)  # the names of files in several folders may be the same
    return found


def rate(value: scores.Rate) -> dict[str, Any]:
    """Return hits, total and their quotient as JSON values."""
    return {"hits": value.hits, "total": value.total, "rate": finite(value.value)}


def finite(value: float) -> float | None:
    """Return the value to four places, None where it is not finite."""
    return round(float(value), 4) if math.isfinite(value) else None


def flat(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield nested figures as `group/figure` and value, without those that are undefined."""
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}/")
        elif value is not None:
            yield f"{prefix}{name}", float(value)


def summary_lines(figures: Mapping[str, Any]) -> Iterable[str]:
    """Yield the measured figures as a person reads them."""
    for group, values in figures["groups"].items():
        exact, unrelated = values["exact"], values["unrelated_answered"]
        yield (
            f"{group + ' voices':16} {exact['hits']:3d} of {exact['total']} questions answered exactly, "
            f"{unrelated['hits']:3d} of {unrelated['total']} unrelated utterances answered"
        )
    silent_user, energy = figures["silent_answered"], figures["energy"]
    controls = [f"silent user answered {silent_user['hits']} of {silent_user['total']}"]
    if figures["untrained"] is not None:
        untrained = figures["untrained"]["exact"]
        controls.insert(0, f"untrained model {untrained['hits']} of {untrained['total']}")
    first = next(iter(figures["groups"].values()))
    yield f"controls         {', '.join(controls)}, shuffled questions {first['chance'] or 0:.0%}"
    if energy["words_db"] is not None and energy["silence_db"] is not None:
        yield (
            f"voice            {energy['words_db']:.0f} dBFS where the text says words, "
            f"{energy['silence_db']:.0f} dBFS elsewhere; {energy['audible']:.0%} of {energy['words']} words audible"
        )
    timing = figures["timing"]
    yield (
        f"step             median {timing['median_ms']:.1f} ms, p99 {timing['p99_ms']:.1f} ms of an "
        f"{timing['frame_ms']:.0f} ms frame"
    )
