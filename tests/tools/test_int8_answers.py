"""What 8-bit weights change in the answers of a small LLaMA-Omni, and how large those of the published one are."""

from __future__ import annotations

from moshijax.omni import config
from tests.omni.small import OMNI, params
from tools.studies import int8_answers


def test_int8_changes_little(record_property):
    """Weights are drawn so large that tokens vary, which makes the model sensitive: bfloat16 is 0.015 / 0.033 away."""
    compared = {name: types for name, types in int8_answers.COMPARED.items() if types.weights == "int8"}
    found = int8_answers.compare(OMNI, params(), 16, compared)
    record_property("figures", str(found))
    assert len(found) == 2
    for types, rows in found.items():
        for row, error, nats in (("text", 0.035, 0.002), ("units", 0.06, 0.03)):
            here = rows[row]
            assert 0.002 < here.error < error and here.agreement > 0.95 and 0 < here.nats < nats, (types, row, here)


def test_the_published_model_is_about_half_as_large():
    sizes = int8_answers.sizes(config.LLAMA_OMNI_8B)
    table = 2 * 128256 * 4096  # which stays in bfloat16
    assert 0.5 < (sizes["int8"] - table) / (sizes["bfloat16"] - table) < 0.505
    assert sizes["bfloat16"] < 0.501 * sizes["float32"]
