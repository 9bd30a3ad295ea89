"""The page of a training run, made from the files in its directory; it can be written while the run continues."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from moshijax import optional
from moshijax.report.page import Page
from moshijax.weights.run_files import METRICS, RECIPE, read_metrics, steps_of

log = logging.getLogger(__name__)

PAGE = "report.html"

# Title of a panel -> what the names of its curves match; group 1 is the label.
PANELS = {
    "Loss": r"^(train|train_text|eval|eval_text)/loss$",
    "Text": r"^((?:train|train_text|eval)/text_(?:words|padding))/loss$",
    "Perplexity of held-out text": r"^eval_text/(perplexity)$",
    "Audio, by codebook": r"^train/(\w+_\d+)/loss$",
    "Parts of the loss": r"^train/([a-z_]+[a-z])/loss$",
    "Accuracy": r"^train/(\w+)/accuracy$",
    "Gradient norm of each loss": r"^train/(\w+)/grad_norm$",
    "Gradient norm": r"^(?:train|train_text)/(?:\w+/)?grad_norm/?(.*)$",
    "Use of codebooks, as entropy": r"^train/codebook_(\d+)/usage_entropy$",
    "Codes replaced, share": r"^train/codebook_(\d+)/replaced$",
    "Held-out SI-SDR, dB, by codebooks": r"^eval/(\d+)_codebooks/si_sdr$",
    "Held-out mel distance": r"^eval/(\d+)_codebooks/mel$",
    "Held-out STOI": r"^eval/(\d+|noise)(?:_codebooks)?/stoi$",
    "Held-out PESQ": r"^eval/(\d+|noise)(?:_codebooks)?/pesq$",
    "Codes that stay when encoded again": r"^eval/stability/codebook_(\d+)$",
    "The same, shifted by 40 ms": r"^eval/stability_shifted/codebook_(\d+)$",
    "ABX error of the semantic level": r"^eval/(abx)$",
    "Held-out calls, share": r"^calls/(\w+)$",
    "Recordings skipped as unusable": r"^data/(skipped_recordings)$",
    "Learning rate": r"^train/(?:\w+/)?learning_rate/?(.*)$",
    "Model FLOPs utilisation": r"^throughput/mfu/?(.*)$",
    "Audio, seconds per second": r"^throughput/(audio_seconds)$",
    "Seconds per step": r"^time/(step)$",
    "Seconds spent on other things": r"^time/(data_wait|save|evaluate|compile)$",
}


def panels_of(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Return title -> {metric: label} for the metrics that the lines of a run hold, each in the first panel it fits."""
    names = dict.fromkeys(name for line in lines for name in line)
    found: dict[str, dict[str, str]] = {}
    for name in names:
        for title, pattern in PANELS.items():
            match = re.match(pattern, name)
            if match:
                found.setdefault(title, {})[name] = match.group(1) or "all"
                break
    return {title: found[title] for title in PANELS if title in found}


def write_run_page(run_dir: str | Path) -> Path:
    """Write `report.html` into a run directory, from its metrics and its config.

    Returns:
      The path of the page.

    Raises:
      DataError: its metrics or its config are damaged.
      MissingPackage: matplotlib is not installed.
    """
    optional.load("matplotlib")
    from moshijax.report import plots

    run_dir = Path(run_dir)
    lines, steps = read_metrics(run_dir / METRICS), steps_of(run_dir)
    last = _last_values(lines)
    done = lines[-1]["step"] if lines else 0
    page = Page(run_dir.name, f"Training run: {done} of {steps} steps are done.")
    page.cards(_cards(done, steps, last))
    panels = panels_of(lines)
    if panels:
        page.section("While it runs", "Means over the steps since the previous line; losses of tokens in nats.")
        page.figure(plots.loss_curves(lines, panels), f"Metrics of the run, to step {done}")
    rows = [(name, f"{value:.5g}") for name, value in sorted(last.items())]
    page.section("Latest values")
    page.table(("name", "value"), rows)
    if (run_dir / RECIPE).exists():
        page.section("Experiment", "The whole resolved recipe.")
        page.commands((run_dir / RECIPE).read_text(encoding="utf-8", errors="replace").splitlines())
    page.write(run_dir / PAGE)
    return run_dir / PAGE


class PageWriter:
    """Write the page of a run in a thread; a request while one is being written is dropped."""

    def __init__(self, run_dir: str | Path, write: Callable[[Path], object] = write_run_page) -> None:
        self._run_dir = Path(run_dir)
        self._make: Callable[[Path], object] | None = write
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="report")
        self._last: Future | None = None

    def _once(self) -> None:
        try:
            self._make(self._run_dir)
        except Exception as error:  # the numbers are in metrics.jsonl; a page is not worth the run
            log.warning("no report: %s", error)
            self._make = None

    def write(self) -> None:
        """Ask for the page."""
        if self._make is not None and (self._last is None or self._last.done()):
            self._last = self._pool.submit(self._once)

    def close(self) -> None:
        """Write the last page, with everything."""
        if self._last is not None:
            self._last.result()
        self.write()
        self._pool.shutdown(wait=True)


def _last_values(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    merged = {name: value for line in lines for name, value in line.items() if value is not None}
    return {name: value for name, value in merged.items() if name != "step"}


def _cards(done: int, steps: int, last: Mapping[str, float]) -> list[tuple[str, str, str, bool | None]]:
    left = int(last.get("time/left", 0.0))
    cards = [(f"{done}", "steps", f"of {steps}; {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} h left", None)]
    for name, label, form in (
        ("train/loss", "loss", "{:.4g}"),
        ("eval/loss", "held-out loss", "{:.4g}"),
        ("eval_text/perplexity", "perplexity of held-out text", "{:.4g}"),
        ("calls/right", "share of held-out calls answered right", "{:.3f}"),
        ("throughput/frames", "frames per second", "{:.0f}"),
        ("throughput/audio_seconds", "seconds of audio per second", "{:.0f}"),
    ):
        if name in last:
            cards.append((form.format(last[name]), label, "", None))
    if "throughput/mfu" in last:
        cards.append((f"{100 * last['throughput/mfu']:.0f} %", "model FLOPs utilisation", "", None))
    if "time/data_wait_share" in last:
        waited = last["time/data_wait_share"]
        cards.append((f"{100 * waited:.0f} %", "of the time waiting for data", "", waited < 0.05))
    return cards
