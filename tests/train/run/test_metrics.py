"""Means, rates and times of an interval, by hand."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

from moshijax.train.run import metrics
from moshijax.train.run.metrics import Clock, MetricSums, pack


def test_means_are_weighted_and_go_on_where_they_were_saved():
    sums = MetricSums()
    sums.add("train", {"loss": (2.0, 1.0), "words": (0.0, 0.0)})
    sums.add("train", pack({"loss": (jnp.float32(9.0), 3.0)}).unpack())
    assert sums.means() == {"train/loss": 11 / 4}
    resumed = MetricSums(sums.save())
    resumed.add("train", {"loss": (1.0, 2.0), "words": (3.0, 2.0)})
    assert resumed.means() == {"train/loss": 2.0, "train/words": 1.5}
    assert sums.means() == {"train/loss": 11 / 4}
    resumed.clear()
    assert resumed.means() == {}


def test_the_clock_counts_steps_alone(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    clock, work = Clock(peak=1000.0), ({"temporal": 30.0, "depth": 20.0}, {"frames": 10.0})

    def step(seconds, waited=0.0):
        now[0] += seconds
        clock.wait(waited)
        clock.step(*work)

    step(50.0, waited=40.0)  # the first one, which compiles
    step(2.0, waited=0.5)
    with clock.hold("save"):
        now[0] += 3.0
    step(9.0, waited=1.0)  # begun before the save
    step(4.0, waited=0.25)
    assert clock.values(steps_left=7) == pytest.approx(
        {
            "time/save": 3.0,
            "throughput/frames": 20 / 6,
            "throughput/mfu": 100 / 6 / 1000,
            "throughput/mfu/temporal": 60 / 6 / 1000,
            "throughput/mfu/depth": 40 / 6 / 1000,
            "time/step": 3.0,
            "time/data_wait": 0.75,
            "time/data_wait_share": 0.75 / 6,
            "time/left": 21.0,
        }
    )
    assert clock.values(steps_left=7) == {}
    step(1.0)
    assert clock.values(steps_left=0)["throughput/frames"] == pytest.approx(10.0)
