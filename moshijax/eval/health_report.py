"""The page of a model's health: figures, drift over the call, and the windows of one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from moshijax.eval.token_health import ARTEFACTS, SILENCE, WINDOW

if TYPE_CHECKING:
    from moshijax.eval.evaluation import Results
    from moshijax.eval.health import Examined
    from moshijax.report.page import Page
    from moshijax.runtime.artifact import Artifact

#: Figures of a bin, and how a page calls them.
DRIFT = {
    "artefact_free": "windows without artefact, share",
    "text_entropy": "entropy of the text, nats",
    "audio_entropy": "entropy of the codes (median), nats",
    "level_db": "level of the voice, dB",
    "speech_share": "time with voice, share",
    "text_tokens_per_minute": "text tokens per minute",
    "voice_similarity": "likeness to its first voice, cosine",
}


def figures(page: Page, results: Results) -> None:
    """Draw the table of figures of the whole calls; "-" where there was nothing to measure or no judge."""
    shown = {
        "artefact_free": "windows without any artefact",
        **{name.replace(" ", "_"): f"windows of {name}" for name in (SILENCE, *ARTEFACTS)},
        "text_loops/share": "time in loops of text",
        "audio_loops/share": "time in loops of audio",
        "voice/own": "voice closer to its own beginning than to the user",
    }
    rates = {
        f"{name}/per_hour": f"{name.replace('_', ' ')} per hour" for name in ("text_loops", "audio_loops", "stalls")
    }
    values = results.values
    rows = [(label, f"{values[name]:.1%}" if name in values else "-") for name, label in shown.items()]
    rows += [(label, f"{values[name]:.1f}" if name in values else "-") for name, label in rates.items()]
    page.section(
        "Artefacts",
        f"Windows of {WINDOW} frames, by the entropy of their tokens (arXiv 2410.00037, appendix D). Silence is no "
        "artefact. A quantised Moshi that is as good as unquantised has 95 % of windows without any.",
    )
    page.table(("", ""), rows)


def drift(page: Page, bins: Sequence[Sequence[Mapping[str, float]]], minutes: float) -> None:
    """Draw the figures of the bins over the time of the call, a line for each call."""
    from moshijax.report import plots

    names = [name for name in DRIFT if any(name in one for call in bins for one in call)]
    page.section("Drift", f"Every point is a bin of {minutes:g} minutes; what changes from left to right drifts.")
    rows = -(-len(names) // 2)
    figure, axes = plots.new_figure(11, 2.2 * rows, rows, 2, sharex=True)
    for ax, name in zip(axes.flat, names, strict=False):
        for colour, call in zip(plots.COLOURS * len(bins), bins, strict=False):
            at = (np.arange(len(call)) + 0.5) * minutes
            ax.plot(at, [one.get(name, np.nan) for one in call], color=colour, marker="o", markersize=4, linewidth=1.6)
        ax.set_title(DRIFT[name], loc="left", fontsize=11, color=plots.INK)
        ax.grid(axis="y", color=plots.LINE, linewidth=0.8)
    for ax in axes.flat[len(names) :]:
        ax.set_visible(False)
    for ax in axes[-1]:
        ax.set_xlabel("minutes", fontsize=10, color=plots.SOFT)
    page.figure(figure, "Drift over the call, one line for each call.")


def windows(page: Page, examined: Examined, model: Artifact) -> None:
    """Draw entropies, artefacts, loops and stalls of one call over its time."""
    from moshijax.report import plots

    page.section("The first call", "Entropies of the last 64 tokens above, what was found below.")
    frame = model.frame_seconds / 60
    figure, (upper, lower) = plots.new_figure(11, 5, 2, 1, sharex=True, gridspec_kw={"height_ratios": (3, 2)})
    ax = upper[0]
    at = np.arange(len(examined.text)) * frame
    low, high = np.quantile(examined.audio, [0, 1], axis=0)
    ax.fill_between(at, low, high, color=plots.COLOURS[1], alpha=0.25, linewidth=0, label="codebooks, all")
    ax.plot(at, np.median(examined.audio, axis=0), color=plots.COLOURS[1], linewidth=1, label="codebooks, median")
    ax.plot(at, examined.text, color=plots.COLOURS[0], linewidth=1, label="text")
    ax.set_ylabel("nats", fontsize=10, color=plots.SOFT)
    ax.legend(fontsize=8, frameon=False, labelcolor=plots.INK)
    found = {name: [(WINDOW * (1 + n) * frame, WINDOW * frame) for n in np.flatnonzero(examined.windows[name])]
             for name in (SILENCE, *ARTEFACTS)}  # fmt: skip
    found |= {
        f"{name} loop": [(a * frame, (b - a) * frame) for a, b in spans] for name, spans in examined.loops.items()
    }
    found["stall"] = [(start / 60, (end - start) / 60) for start, end in examined.stalls]
    ax = lower[0]
    for row, (name, spans) in enumerate(found.items()):
        ax.broken_barh(spans, (-row - 0.4, 0.8), color=plots.SOFT if name == SILENCE else plots.COLOURS[4])
    ax.set_yticks(-np.arange(len(found)), found)
    ax.set_xlabel("minutes", fontsize=10, color=plots.SOFT)
    page.figure(figure, "Entropies and findings of the first call over its time.")
