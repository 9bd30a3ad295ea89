"""A picture of when people speak, several sets of calls beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moshijax.report.plots import COLOURS, INK, LINE, SOFT, name_axes, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SHOWN = (0.01, 0.99)  # quantiles of gaps within which the axis ends: a few are as long as the call


@dataclass(frozen=True)
class Timed:
    """Statistics of a set of calls.

    Attributes:
      gaps: quantiles, evenly spaced from the least, of the seconds between turns; negative where they overlap.
      places: the same, of where in a turn the listener's backchannels begin, 0 to 1; () if there are none.
      shares: figures by name that are drawn as bars.
      note: what else is said of the set, behind its name.
    """

    gaps: Sequence[float]
    places: Sequence[float]
    shares: Mapping[str, float]
    note: str = ""


def turn_timing(sets: Mapping[str, Timed]) -> Figure:
    """Draw the gaps between turns, the places of backchannels and shares, a colour for each set.

    Args:
      sets: by name, with the same shares; the reference first.
    """
    figure, ((left, middle, right),) = new_figure(12, 4.2, columns=3, width_ratios=(1.3, 1, 1))
    ends = [np.quantile(timed.gaps, _SHOWN) for timed in sets.values()]
    left.set_xlim(min(-0.1, min(low for low, _ in ends)), max(0.1, max(high for _, high in ends)))
    left.axvline(0, color=SOFT, linewidth=1, linestyle="--")
    left.text(0, 1.02, "overlap  ", transform=left.get_xaxis_transform(), ha="right", fontsize=9, color=SOFT)
    left.text(0, 1.02, "  pause", transform=left.get_xaxis_transform(), ha="left", fontsize=9, color=SOFT)
    middle.set_xlim(0, 1)
    for colour, (name, timed) in zip(COLOURS * len(sets), sets.items(), strict=False):
        _cumulative(left, timed.gaps, colour, f"{name}\n{timed.note}" if timed.note else name)
        if len(timed.places):
            _cumulative(middle, timed.places, colour)
    if not any(len(timed.places) for timed in sets.values()):
        middle.text(0.5, 0.5, "no backchannels", ha="center", va="center", color=SOFT)
    name_axes(left, x="seconds from the end of a turn to the next one", y="share of changes of the speaker")
    name_axes(middle, "backchannels", "place in the other's turn", "share of them")
    _bars(right, sets)
    figure.legend(loc="outside lower center", ncols=min(3, len(sets)), fontsize=10, frameon=False, labelcolor=INK)
    return figure


def _cumulative(ax: Axes, quantiles: Sequence[float], colour: str, name: str | None = None) -> None:
    ax.plot(quantiles, np.linspace(0, 1, len(quantiles)), color=colour, linewidth=1.8, label=name)
    ax.set_ylim(0, 1)
    ax.grid(axis="y", color=LINE, linewidth=0.8)
    ax.set_axisbelow(True)


def _bars(ax: Axes, sets: Mapping[str, Timed]) -> None:
    names = list(next(iter(sets.values())).shares)
    width = 0.8 / len(sets)
    for number, (colour, timed) in enumerate(zip(COLOURS * len(sets), sets.values(), strict=False)):
        at = np.arange(len(names)) + (number - (len(sets) - 1) / 2) * width
        bars = ax.bar(at, [timed.shares[name] for name in names], 0.92 * width, color=colour)
        ax.bar_label(bars, fmt="%.2f", fontsize=9, color=INK, padding=2)
    ax.set_xticks(range(len(names)), [name.replace(" per ", "\nper ").replace(" ch", "\nch", 1) for name in names])
    ax.margins(y=0.15)
    name_axes(ax, "how often")
