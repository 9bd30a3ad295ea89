"""The page a quickstart ends with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from moshijax.eval import heard, spoken_qa_report
from moshijax.eval.spoken_qa import PlayedCalls
from moshijax.quickstart.settings import Folder, Settings
from moshijax.quickstart.stages import done
from moshijax.report import plots
from moshijax.report.page import Page
from moshijax.report.run import panels_of
from moshijax.weights.run_files import METRICS, read_metrics

#: Panels of a run's page that are shown here.
PANELS = ("Loss", "Text", "Audio, by codebook", "Parts of the loss", "Accuracy", "Use of codebooks, as entropy")


def next_commands(settings: Settings, folder: Folder) -> list[str]:
    """Return what to try next: another call, the codec alone, and the whole run with the seed after this one."""
    question, seed = folder.heldout / "audio" / "clear-00001.wav", settings.seed + 1
    other = folder.path.with_name(f"{folder.path.name.removesuffix(f'-seed{settings.seed}')}-seed{seed}")
    return [
        f"moshijax run {folder.artifact} --user {question} --channel right --out answer.wav",
        f"moshijax codec encode {folder.reply} codes.npz --codec {folder.codec}",
        f"moshijax quickstart --run-dir {other} --seed {seed}",
    ]


def words_heard(folder: Folder) -> heard.Heard | None:
    """Return what the recogniser heard; None where that stage was left out."""
    return heard.Heard.load(folder.calls) if done(folder, "heard") else None


def write(settings: Settings, folder: Folder, titles: Mapping[str, str]) -> None:
    """Write report.html and call.png from what the stages left behind.

    Args:
      settings, folder: of the run.
      titles: name of each stage -> its title, in order.

    Raises:
      MoshijaxError: the page cannot be written.
    """
    played = PlayedCalls.load(folder.calls)
    markers = {path.stem: done(folder, path.stem) for path in folder.stages.glob("*.json")}
    seconds = sum(marker["seconds"] for marker in markers.values() if marker)
    page = Page(
        "A voice model that listens and answers",
        f"Speech made, codec and language model trained, streaming step exported and held-out calls answered in "
        f"{seconds / 60:.1f} minutes on this machine. Nothing below was heard in training: neither the voices that ask "
        "nor the unrelated sentences.",
    )
    spoken_qa_report.cards(page, played)
    spoken_qa_report.one_call(page, played)
    spoken_qa_report.listen(page, played)
    _spectrograms(page, folder, played)
    spoken_qa_report.figures(page, played)
    page.text("Rough voices are creaky or distorted, accented ones British; the model was trained on neither.")
    _words_heard(page, folder)
    spoken_qa_report.every_call(page, played)
    _losses(page, folder)
    spoken_qa_report.step_times(page, played)
    _stages(page, markers, titles)
    page.section("Try next")
    page.commands(next_commands(settings, folder))
    spoken_qa_report.call_figure(played, played.shown[0]).savefig(folder.picture, dpi=130)
    page.write(folder.report)


def _spectrograms(page: Page, folder: Folder, played: PlayedCalls) -> None:
    """Draw the right answer as it was spoken, as the codec gives it back, and as the model says it."""
    from moshijax import codec, weights
    from moshijax.runtime import audio

    number, rate = played.shown[0], played.sample_rate
    path = folder.heldout / "audio" / f"{played.calls[number].id}.wav"
    spoken = audio.read_channel(path, rate, "left")
    config, params = weights.load_mimi(folder.codec)
    params = codec.inference_layout(config, params)
    signals = {}
    for name, wave in (("question", audio.read_channel(path, rate, "right")), ("answer", spoken)):
        codes = codec.encode(config, params, wave[None])
        signals[f"{name}: original"] = wave
        signals[f"{name}: through the codec"] = np.asarray(codec.decode(config, params, codes))[0, : len(wave)]
    signals["answer: the model's own"] = played.recordings[number].pcm
    page.section(
        "Original, codec, model",
        f"The codec turns a second of sound into {1 / played.frame_seconds:g} columns of small numbers and back; the "
        "model speaks in them.",
    )
    page.figure(plots.spectrograms(signals, rate), f"Spectrograms of call {played.calls[number].id}, 0 to 6 kHz.")
    page.clips(((name, "", wave) for name, wave in signals.items()), rate)


def _words_heard(page: Page, folder: Folder) -> None:
    """Draw what an independent recogniser hears, or say that there is none."""
    found = words_heard(folder)
    if found is None:
        page.section("Words heard", "Not measured: install the extra `hear`, and run the same command again.")
    else:
        heard.draw(page, found)


def _losses(page: Page, folder: Folder) -> None:
    page.section("Training", "Losses, accuracies and use of codebooks while the models were trained.")
    for name, run in (("codec's ear", folder.hearing), ("codec", folder.codec), ("language model", folder.moshi)):
        metrics = read_metrics(run / METRICS)
        found = panels_of(metrics)
        curves = {title: found[title] for title in PANELS if title in found}
        page.figure(plots.loss_curves(metrics, curves), f"Training of the {name}, against its steps.")


def _stages(page: Page, markers: Mapping[str, Mapping[str, Any] | None], titles: Mapping[str, str]) -> None:
    page.section("Where the time went")
    rows = [
        (title, f"{markers[name]['seconds']:.0f} s", markers[name]["sessions"])
        for name, title in titles.items()
        if markers.get(name)
    ]
    page.table(("stage", "time of its last session", "sessions"), rows)
