"""What a run reports: sums over a log interval, one JSON line and one readable line each, and TensorBoard."""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

log = logging.getLogger(__name__)


class Interval:
    """Weighted means over the steps since the last line. It is saved with a checkpoint, so that the numbers of a
    resumed run are those of one that never stopped."""

    def __init__(self, saved: Mapping[str, Any] | None = None) -> None:
        self._sums: dict[str, list[float]] = {name: list(pair) for name, pair in (saved or {}).items()}

    def add(self, prefix: str, sums: Mapping[str, tuple[float, float]]) -> None:
        for name, (numerator, denominator) in sums.items():
            total = self._sums.setdefault(f"{prefix}/{name}", [0.0, 0.0])
            total[0] += numerator
            total[1] += denominator

    def means(self) -> dict[str, float]:
        """Name -> mean; a metric without any weight (no such target in the interval) is left out."""
        return {name: a / b for name, (a, b) in self._sums.items() if b}

    def save(self) -> dict[str, list[float]]:
        return {name: list(pair) for name, pair in self._sums.items()}

    def clear(self) -> None:
        self._sums.clear()


class Writer:
    """metrics.jsonl and TensorBoard event files of a run, written by the first process alone, and what else takes
    `write` and `close` (`others`). Lines after the step at which a run resumes, and beyond the number that its
    checkpoint knows of, are dropped first: they will be written again."""

    def __init__(self, metrics: Path, tensorboard: Path, step: int, lines: int, others: Sequence[Any] = ()) -> None:
        self._file = self._board = None
        self._others = others
        self.lines = 0
        if jax.process_index() == 0:
            self.lines = _drop_later(metrics, step, lines)
            self._file = metrics.open("a", encoding="utf-8")
            self._board = _tensorboard(tensorboard, step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line {"step": ..., name: value, ...}; values that are not finite become null."""
        if self._file is None:
            return
        plain = {name: float(f"{value:.7g}") if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **plain}) + "\n")
        self._file.flush()
        self.lines += 1
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        for other in self._others:
            other.write(step, values)

    def close(self) -> None:
        for other in self._others:
            other.close()
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


def _drop_later(path: Path, step: int, lines: int) -> int:
    """Keep the first complete lines, up to a step and to a number; returns how many are kept."""
    if not path.exists():
        return 0
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step and len(kept) < lines:
                kept.append(line + "\n")
        except (ValueError, KeyError):  # cut off by a kill
            continue
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(kept), encoding="utf-8")
    os.replace(partial, path)
    return len(kept)


def _tensorboard(path: Path, step: int) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ModuleNotFoundError:
        log.warning("no TensorBoard files: package 'tensorboardX' is not installed: pip install 'moshijax[train]'")
        return None
    return SummaryWriter(str(path), purge_step=step + 1 if step else None, flush_secs=30)


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, oldest first; a line cut off by a kill is left out."""
    found = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def readable(step: int, steps: int, values: Mapping[str, float]) -> str:
    """The line a person reads."""
    parts = [f"step {step}/{steps}"]
    for name, label in (("train/loss", "loss"), ("train_text/loss", "text-only loss"), ("train/grad_norm", "grad")):
        if name in values:
            parts.append(f"{label} {values[name]:.4g}")
    if "train/learning_rate" in values:
        parts.append(f"lr {values['train/learning_rate']:.2e}")
    if "time/step" in values:
        parts.append(f"{1000 * values['time/step']:.0f} ms/step")
    if "throughput/audio_seconds" in values:
        parts.append(f"{values['throughput/audio_seconds']:.0f} s audio/s")
    if "throughput/mfu" in values:
        parts.append(f"mfu {100 * values['throughput/mfu']:.0f} %")
    if "time/data_wait_share" in values:
        parts.append(f"data wait {100 * values['time/data_wait_share']:.0f} %")
    if "data/skipped_recordings" in values:
        parts.append(f"skipped recordings {values['data/skipped_recordings']:.0f}")
    if "time/left" in values:
        left = int(values["time/left"])
        parts.append(f"left {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}")
    return "  ".join(parts)


def readable_evaluation(step: int, values: Mapping[str, float]) -> str:
    """The line a person reads after an evaluation: losses as a whole, other figures of one value, and how a codec
    sounds with all of its codebooks. The rest is in metrics.jsonl and on the pages."""
    counts = [int(found[1]) for name in values if (found := re.match(r"eval/(\d+)_codebooks/", name))]
    sound = f"eval/{max(counts, default=0)}_codebooks/"
    parts = [f"{name} {value:.4g}" for name, value in values.items() if name.count("/") == 1 or name.startswith(sound)]
    return "  ".join([f"step {step}", *parts])
