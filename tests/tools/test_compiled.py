"""The pages made of the figures of compiled steps, and the arithmetic on them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moshijax.compiled.chips import find
from tools.bench import compiled
from tools.pages import fill

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def record():
    return json.loads((DOCS / compiled.RECORD).read_text())


def test_the_pages_have_the_tables_of_the_record(record):
    for page, tables in compiled.tables(record).items():
        text = (DOCS / page).read_text()
        assert fill(text, tables) == text, f"{page}: write it again with tools.bench.compiled"


def test_every_step_is_near_its_floor(record):
    """No pass over a cache or a kernel beside the one that is needed, and no branch."""
    for case, found in record.items():
        assert found["conditionals"] == 0 and found["temporary"] < 0.5e9, case
        assert round(found["traffic"] / found["floor"], 2) <= (1.2 if "int8" in case else 1.1), case


def test_the_calls_of_a_card_fill_its_memory():
    gigabyte, bandwidth = 10**9, find("l40s").bandwidth
    figures = {"temporary": 0, "floor": 1, "kernels": 1, "conditionals": 0, "copies": {}}
    record = {
        f"l40s int8 {calls}": {"memory": 8 * gigabyte + calls * gigabyte, "traffic": bandwidth * (calls + 9) / 1e3}
        for calls in (1, 11)
    }
    record = {case: {**figures, **found} for case, found in record.items()}
    # 95 % of 47.81 GB are 45.42 GB
    assert "| L40S | int8 | 8.00 GB | 1.00 GB | **37** | 46 ms |" in compiled.capacity(record)
    assert str(compiled.Case.read("l40s int8 11")) == "l40s int8 11"
