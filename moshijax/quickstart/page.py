"""The page a quickstart ends with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moshijax.eval.calls import HeldOutCall
from moshijax.quickstart import calls as held
from moshijax.quickstart.settings import Folder, Settings
from moshijax.quickstart.stages import done
from moshijax.report import plots
from moshijax.report.page import Page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RATE, FRAME = 24_000, 1920


class Recordings:
    """The calls of which everything was kept: text [T], codes [K, T], pcm [N], user [N]."""

    def __init__(self, folder: Folder) -> None:
        with np.load(folder.calls / held.RECORDINGS) as file:
            self._arrays = dict(file)

    def __call__(self, name: str, number: int) -> np.ndarray:
        return self._arrays[f"{name}_{number}"]

    @property
    def step_seconds(self) -> np.ndarray:
        return self._arrays["step_seconds"]


def next_commands(settings: Settings, folder: Folder) -> list[str]:
    """To try next: another call, the codec alone, and the whole run with the seed after this one."""
    question, seed = folder.heldout / "audio" / "clear-00001.wav", settings.seed + 1
    other = folder.path.with_name(f"{folder.path.name.removesuffix(f'-seed{settings.seed}')}-seed{seed}")
    return [
        f"moshijax run {folder.artifact} --user {question} --channel right --out answer.wav",
        f"moshijax codec encode {folder.reply} codes.npz --codec {folder.codec}",
        f"moshijax quickstart --run-dir {other} --seed {seed}",
    ]


def write(settings: Settings, folder: Folder) -> None:
    """Makes report.html from what the stages left behind.

    Raises: MoshijaxError if it cannot be written.
    """
    figures = json.loads(folder.figures.read_text(encoding="utf-8"))
    results, shown = held.load_results(folder)
    recordings = Recordings(folder)
    markers = {path.stem: done(folder, path.stem) for path in folder.stages.glob("*.json")}
    seconds = sum(marker["seconds"] for marker in markers.values() if marker)
    page = Page(
        "A voice model that listens and answers",
        f"Speech made, codec and language model trained, streaming step exported and held-out calls answered in "
        f"{seconds / 60:.1f} minutes on this machine. Nothing below was heard in training: neither the voices that ask "
        "nor the unrelated sentences.",
    )
    _cards(page, figures)
    _one_call(page, results, recordings, shown)
    _listen(page, results, recordings, shown)
    _spectrograms(page, folder, results, recordings, shown)
    _figures(page, figures)
    _table(page, results)
    _losses(page, folder)
    _timing(page, figures, recordings)
    _run(page, markers)
    page.section("Try next")
    page.commands(next_commands(settings, folder))
    call_figure(results[shown[0]], recordings, shown[0]).savefig(folder.picture, dpi=130)
    page.write(folder.report)


def of(rate: Mapping[str, Any]) -> str:
    return f"{rate['hits']} of {rate['total']}"


def _cards(page: Page, figures: Mapping[str, Any]) -> None:
    clear = figures["groups"]["clear"]
    exact, unrelated = clear["exact"], clear["unrelated_answered"]
    timing, delay = figures["timing"], figures["answer_delay_seconds"]
    page.cards(
        [
            (of(exact), "questions answered", "exactly the right words, unseen voices", exact["rate"] >= 0.9),
            (of(unrelated), "unrelated sentences answered", "silence is right", unrelated["rate"] <= 0.1),
            ("-" if delay is None else f"{delay:.2f} s", "to the first word", "median, after the question ends", None),
            (
                f"{timing['median_ms']:.1f} ms",
                "per 80 ms frame",
                f"p99 {timing['p99_ms']:.1f} ms, one call, this CPU",
                timing["p99_ms"] < timing["frame_ms"],
            ),
        ]
    )


def call_figure(result: HeldOutCall, recordings: Recordings, number: int) -> Figure:
    """The token grid of a call under its words, and both channels as spectrograms."""
    text, codes = recordings("text", number), recordings("codes", number)
    model, user = np.split(codes[1:], 2)
    return plots.token_grid(
        {"model": model, "user": user},
        card=int(max(codes[1:].max() + 1, 2)),
        frame_seconds=FRAME / RATE,
        text=["word" if token > 3 else "" for token in text],
        epad=list(text == 0),
        words=result.words,
        audio={
            f"user asks: {result.asked or '(silence)'}": recordings("user", number),
            f"model says: {result.answered or '(silence)'}": recordings("pcm", number),
        },
        sample_rate=RATE,
    )


def _one_call(page: Page, results: Sequence[HeldOutCall], recordings: Recordings, shown: Sequence[int]) -> None:
    page.section(
        "One call, frame by frame",
        "Each column is 80 ms. The model hears the user's codes and writes its text and its own voice's codes at once.",
    )
    result = results[shown[0]]
    caption = f"Call {result.id}: asked “{result.asked}”, answered “{result.answered or 'nothing'}”."
    page.figure(call_figure(result, recordings, shown[0]), caption)


def _listen(page: Page, results: Sequence[HeldOutCall], recordings: Recordings, shown: Sequence[int]) -> None:
    page.section("Listen", "Left the model, right the user, as the exported step heard and spoke it.")
    page.clips(
        (
            (
                results[number].asked,
                f"answer: {results[number].answered or '(silence)'}",
                np.stack([recordings("pcm", number), recordings("user", number)], axis=1),
            )
            for number in shown
        ),
        RATE,
    )


def _spectrograms(
    page: Page, folder: Folder, results: Sequence[HeldOutCall], recordings: Recordings, shown: Sequence[int]
) -> None:
    """The right answer as it was spoken, as the codec gives it back, and as the model says it."""
    from moshijax import codec, weights
    from moshijax.runtime import audio

    number = shown[0]
    path = folder.heldout / "audio" / f"{results[number].id}.wav"
    spoken = audio.read_channel(path, RATE, "left")
    config, params = weights.load_mimi(folder.codec)
    params = codec.inference_layout(config, params)
    signals = {}
    for name, wave in (("question", audio.read_channel(path, RATE, "right")), ("answer", spoken)):
        codes = codec.encode(config, params, wave[None])
        signals[f"{name}: original"] = wave
        signals[f"{name}: through the codec"] = np.asarray(codec.decode(config, params, codes))[0, : len(wave)]
    signals["answer: the model's own"] = recordings("pcm", number)
    page.section(
        "Original, codec, model",
        "The codec turns a second of sound into 12.5 columns of small numbers and back; the model speaks in them.",
    )
    page.figure(plots.spectrograms(signals, RATE), f"Spectrograms of call {results[number].id}, 0 to 6 kHz.")
    page.clips(((name, "", wave) for name, wave in signals.items()), RATE)


SHARES = ("audible", "quiet")


def _figures(page: Page, figures: Mapping[str, Any]) -> None:
    page.section("Figures", "Measured by this run, from the exported artifact fed the user's channel alone.")
    rows = [
        (f"{group} voices", of(values["exact"]), of(values["unrelated_answered"]), f"{values['chance'] or 0:.1%}")
        for group, values in figures["groups"].items()
    ]
    page.table(("held-out calls", "answered exactly", "unrelated answered", "shuffled questions"), rows)
    energy, untrained = figures["energy"], figures["untrained"]
    shown = {name: "-" if value is None else f"{value:.0%}" for name, value in energy.items() if name in SHARES}
    shown |= {name: "-" if energy[name] is None else f"{energy[name]:.0f}" for name in ("words_db", "silence_db")}
    page.table(
        ("control", "result"),
        [
            ("the same model before training, exact answers", of(untrained["exact"])),
            ("a silent user, answered", of(figures["silent_answered"])),
            ("level of the model's voice where its text says words", f"{shown['words_db']} dBFS"),
            ("level away from its words", f"{shown['silence_db']} dBFS"),
            (f"words with a frame above {energy['threshold_db']:.0f} dBFS", f"{shown['audible']} of {energy['words']}"),
            ("frames away from words that stay below it", f"{shown['quiet']}"),
        ],
    )
    page.text(
        "Shuffled questions: the share of exact answers when every answer is held against another call's question. "
        "Rough voices are creaky or distorted, accented ones British; the model was trained on neither."
    )


def _table(page: Page, results: Sequence[HeldOutCall]) -> None:
    page.section("Held-out calls", "Every call that was played.")
    for group in dict.fromkeys(result.group for result in results):
        own = [result for result in results if result.group == group]
        page.text(f"{group} voices")
        page.table(
            ("call", "asked", "expected", "answered"),
            [(r.id, r.asked or "(silence)", r.expected or "(silence)", r.answered or "(silence)") for r in own],
            [r.right for r in own],
        )


def _losses(page: Page, folder: Folder) -> None:
    from moshijax.train.run.metrics import read_metrics

    page.section("Training", "Loss per stream, and what else the runs measured.")
    for name, run in (("codec's ear", folder.hearing), ("codec", folder.codec), ("language model", folder.moshi)):
        metrics = read_metrics(run / "metrics.jsonl")
        page.figure(plots.loss_curves(metrics, panels(metrics)), f"Training of the {name}, against its steps.")


def panels(metrics: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Curves of a run: one panel for the losses of streams or parts, one for accuracies, one for codebooks."""
    names = [name for name in dict.fromkeys(n for line in metrics for n in line) if name.startswith("train")]
    found: dict[str, dict[str, str]] = {"loss": {}, "loss by part": {}, "accuracy": {}, "codebook usage": {}}
    for name in names:
        label = name.split("/", 1)[1]
        if label == "loss":
            found["loss"][name] = "train" if name.startswith("train/") else "text-only steps"
        elif label.endswith("/accuracy"):
            found["accuracy"][name] = label.removesuffix("/accuracy")
        elif "entropy" in label:
            found["codebook usage"][name] = label
        elif label.endswith("/loss") or label.endswith("_loss") or label in CODEC_PARTS:
            found["loss by part"][name] = label.removesuffix("/loss").removesuffix("_loss")
    return {title: curves for title, curves in found.items() if curves}


CODEC_PARTS = ("mel", "waveform", "distillation", "commitment", "reconstruction")


def _timing(page: Page, figures: Mapping[str, Any], recordings: Recordings) -> None:
    page.section("Does it keep up?", "Wall time of the exported step in one live call; a frame lasts 80 ms.")
    page.figure(plots.timing_histogram(recordings.step_seconds, FRAME / RATE), "Milliseconds per step.")


def _run(page: Page, markers: Mapping[str, Mapping[str, Any] | None]) -> None:
    from moshijax.quickstart.pipeline import STAGES

    page.section("Where the time went")
    rows = [
        (stage.title, f"{markers[stage.name]['seconds']:.0f} s", markers[stage.name]["sessions"])
        for stage in STAGES
        if markers.get(stage.name)
    ]
    page.table(("stage", "time of its last session", "sessions"), rows)
