"""The report of played calls: figures, one call frame by frame, audio, every answer, and the step times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from moshijax.eval.calls import HeldOutCall
from moshijax.eval.evaluation import Results
from moshijax.tokens import EPAD, PAD

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from moshijax.eval.spoken_qa import PlayedCalls
    from moshijax.report.page import Page

SHARES = ("audible", "quiet")


def results(title: str, played: PlayedCalls) -> Results:
    """Return played calls with the sections that show them; without values."""
    sections = [partial(draw, played=played) for draw in (cards, one_call, listen, figures, every_call, step_times)]
    return Results(title, "The exported artifact was fed the user's channel alone.", sections=sections)


def of(rate: Mapping[str, Any]) -> str:
    """Return a rate as "hits of total"."""
    return f"{rate['hits']} of {rate['total']}"


def cards(page: Page, played: PlayedCalls) -> None:
    """Draw the figures to see first, of the first group."""
    found = played.figures
    group, first = next(iter(found["groups"].items()))
    exact, unrelated = first["exact"], first["unrelated_answered"]
    timing, delay = found["timing"], found["answer_delay_seconds"]
    shown = [
        (of(exact), "questions answered", f"exactly the right words, {group} voices", (exact["rate"] or 0.0) >= 0.9)
    ]
    if unrelated["total"]:
        shown.append((of(unrelated), "unrelated sentences answered", "silence is right", unrelated["rate"] <= 0.1))
    shown += [
        ("-" if delay is None else f"{delay:.2f} s", "to the first word", "median, after the question ends", None),
        (
            f"{timing['median_ms']:.1f} ms",
            f"per {timing['frame_ms']:.0f} ms frame",
            f"p99 {timing['p99_ms']:.1f} ms, one call, this machine",
            timing["p99_ms"] < timing["frame_ms"],
        ),
    ]
    page.cards(shown)


def call_figure(played: PlayedCalls, number: int) -> Figure:
    """Return the token grid of a shown call under its words, and both channels as spectrograms."""
    from moshijax.report import plots

    call, recording = played.calls[number], played.recordings[number]
    model, user = np.split(recording.codes[1:], 2)
    return plots.token_grid(
        {"model": model, "user": user},
        card=int(max(recording.codes[1:].max() + 1, 2)),
        frame_seconds=played.frame_seconds,
        text=["word" if token > PAD else "" for token in recording.text],
        epad=list(recording.text == EPAD),
        words=call.words,
        audio={
            f"user asks: {call.asked or '(silence)'}": recording.user,
            f"model says: {call.answered or '(silence)'}": recording.pcm,
        },
        sample_rate=played.sample_rate,
    )


def one_call(page: Page, played: PlayedCalls) -> None:
    """Draw the first shown call as a token grid."""
    page.section(
        "One call, frame by frame",
        f"Each column is {1000 * played.frame_seconds:.0f} ms. The model hears the user's codes and writes its text "
        "and its own voice's codes at once.",
    )
    number = played.shown[0]
    call = played.calls[number]
    caption = f"Call {call.id}: asked “{call.asked}”, answered “{call.answered or 'nothing'}”."
    page.figure(call_figure(played, number), caption)


def listen(page: Page, played: PlayedCalls) -> None:
    """Draw players of the shown calls."""
    page.section("Listen", "Left the model, right the user, as the exported step heard and spoke it.")
    page.clips(
        (
            (
                played.calls[number].asked,
                f"answer: {played.calls[number].answered or '(silence)'}",
                np.stack([played.recordings[number].pcm, played.recordings[number].user], axis=1),
            )
            for number in played.shown
        ),
        played.sample_rate,
    )


def figures(page: Page, played: PlayedCalls) -> None:
    """Draw tables of scores and controls."""
    found = played.figures
    page.section("Figures", "Measured by this run, from the exported artifact fed the user's channel alone.")
    rows = [
        (f"{group} voices", of(values["exact"]), of(values["unrelated_answered"]), f"{values['chance'] or 0:.1%}")
        for group, values in found["groups"].items()
    ]
    page.table(("held-out calls", "answered exactly", "unrelated answered", "shuffled questions"), rows)
    energy = found["energy"]
    shown = {name: "-" if value is None else f"{value:.0%}" for name, value in energy.items() if name in SHARES}
    shown |= {name: "-" if energy[name] is None else f"{energy[name]:.0f}" for name in ("words_db", "silence_db")}
    controls = [
        ("a silent user, answered", of(found["silent_answered"])),
        ("level of the model's voice where its text says words", f"{shown['words_db']} dBFS"),
        ("level away from its words", f"{shown['silence_db']} dBFS"),
        (f"words with a frame above {energy['threshold_db']:.0f} dBFS", f"{shown['audible']} of {energy['words']}"),
        ("frames away from words that stay below it", f"{shown['quiet']}"),
    ]
    if found["untrained"] is not None:
        controls.insert(0, ("the same model before training, exact answers", of(found["untrained"]["exact"])))
    page.table(("control", "result"), controls)
    page.text(
        "Shuffled questions: the share of exact answers when every answer is compared with another call's question."
    )


def every_call(page: Page, played: PlayedCalls) -> None:
    """Draw a table of the calls of each group, right and wrong answers marked."""
    page.section("Held-out calls", "Every call that was played.")
    for group in dict.fromkeys(call.group for call in played.calls):
        own: Sequence[HeldOutCall] = [call for call in played.calls if call.group == group]
        page.text(f"{group} voices")
        page.table(
            ("call", "asked", "expected", "answered"),
            [(c.id, c.asked or "(silence)", c.expected or "(silence)", c.answered or "(silence)") for c in own],
            [c.right for c in own],
        )


def step_times(page: Page, played: PlayedCalls) -> None:
    """Draw a histogram of the step times of one live call."""
    from moshijax.report import plots

    page.section(
        "Does it keep up?",
        f"Wall time of the exported step in one live call; a frame lasts {1000 * played.frame_seconds:.0f} ms.",
    )
    page.figure(plots.timing_histogram(played.step_seconds, played.frame_seconds), "Milliseconds per step.")
