"""The arithmetic of docs/scaling.md."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tools.pages import fill
from tools.studies import scaling
from tools.studies.scaling import H100_128, V5P_256, Machine, Model, Work

MODEL = Model("m", parameters=1000, text=800, tables=100, embedded=30, dim=10, layers=2, context=4)
ONE = Machine("one group", devices=8, group=8, flops=1e3, memory=1e9, near=100.0, far=1.0)


def test_the_page_has_the_figures_of_the_tool():
    page = Path(__file__).parents[2] / "docs" / "scaling.md"
    found = scaling.models()
    tables = {"memory": scaling.memory_table(found), "plan": scaling.plan_table(found[0])}
    assert fill(page.read_text(), tables) == page.read_text(), (
        "run python -m tools.studies.scaling --write docs/scaling.md"
    )
    assert sum(scaling.state_bytes(found[0]).values()) == pytest.approx(178e9, rel=5e-3)


def test_state():
    assert scaling.state_bytes(MODEL) == {
        "parameters": 4000,
        "gradients": 4000,
        "moments of audio steps": 8000,
        "moments of text steps": 6400,
    }
    assert sum(scaling.state_bytes(MODEL, moments=2, text_steps=False).values()) == 12000


def test_arithmetic_of_a_step():
    # 900 parameters; a row of 6 frames with a window of 4 attends to 8 + 8 pairs, 4 x dim FLOP each, 2 layers, thrice.
    work = Work(rows=8, frames=6, microbatches=1, data=1, fsdp=8, tensor=1)
    assert scaling.flops(MODEL, work) == 6 * 900 * 48 + 3 * 4 * 10 * 2 * 16 * 8


def test_traffic_within_a_group():
    alone = scaling.traffic(MODEL, ONE, Work(8, 6, 1, data=8, fsdp=1, tensor=1))
    nothing = dict.fromkeys(("gather", "scatter", "embeddings", "tensor", "far"), 0)
    assert alone == {**nothing, "data": 2 * 4000 * 7 / 8, "near": 7000}
    sharded = scaling.traffic(MODEL, ONE, Work(8, 6, 1, data=1, fsdp=8, tensor=1))
    # All parameters but the tables, and for the 6 frames of a device 30 values of embeddings, there and back.
    assert (sharded["gather"], sharded["scatter"], sharded["data"]) == (2 * 1800 * 7 / 8, 3600 * 7 / 8, 0)
    assert sharded["embeddings"] == 2 * 2 * 6 * 30 * 7 / 8
    twice = scaling.traffic(MODEL, ONE, Work(16, 6, 2, data=1, fsdp=8, tensor=1))
    assert twice["near"] == 2 * sharded["near"]
    # Six sums of the residual stream (10 wide, bfloat16) per layer, for 12 frames a device, over two devices.
    split = scaling.traffic(MODEL, ONE, Work(8, 6, 1, data=1, fsdp=4, tensor=2))
    assert split["tensor"] == 6 * 2 * 12 * 10 * 2 * 2 * 1 / 2


def test_what_leaves_a_group():
    two = dataclasses.replace(ONE, group=4)
    within = scaling.traffic(MODEL, two, Work(8, 6, 1, data=2, fsdp=4, tensor=1))
    assert within["far"] == within["data"] == 2 * 4000 / 4 / 2
    # Half of the parameters come from the other group, a quarter of it through each device: 2 x 2 + 4 bytes each. Half
    # of a device's embeddings come from there too.
    across = scaling.traffic(MODEL, two, Work(8, 6, 1, data=1, fsdp=8, tensor=1))
    assert across["far"] == pytest.approx(7200 / 2 / 4 + 2 * 2 * 6 * 30 / 2)
    assert across["near"] == pytest.approx(across["gather"] + across["scatter"] + 2 * 2 * 6 * 30 * (7 / 8 - 1 / 2))


def test_rows_must_divide():
    with pytest.raises(ValueError, match="64 rows of a microbatch do not divide by data x fsdp = 128"):
        Work(rows=192, frames=10, microbatches=3, data=1, fsdp=128, tensor=1)


@pytest.mark.parametrize("machine", [V5P_256, H100_128])
def test_plans_fit_their_machines(machine):
    model = scaling.models()[0]
    for found, work in scaling.PLANS:
        if found is machine:
            assert work.data * work.fsdp * work.tensor == machine.devices
            assert sum(scaling.memory(model, machine, work).values()) < machine.memory
            times = scaling.times(model, machine, work)
            assert 0 < times["mfu_exposed"] <= times["mfu_hidden"] <= scaling.MATMUL / scaling.AGAIN + 1e-9
