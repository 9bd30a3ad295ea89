"""What the picture of turns shows is what it was given."""

from __future__ import annotations

import numpy as np

from moshijax.report.turn_timing import Timed, turn_timing

NAMES = ("overlapping changes", "backchannels per long turn")


def timed(middle: float, shares: tuple[float, float], places=(0.2, 0.5, 0.9)) -> Timed:
    return Timed(middle + np.linspace(-0.4, 0.4, 101), places, dict(zip(NAMES, shares, strict=True)), "9 a minute")


def test_every_set_has_its_curves_and_bars_in_one_colour():
    sets = {"reference": timed(0.2, (0.25, 0.5)), "made": timed(0.3, (0.125, 1.5))}
    figure = turn_timing(sets)
    gaps, places, bars = figure.axes
    curves = gaps.get_lines()[1:]  # the first is that of no gap
    for curve, place, (name, given) in zip(curves, places.get_lines(), sets.items(), strict=True):
        np.testing.assert_allclose(curve.get_xdata(), given.gaps)
        np.testing.assert_allclose(curve.get_ydata()[[0, 50, 100]], [0, 0.5, 1])
        np.testing.assert_allclose(place.get_xdata(), given.places)
        assert curve.get_label() == f"{name}\n9 a minute" and curve.get_color() == place.get_color()
    assert [[bar.get_height() for bar in group] for group in bars.containers] == [[0.25, 0.5], [0.125, 1.5]]
    assert gaps.get_xlim()[0] < 0 < gaps.get_xlim()[1]


def test_without_backchannels_the_picture_says_so():
    figure = turn_timing({"made": timed(0.2, (0.0, 0.0), ())})
    assert [text.get_text() for text in figure.axes[1].texts] == ["no backchannels"]
    figure.canvas.draw()
