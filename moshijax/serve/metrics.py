"""The figures of an engine in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from moshijax.serve.engine import Engine

SHARES = (50, 95, 99, 100)


class _Figures(Collector):
    def __init__(self, engine: Engine):
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """Yield the figures as they are now."""
        engine, stats = self._engine, self._engine.stats
        for name, help_text, value in (
            ("slots", "Calls that can be taken at once.", engine.batch),
            ("callers", "Slots that are taken.", engine.callers),
            ("ready", "1 if calls can be taken.", int(engine.ready)),
        ):
            yield GaugeMetricFamily(f"moshijax_{name}", help_text, value=value)
        for name, help_text in (
            ("calls", "Calls taken."),
            ("refused", "Callers who were told that every slot is taken."),
            ("ticks", "Steps of the batch."),
            ("frames", "Frames of calls in them."),
            ("misses", "Frames whose answer came later than two frames after them."),
        ):
            yield CounterMetricFamily(f"moshijax_{name}", help_text, value=getattr(stats, name))
        frames = CounterMetricFamily("moshijax_call_frames", "Frames of calls that ended.", labels=["what"])
        for what in ("heard", "dropped", "said", "unsent"):
            frames.add_metric([what], getattr(stats, what))
        yield frames
        endings = CounterMetricFamily("moshijax_endings", "Calls that ended, by reason.", labels=["reason"])
        for reason, count in sorted(stats.endings.items()):
            endings.add_metric([reason], count)
        yield endings
        for name, help_text in (
            ("tick", "How long a step of the batch took."),
            ("delay", "How long after a caller's frame had come the answer was there."),
            ("gap", "How long after a caller's last frame the next one was sent."),
        ):
            family = GaugeMetricFamily(f"moshijax_{name}_seconds", help_text, labels=["quantile"])
            for share, value in zip(SHARES, stats.percentiles(f"{name}_seconds", *SHARES)):
                family.add_metric([f"{share / 100:g}"], value)
            yield family


def registry_of(engine: Engine) -> CollectorRegistry:
    """Return a registry that holds the figures of one engine."""
    registry = CollectorRegistry()
    registry.register(_Figures(engine))
    return registry


def text(registry: CollectorRegistry) -> bytes:
    """Return what `/metrics` answers."""
    return generate_latest(registry)
