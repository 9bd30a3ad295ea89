from __future__ import annotations

import numpy as np

from moshijax.report import plots


def test_loss_curves_leave_out_what_no_line_holds():
    metrics = [{"step": 10, "train/loss": 2.0, "train/text": None}, {"step": 20, "train/loss": 1.0}]
    figure = plots.loss_curves(metrics, {"loss": {"train/loss": "all"}, "text": {"train/text": "text"}})
    shown = [ax for ax in figure.axes if ax.get_visible()]
    assert len(shown) == 1
    np.testing.assert_array_equal(shown[0].lines[0].get_xydata(), [[10, 2.0], [20, 1.0]])


def test_a_curve_of_one_point_is_seen(tmp_path):
    """A run's evaluations are single points until the second one."""
    lines = [{"step": 10, "eval/stoi": 0.5, "train/loss": 2.0}, {"step": 20, "train/loss": 1.0}]
    one = plots.loss_curves(lines, {"one": {"eval/stoi": "x"}, "two": {"train/loss": "y"}})
    single, several = (ax.lines[0] for ax in one.axes)
    assert single.get_marker() == "o" and several.get_marker() in ("", "None")


def test_a_long_title_is_broken_into_lines():
    title = "Use of codebooks, entropy over the logarithm of their size"
    figure = plots.loss_curves([{"step": 1, "a": 1.0}], {title: {"a": "a"}})
    shown = figure.axes[0].get_title(loc="left")
    assert shown.replace("\n", " ") == title and max(map(len, shown.splitlines())) <= 36


def test_spectrogram_has_its_peak_at_the_tone_and_its_level():
    tone = 0.5 * np.sin(2 * np.pi * 3000 * np.arange(24_000) / 24_000)
    image = plots.log_spectrogram(tone)
    middle = image[:, image.shape[1] // 2]
    assert abs(middle.argmax() * 24_000 / 512 - 3000) <= 24_000 / 512
    assert abs(middle.max() - 20 * np.log10(0.5)) < 1.0


def test_token_grid_draws_a_row_per_part(tmp_path):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (4, 20))
    codes[:, :2] = -1
    figure = plots.token_grid(
        {"model": codes, "user": codes},
        card=256,
        frame_seconds=0.08,
        sample_rate=24_000,
        text=["" for _ in range(18)] + ["▁ra", "in"],
        epad=[False] * 17 + [True] + [False] * 2,
        words=[("rain", 1.44, 1.6)],
        audio={"voice": rng.standard_normal(20 * 1920) * 0.1},
    )
    assert len(figure.axes) == 4
    assert "rain" in [text.get_text() for text in figure.axes[0].texts]
    figure.savefig(tmp_path / "grid.png")


def test_timing_histogram_counts_every_step():
    figure = plots.timing_histogram(np.array([0.004] * 9 + [5.0]), 0.08)
    assert sum(patch.get_height() for patch in figure.axes[0].patches) == 10
