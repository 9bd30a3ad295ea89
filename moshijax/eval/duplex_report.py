"""The page of duplex dynamics: figures of each set, distributions side by side, and some calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from moshijax.eval.dynamics import TIMES, Activity, Dynamics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from moshijax.report.page import Page

SETS = {"model": "the model", "calls": "the recordings", "reference": "the reference set"}
#: Seconds per minute in recordings of Fisher (arXiv 2410.00037, table 9, ground truth).
FISHER = {"ipu": 51.1, "pause": 6.4, "gap": 4.2, "overlap": 3.3}
_REACTIONS = {
    "response/rate": "turns of the user answered",
    "response/latency": "seconds to the answer (median)",
    "response/turns": "turns of the user",
    "incursions/per_turn": "times spoken into a turn, per turn",
    "yield/rate": "interruptions yielded to",
    "yield/latency": "seconds to yield (median)",
    "yield/interruptions": "interruptions by the user",
    "backchannels/ignored": "backchannels spoken over",
    "backchannels/count": "backchannels by the user",
}


def figures(page: Page, measured: Mapping[str, Dynamics]) -> None:
    """Draw the tables of figures; "-" where there is nothing to measure."""
    sets = [name for name in SETS if name in measured]
    values = {name: measured[name].values for name in sets}
    page.section(
        "Time per minute",
        "A unit is speech of one speaker between silences of 0.2 s. A pause is a silence within one speaker's turn, a "
        "gap one between speakers.",
    )
    page.table(
        ("seconds per minute (and how many)", *(SETS[name] for name in sets), "Fisher, as published"),
        [
            (
                label,
                *(
                    f"{values[name][f'{kind}/seconds_per_minute']:.1f} ({values[name][f'{kind}/per_minute']:.1f})"
                    for name in sets
                ),
                FISHER[kind],
            )
            for kind, label in TIMES.items()
        ],
    )
    page.section("Reactions to the user")
    rows = [(label, *(_shown(values[name].get(key)) for name in sets)) for key, label in _REACTIONS.items()]
    page.table(("", *(SETS[name] for name in sets)), rows)


def _shown(value: float | None) -> str:
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.2f}"


def distributions(page: Page, measured: Mapping[str, Dynamics]) -> None:
    """Draw how long units, pauses, gaps and overlaps last, and how long answers and yielding take."""
    page.section("Distributions", "Shares of each set; everything beyond the right end is in the last bin.")
    panels = {
        **{label: {name: one.lengths[kind] for name, one in measured.items()} for kind, label in TIMES.items()},
        "to the answer": {name: one.reactions.responses for name, one in measured.items()},
        "to yield": {name: one.reactions.yields for name, one in measured.items()},
    }
    page.figure(histograms(panels), "Lengths in seconds.")


def histograms(panels: Mapping[str, Mapping[str, Sequence[float]]], bins: int = 24) -> Figure:
    """Return a figure with the distributions of each panel's sets, outlined on common bins."""
    from moshijax.report import plots

    rows = -(-len(panels) // 3)
    figure, axes = plots.new_figure(11, 2.6 * rows, rows, 3)
    for ax, (title, sets) in zip(axes.flat, panels.items(), strict=True):
        every = np.concatenate([np.asarray(found, float) for found in sets.values()])
        top = max(float(np.percentile(every, 98)), 0.1) if len(every) else 1.0
        for colour, name in zip(plots.COLOURS, SETS, strict=False):
            if len(found := np.asarray(sets.get(name, ()), float)):
                shares, edges = np.histogram(np.minimum(found, top), bins, (0, top))
                label = f"{SETS[name]} ({len(found)})"
                ax.stairs(shares / len(found), edges, color=colour, linewidth=1.6, label=label)
        ax.set_title(title, loc="left", fontsize=11, color=plots.INK)
        ax.set_xlabel("seconds", fontsize=10, color=plots.SOFT)
        if len(every):
            ax.legend(fontsize=8, frameon=False, labelcolor=plots.INK)
        else:
            ax.text(0.5, 0.5, "none found", transform=ax.transAxes, ha="center", color=plots.SOFT)
    return figure


def timelines(page: Page, calls: Mapping[str, Activity]) -> None:
    """Draw who speaks when in some calls."""
    from moshijax.report import plots

    page.section("Calls", "The first ones: above the model, below the user.")
    figure, axes = plots.new_figure(11, 0.7 + 0.55 * len(calls), len(calls), 1, sharex=True)
    for ax, (name, call) in zip(axes[:, 0], calls.items(), strict=True):
        for row, colour, speaker in ((1, plots.COLOURS[0], call.model), (0, plots.COLOURS[1], call.user)):
            ax.broken_barh([(start, end - start) for start, end in speaker], (row, 0.8), color=colour)
        ax.set_yticks([])
        ax.set_ylim(-0.1, 1.9)
        ax.set_ylabel(name[-16:], fontsize=8, color=plots.SOFT, rotation=0, ha="right", va="center")
    axes[-1, 0].set_xlabel("seconds", fontsize=10, color=plots.SOFT)
    page.figure(figure, "Inter-pausal units of the model (above) and the user (below) in each call.")
