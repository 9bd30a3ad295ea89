"""What follows from the figures of a compiled step."""

from __future__ import annotations

import pytest

from moshijax.compiled.chips import Chip
from moshijax.compiled.report import Report
from moshijax.train.plan.footprint import Footprint
from moshijax.train.plan.planning import expected_mfu
from moshijax.train.task import StepKind

CHIP = Chip("x", flops=100.0, bandwidth=10.0, memory=1.0)


@pytest.mark.parametrize(
    ("moved", "computed", "share"),
    [(10, 400.0, 0.75), (80, 400.0, 0.375)],  # 4 s of arithmetic, a quarter of it a second time; 8 s of traffic
)
def test_the_expected_mfu_follows_from_the_longer_of_traffic_and_arithmetic(moved, computed, share):
    report = Report(1, 1, 1, 0, moved, moved, computed, 1, 0, 0)
    flops = {"temporal": 500.0, "depth": 100.0}  # of two devices
    found = Footprint(StepKind("audio", (), None, 1), 0, 0, 0, 0, 0, 0, 0, flops, {}, report)
    assert expected_mfu(found, CHIP, 2) == pytest.approx(share)
