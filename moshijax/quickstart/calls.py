"""Held-out calls through the exported artifact, fed the user's channel alone, and the controls."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moshijax.eval import calls as scores
from moshijax.eval.calls import HeldOutCall
from moshijax.quickstart.settings import Folder, Settings
from moshijax.quickstart.stages import Tell, write_json

if TYPE_CHECKING:
    from moshijax.runtime.play import Call, Timing
    from moshijax.runtime.rows import Program

RESULTS = "results.json"
RECORDINGS = "recordings.npz"
UNTRAINED = 32  # calls that the untrained model plays


def play_all(settings: Settings, folder: Folder, tell: Tell) -> Mapping[str, Any]:
    """Plays every held-out call; writes calls/results.json, calls/recordings.npz, reply.wav and figures.json."""
    from moshijax.quickstart.pipeline import BATCHES, heldout_items
    from moshijax.runtime import audio
    from moshijax.runtime import play as call
    from moshijax.runtime import rows as runtime

    items = heldout_items(folder)
    users = [audio.read_channel(item["audio"], 24_000, "right") for item in items]
    questions = [n for n, item in enumerate(items) if item["meta"]["kind"] == "question"][:UNTRAINED]
    frames = sum(len(user) // 1920 for user in users)
    extra = sum(len(users[n]) // 1920 for n in questions)

    tell(0, None, "compiling")
    program = runtime.load(folder.artifact, max(BATCHES), "cpu")
    played, _ = call.play(program, users, progress=lambda done, total: tell(done, frames + extra, "frames"))
    results = [result(program, item, one) for item, one in zip(items, played, strict=True)]

    untrained = runtime.load(folder.untrained_artifact, max(BATCHES), "cpu")
    before, _ = call.play(
        untrained,
        [users[n] for n in questions],
        progress=lambda done, total: tell(frames + done, frames + extra, "frames"),
    )
    untrained_results = [result(untrained, items[n], one) for n, one in zip(questions, before, strict=True)]

    tell(frames + extra, frames + extra, "one live call")
    live = runtime.load(folder.artifact, 1, "cpu")
    shown = choose(results, 6)
    (reply, *_), timing = call.play(live, [users[n] for n in shown[:1]] + [np.tile(users[shown[0]], 8)])
    audio.write(folder.reply, call.stereo(live, reply), live.sample_rate)
    figures = measure(results, untrained_results, played, program, timing)
    np.savez_compressed(
        folder.calls / RECORDINGS,
        step_seconds=timing.step_seconds,
        **{f"{name}_{n}": value for n in shown for name, value in parts(played[n]).items()},
    )
    saved = {"shown": shown, "calls": [dataclasses.asdict(r) for r in results]}
    saved["untrained"] = [dataclasses.asdict(r) for r in untrained_results]
    write_json(folder.calls / RESULTS, saved)
    write_json(folder.figures, figures)
    return figures


def parts(played: Call) -> dict[str, np.ndarray]:
    return {"text": played.text_tokens, "codes": played.codes, "pcm": played.pcm, "user": played.user}


def result(program: Program, item: Mapping[str, Any], played: Call) -> HeldOutCall:
    """What was asked and answered in one call."""
    from moshijax.runtime.play import words_of

    words = words_of(program, played.text_tokens)
    meta = item["meta"]
    delay = None
    if words and item["user_end"] is not None:
        delay = round(words[0][1] - item["user_end"], 3)
    return HeldOutCall(
        id=item["id"],
        group=meta["group"],
        kind=meta["kind"],
        asked=meta["question"],
        expected=meta["answer"],
        answered=" ".join(word for word, _, _ in words),
        words=tuple(words),
        answer_delay=delay,
    )


def choose(results: Sequence[HeldOutCall], count: int) -> list[int]:
    """Calls to show: questions in clear voices with answers of different lengths, rightly answered ones first, then one
    unrelated utterance."""
    questions = [n for n, r in enumerate(results) if r.kind == "question" and r.group == "clear"]
    questions.sort(key=lambda n: (not results[n].right, -len(scores.normalise(results[n].expected)), n))
    picked: list[int] = []
    for n in questions:
        if all(results[n].expected != results[m].expected for m in picked):
            picked.append(n)
    unrelated = [n for n, r in enumerate(results) if r.kind == "unrelated" and r.group == "clear"]
    return [*picked[: count - 1], *unrelated[:1]]


def measure(
    results: Sequence[HeldOutCall],
    untrained: Sequence[HeldOutCall],
    played: Sequence[Call],
    program: Program,
    timing: Timing,
) -> dict[str, Any]:
    """Every figure of the report, from the calls alone."""
    groups = {}
    for group in dict.fromkeys(r.group for r in results):
        own = [r for r in results if r.group == group]
        groups[group] = {
            "exact": rate(scores.exact(own)),
            "unrelated_answered": rate(scores.answered(own, "unrelated")),
            "chance": finite(scores.chance(own)),
        }
    energy = scores.speech_energy(
        ((one.pcm, r.words) for one, r in zip(played, results, strict=True)), program.sample_rate, program.frame_size
    )
    delays = [r.answer_delay for r in results if r.kind == "question" and r.right and r.answer_delay is not None]
    return {
        "groups": groups,
        "silent_answered": rate(scores.answered(results, "silence")),
        "untrained": {"exact": rate(scores.exact(untrained)), "answered": rate(scores.answered(untrained, "question"))},
        "answer_delay_seconds": round(float(np.median(delays)), 3) if delays else None,
        "energy": {
            name: value if isinstance(value, int) else finite(value)
            for name, value in dataclasses.asdict(energy).items()
        },
        "timing": timing.summary(),
    }


def rate(value: scores.Rate) -> dict[str, Any]:
    return {"hits": value.hits, "total": value.total, "rate": finite(value.value)}


def finite(value: float) -> float | None:
    return round(float(value), 4) if math.isfinite(value) else None


def load_results(folder: Folder) -> tuple[list[HeldOutCall], list[int]]:
    """The held-out calls as they were played, and the numbers of those with recordings."""
    saved = json.loads((folder.calls / RESULTS).read_text(encoding="utf-8"))

    def call(fields: dict[str, Any]) -> HeldOutCall:
        return HeldOutCall(**{**fields, "words": tuple(tuple(word) for word in fields["words"])})

    return [call(fields) for fields in saved["calls"]], saved["shown"]


def summary_lines(figures: Mapping[str, Any]) -> Iterable[str]:
    """The measured figures as a person reads them."""
    for group, values in figures["groups"].items():
        exact, unrelated = values["exact"], values["unrelated_answered"]
        yield (
            f"{group + ' voices':16} {exact['hits']:3d} of {exact['total']} questions answered exactly, "
            f"{unrelated['hits']:3d} of {unrelated['total']} unrelated utterances answered"
        )
    untrained, silent, energy = figures["untrained"]["exact"], figures["silent_answered"], figures["energy"]
    yield (
        f"controls         untrained model {untrained['hits']} of {untrained['total']}, silent user answered "
        f"{silent['hits']} of {silent['total']}, shuffled questions {figures['groups']['clear']['chance'] or 0:.0%}"
    )
    if energy["words_db"] is not None and energy["silence_db"] is not None:
        yield (
            f"voice            {energy['words_db']:.0f} dBFS where the text says words, "
            f"{energy['silence_db']:.0f} dBFS elsewhere; {energy['audible']:.0%} of {energy['words']} words audible"
        )
    timing = figures["timing"]
    yield f"step             median {timing['median_ms']:.1f} ms, p99 {timing['p99_ms']:.1f} ms of an 80 ms frame"
