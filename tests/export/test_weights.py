"""How the weights of an artifact are stored."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from moshijax import lm
from moshijax.export import weights
from moshijax.export.step import nested
from moshijax.nn.quantised import Quantised
from tests.lm.models import params
from tests.lm.test_prefill import CONDITIONED


def test_maps_of_conditions_stay_float32():
    """What is added to every input is the same to the bit; keys and values of the source come from int8 kernels."""
    tree = params(CONDITIONED, stacked=False)
    stored = weights.stored("lm", lm.abstract, CONDITIONED, tree, "int8")
    small = {name for name, value in stored.items() if value.dtype == np.int8}
    conditions = [name for name in stored if "conditioners_" in name]
    assert len(conditions) == 5 and not small & set(conditions)
    assert "lm/temporal/layers_0/cross_attention/k_proj/kernel/integers" in small
    taken = jax.tree.map(jnp.asarray, nested(stored)["lm"])
    assert isinstance(taken["temporal"]["layers_0"]["cross_attention"]["k_proj"]["kernel"], Quantised)
    given = {"mood": np.array([1, 2])}
    found, want = (lm.init_generation(CONDITIONED, one, 2, conditions=given)["conditions"] for one in (taken, tree))
    np.testing.assert_array_equal(found["sum"], want["sum"])
    for got, exact in zip(jax.tree.leaves(found["cross"]), jax.tree.leaves(want["cross"]), strict=True):
        assert 0 < np.abs(got - exact).max() < 0.05 * np.abs(exact).max()


def test_how_it_was_stored_is_seen():
    tree = params(CONDITIONED)
    for dtype in weights.WEIGHT_DTYPES:
        stored = nested(weights.stored("lm", lm.abstract, CONDITIONED, tree, dtype))["lm"]
        assert weights.dtype_of(stored["text_head"]["kernel"]) == dtype
