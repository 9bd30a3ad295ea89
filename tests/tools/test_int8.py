"""What 8-bit weights and caches change in a model of the PyTorch reference, beside what bfloat16 changes."""

from __future__ import annotations

import numpy as np
import pytest

from tools.studies import int8


@pytest.fixture(scope="module")
def found():
    config, params = int8.reference("lm_moshi")
    grids = int8.random_grids(config, 4, 3 * config.temporal.context)
    return int8.compare(config, params, grids)


def test_int8_is_about_as_near_as_bfloat16(found, record_property):
    """Random weights are the hard case: many tokens are nearly as likely as the most likely one."""
    record_property("figures", str(found))
    for row, error, agreement in (("text", 0.035, 0.95), ("audio", 0.06, 0.92)):
        half = found["bfloat16"][row]
        for types in list(found)[1:]:
            here = found[types][row]
            assert 0.002 < here.error < error and here.error < 1.7 * half.error, (types, row, here)
            assert here.agreement > agreement and 0 < here.nats < 0.01, (types, row, here)
        weights, both = (found[name][row].error for name in ("int8 weights", "int8 weights and cache"))
        assert weights < both  # (the cache takes part)


def test_a_difference_is_what_it_says():
    exact = np.array([[0.0, 1.0, -1.0], [2.0, 0.0, -2.0]])
    found = exact + np.array([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    got = int8.difference(found, exact)
    assert got.error == pytest.approx(np.sqrt(4 / 6) / np.sqrt(10 / 6)) and got.agreement == 0.5
    p, q = (np.exp(row) / np.exp(row).sum() for row in (exact[0], found[0]))
    assert got.nats == pytest.approx(np.sum(p * np.log(p / q)) / 2, rel=1e-5)
    assert int8.difference(exact, exact) == (0.0, 1.0, 0.0)
