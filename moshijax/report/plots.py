"""Pictures of runs and calls: losses, spectrograms, the token grid, step times. Each returns a matplotlib figure."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from matplotlib.axes import Axes

INK, SOFT, LINE = "#1d2733", "#5d6b7a", "#e3e8ee"
COLOURS = ("#1668b8", "#d1661a", "#157f4b", "#8a4fbf", "#b3362b", "#0f8b8d", "#a67c00", "#5d6b7a")
_FONT = 10
_TITLE = 36  # characters of a title that fit above one of three panels


def new_figure(
    width: float, height: float, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, np.ndarray]:
    """Return a figure and its axes [rows, columns], in the style of the pages."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for ax in axes.flat:
        ax.tick_params(colors=SOFT, labelsize=_FONT - 1, length=3)
        for side, spine in ax.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(LINE)
    return figure, axes


def name_axes(ax: Axes, title: str = "", x: str = "", y: str = "") -> None:
    """Write a title and the names of the axes, in the style of the pages."""
    if title:
        ax.set_title(title, loc="left", fontsize=_FONT + 1, color=INK)
    ax.set_xlabel(x, fontsize=_FONT, color=SOFT)
    ax.set_ylabel(y, fontsize=_FONT, color=SOFT)


def loss_curves(
    metrics: Sequence[Mapping[str, Any]], panels: Mapping[str, Mapping[str, str]], x: str = "step"
) -> Figure:
    """Draw metrics of a run against its steps; a curve of one point is drawn as a dot.

    Args:
      metrics: the lines of a metrics.jsonl.
      panels: title -> {metric name: label}; names that no line holds and panels without curves are omitted.
      x: label of the axis of steps.
    """
    found = {}
    for title, curves in panels.items():
        lines = {}
        for name, label in curves.items():
            points = [(line["step"], line[name]) for line in metrics if line.get(name) is not None]
            if points:
                lines[label] = np.array(points, float)
        if lines:
            found[title] = lines
    columns = max(1, min(len(found), 3))
    rows = max(1, -(-len(found) // columns))
    figure, axes = new_figure(11, 3.2 * rows, rows, columns)
    for ax, (title, lines) in zip(axes.flat, found.items(), strict=False):
        for colour, (label, points) in zip(COLOURS * 4, lines.items(), strict=False):
            marker = "o" if len(points) == 1 else ""
            ax.plot(points[:, 0], points[:, 1], color=colour, linewidth=1.6, marker=marker, markersize=5, label=label)
        name_axes(ax, textwrap.fill(title, _TITLE), x)
        ax.grid(axis="y", color=LINE, linewidth=0.8)
        ax.set_axisbelow(True)
        if len(lines) > 1:
            ax.legend(fontsize=_FONT - 1, frameon=False, labelcolor=INK)
    for ax in axes.flat[len(found) :]:
        ax.set_visible(False)
    return figure


def log_spectrogram(pcm: Float[np.ndarray, " N"], window: int = 512, hop: int = 128) -> Float[np.ndarray, "F L"]:
    """Return magnitudes in dB relative to a full-scale sine, frequency x time."""
    pcm = np.pad(np.asarray(pcm, np.float64), (window // 2, window // 2))
    frames = np.lib.stride_tricks.sliding_window_view(pcm, window)[::hop]
    weights = np.hanning(window)
    spectrum = np.abs(np.fft.rfft(frames * weights, axis=1)) / (weights.sum() / 2)
    return 20 * np.log10(np.maximum(spectrum, 1e-5)).T


def _spectrogram(ax: Axes, pcm: np.ndarray, sample_rate: int, max_hz: float) -> None:
    image = log_spectrogram(pcm)
    top = min(max_hz, sample_rate / 2)
    keep = round(image.shape[0] * top / (sample_rate / 2))
    extent = (0, len(pcm) / sample_rate, 0, top / 1000)
    ax.imshow(image[:keep], origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=-90, vmax=-25)


def spectrograms(
    signals: Mapping[str, Float[np.ndarray, " N"]], sample_rate: int, max_hz: float = 6000, columns: int = 1
) -> Figure:
    """Draw a spectrogram of each named signal, all on the same scale of colours and time."""
    rows = -(-len(signals) // columns)
    figure, axes = new_figure(11, 0.5 + 1.65 * rows, rows, columns, sharex=True, sharey=True)
    for ax, (name, pcm) in zip(axes.flat, signals.items(), strict=False):
        _spectrogram(ax, pcm, sample_rate, max_hz)
        name_axes(ax, name, y="kHz")
    for ax in axes[-1]:
        ax.set_xlabel("seconds", fontsize=_FONT, color=SOFT)
    for ax in axes.flat[len(signals) :]:
        ax.set_visible(False)
    return figure


def _code_colours(codes_QT: np.ndarray, card: int, hue: tuple[float, float]) -> np.ndarray:
    """Return a colour per code, from a range of hues so that two streams look different; grey where there is none."""
    scrambled = (np.maximum(codes_QT, 0) * 0.6180339887) % 1.0
    level = np.maximum(codes_QT, 0) / max(card - 1, 1)
    colours = hsv_to_rgb(
        np.stack([hue[0] + (hue[1] - hue[0]) * scrambled, 0.3 + 0.45 * scrambled, 0.95 - 0.4 * level], axis=-1)
    )
    return np.where((codes_QT < 0)[..., None], 0.93, colours)


def token_grid(
    groups: Mapping[str, Int[np.ndarray, "Q T"]],
    card: int,
    frame_seconds: float,
    text: Sequence[str] = (),
    epad: Sequence[bool] = (),
    words: Sequence[tuple[str, float, float]] = (),
    audio: Mapping[str, Float[np.ndarray, " N"]] | None = None,
    sample_rate: int | None = None,
) -> Figure:
    """Draw the token grid of a call: the text row above the codes of each speaker, and optional spectrograms.

    Args:
      groups: speaker -> codes [Q, T], negative where there are none.
      card: number of different codes.
      frame_seconds: duration of a frame.
      text: the piece of every frame, "" for padding.
      epad: true where the padding ends.
      words: (word, start, end) in seconds, written over the grid.
      audio: name -> waveform.
      sample_rate: of `audio`, in Hz.
    """
    audio = audio or {}
    frames = next(iter(groups.values())).shape[1]
    seconds = frames * frame_seconds
    heights = [0.75] + [0.16 * codes.shape[0] + 0.12 for codes in groups.values()] + [1.35] * len(audio)
    figure, axes = new_figure(
        11, 0.9 + sum(heights), len(heights), 1, sharex=True, gridspec_kw={"height_ratios": heights}
    )
    rows = list(axes[:, 0])
    _text_row(rows[0], text, epad, words, frame_seconds, seconds)
    hues = ((0.02, 0.15), (0.52, 0.68), (0.3, 0.42), (0.78, 0.9))
    for ax, (name, codes_QT), hue in zip(rows[1:], groups.items(), hues * len(groups), strict=False):
        extent = (0, seconds, codes_QT.shape[0] + 0.5, 0.5)
        ax.imshow(_code_colours(codes_QT, card, hue), aspect="auto", extent=extent, interpolation="nearest")
        ax.set_yticks([1, codes_QT.shape[0]])
        name_axes(ax, f"{name}: {codes_QT.shape[0]} codebooks, semantic first")
    for ax, (name, pcm) in zip(rows[1 + len(groups) :], audio.items(), strict=True):
        _spectrogram(ax, pcm, sample_rate, 6000)
        name_axes(ax, name, y="kHz")
    rows[-1].set_xlabel("seconds", fontsize=_FONT, color=SOFT)
    rows[-1].set_xlim(0, seconds)
    return figure


def _text_row(
    ax: Axes, text: Sequence[str], epad: Sequence[bool], words: Sequence, frame_seconds: float, seconds: float
) -> None:
    ax.set_ylim(0, 2)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.axhspan(0.1, 0.75, xmin=0, xmax=1, color="#eef1f5", linewidth=0)
    for frame, piece in enumerate(text):
        if piece:
            ax.axvspan(frame * frame_seconds, (frame + 1) * frame_seconds, 0.05, 0.375, color=COLOURS[2], linewidth=0)
        elif frame < len(epad) and epad[frame]:
            ax.axvspan(frame * frame_seconds, (frame + 1) * frame_seconds, 0.05, 0.375, color="#b9d8c7", linewidth=0)
    last = -1.0
    for word, start, _ in words:
        start = max(start, last)
        ax.text(start, 0.95, word, fontsize=_FONT + 1, color=INK, va="bottom", ha="left")
        last = start + seconds * (0.011 * len(word) + 0.006)
    name_axes(ax, "text of the model: words (dark), end of padding (light), padding (grey)")


def timing_histogram(step_seconds: Float[np.ndarray, " steps"], frame_seconds: float) -> Figure:
    """Draw a histogram of the wall time per step, against the duration of a frame."""
    ms = 1000 * np.asarray(step_seconds)
    median, p99 = np.median(ms), np.percentile(ms, 99)
    figure, axes = new_figure(11, 2.6)
    ax = axes[0, 0]
    top = max(1.15 * 1000 * frame_seconds, 1.05 * p99)
    ax.hist(np.minimum(ms, top), bins=np.linspace(0, top, 120), color=COLOURS[0])
    marks = ((median, f"median {median:.1f} ms"), (p99, f"p99 {p99:.1f} ms"), (1000 * frame_seconds, "one frame"))
    for height, (at, label) in zip((0.92, 0.76, 0.92), marks, strict=True):
        ax.axvline(at, color=INK, linewidth=1, linestyle="--")
        ax.text(at, height, f" {label}", transform=ax.get_xaxis_transform(), fontsize=_FONT, color=INK)
    ax.set_xlim(0, top)
    name_axes(ax, x="milliseconds per step", y="steps")
    return figure
