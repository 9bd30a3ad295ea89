"""What a run reports: sums and rates over a log interval, one JSON line and one readable line each, and TensorBoard."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp

from moshijax.files import write
from moshijax.weights.run_files import complete_lines

if TYPE_CHECKING:
    from moshijax.train.run.run_dir import RunDir
    from moshijax.train.task import Sums

log = logging.getLogger(__name__)


@flax.struct.dataclass
class PackedSums:
    """Metrics of a step as one array, so that one transfer brings them to the host.

    Attributes:
      values: [M, 2] float32, a numerator and a denominator of each.
      names: of the metrics, in order.
    """

    values: jax.Array
    names: tuple[str, ...] = flax.struct.field(pytree_node=False)

    def unpack(self) -> dict[str, tuple[float, float]]:
        """Return metric name -> (numerator, denominator); waits for the step."""
        return {name: (float(a), float(b)) for name, (a, b) in zip(self.names, jax.device_get(self.values))}


def pack(sums: Sums) -> PackedSums:
    """Pack the metrics of a step, inside its function."""
    values = [jnp.stack([jnp.asarray(x, jnp.float32) for x in pair]) for pair in sums.values()]
    return PackedSums(jnp.stack(values), tuple(sums))


class MetricSums:
    """Weighted means over the steps since the last line.

    They are saved with a checkpoint, so that the numbers of a resumed run are those of one that never stopped.
    """

    def __init__(self, saved: Mapping[str, Any] | None = None) -> None:
        self._sums: dict[str, list[float]] = {name: list(pair) for name, pair in (saved or {}).items()}

    def add(self, prefix: str, sums: Mapping[str, tuple[float, float]]) -> None:
        for name, (numerator, denominator) in sums.items():
            total = self._sums.setdefault(f"{prefix}/{name}", [0.0, 0.0])
            total[0] += numerator
            total[1] += denominator

    def means(self) -> dict[str, float]:
        """Return name -> mean; a metric without any weight (no such target in the interval) is omitted."""
        return {name: a / b for name, (a, b) in self._sums.items() if b}

    def save(self) -> dict[str, list[float]]:
        return {name: list(pair) for name, pair in self._sums.items()}

    def clear(self) -> None:
        self._sums.clear()


@dataclass
class Clock:
    """Wall time of an interval without the first step after a start, evaluations and checkpoints.

    Attributes:
      peak: FLOP/s of all devices.
    """

    peak: float
    running: float = 0.0
    waited: float = 0.0
    steps: int = 0
    flops: dict[str, float] = field(default_factory=dict)
    amounts: dict[str, float] = field(default_factory=dict)
    held: dict[str, float] = field(default_factory=dict)
    _since: float | None = None

    @contextlib.contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Stop the clock for something else than steps, whose seconds are reported as `time/<name>`."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.held[name] = self.held.get(name, 0.0) + time.perf_counter() - begin
            self._since = None

    def wait(self, seconds: float) -> None:
        """Count seconds of waiting for data since the last step was done."""
        if self._since is not None:
            self.waited += seconds

    def step(self, flops: Mapping[str, float], amounts: Mapping[str, float]) -> None:
        """Count a step that is done now."""
        now = time.perf_counter()
        if self._since is not None:
            self.running += now - self._since
            self.steps += 1
            for total, found in ((self.flops, flops), (self.amounts, amounts)):
                for name, amount in found.items():
                    total[name] = total.get(name, 0.0) + amount
        self._since = now

    def values(self, steps_left: int) -> dict[str, float]:
        """Return the rates of the interval, and begin another one."""
        found = {f"time/{name}": seconds for name, seconds in self.held.items()}
        self.held = {}
        if not self.steps or not self.running:
            return found
        found |= {f"throughput/{name}": amount / self.running for name, amount in self.amounts.items()}
        parts = {name: flops / self.running / self.peak for name, flops in self.flops.items()}
        found |= {
            "throughput/mfu": sum(parts.values()),
            **{f"throughput/mfu/{name}": share for name, share in parts.items()},
            "time/step": self.running / self.steps,
            "time/data_wait": self.waited,
            "time/data_wait_share": self.waited / self.running,
            "time/left": steps_left * self.running / self.steps,
        }
        self.running, self.waited, self.steps, self.flops, self.amounts = 0.0, 0.0, 0, {}, {}
        return found


def peak_memory() -> dict[str, float]:
    """Return the most memory in use on the first device of this process so far, where the device says it."""
    found = jax.local_devices()[0].memory_stats() or {}
    return {"memory/peak_gb": found["peak_bytes_in_use"] / 1e9} if "peak_bytes_in_use" in found else {}


class MetricsLog(Protocol):
    """Where the lines of a run go, beside its own files."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Reporter(Protocol):
    """What writes a page about the run from the files in its directory."""

    def write(self) -> None:
        """Write it soon; the run does not wait."""
        ...

    def close(self) -> None:
        """Write the last version, with everything."""
        ...


class MetricsWriter:
    """metrics.jsonl and TensorBoard event files of a run, and other logs; written by the first process alone.

    Lines after the step at which a run resumes, and beyond the number that its checkpoint knows of, are dropped first:
    they will be written again.
    """

    def __init__(self, run: RunDir, step: int, lines: int, others: Sequence[MetricsLog] = ()) -> None:
        self._file = self._board = None
        self._others = others
        self.lines = 0
        if jax.process_index() == 0:
            self.lines = _drop_later(run.metrics, step, lines)
            self._file = run.metrics.open("a", encoding="utf-8")
            self._board = _tensorboard(run.tensorboard, step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write one line {"step": ..., name: value, ...}; values that are not finite become null."""
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
    """Keep the first complete lines, up to a step and to a number, and return how many they are."""
    found, cut_off = complete_lines(path)
    if cut_off:
        log.warning("%s: its last line was cut off while it was written; 1 line is dropped", path)
    kept = [json.dumps(line) + "\n" for line in found if line["step"] <= step][:lines]
    if found or cut_off:
        write(path, "".join(kept))
    return len(kept)


def _tensorboard(path: Path, step: int) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ModuleNotFoundError:
        log.warning("no TensorBoard files: package 'tensorboardX' is not installed: pip install 'moshijax[train]'")
        return None
    return SummaryWriter(str(path), purge_step=step + 1 if step else None, flush_secs=30)


def readable(step: int, steps: int, values: Mapping[str, float]) -> str:
    """Format the line that a person reads."""
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
    """Format the line that a person reads after an evaluation.

    It has losses as a whole, other figures of one value, and how a codec sounds with all of its codebooks; the rest is
    in metrics.jsonl and on the pages.
    """
    counts = [int(found[1]) for name in values if (found := re.match(r"eval/(\d+)_codebooks/", name))]
    sound = f"eval/{max(counts, default=0)}_codebooks/"
    parts = [f"{name} {value:.4g}" for name, value in values.items() if name.count("/") == 1 or name.startswith(sound)]
    return "  ".join([f"step {step}", *parts])
