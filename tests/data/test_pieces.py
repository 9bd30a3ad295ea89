"""Pieces that share their ends are cut and joined without a sample lost or added."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moshijax.data.pieces import faded, overlapping


@given(st.lists(st.integers(0, 40), max_size=12), st.integers(4, 30), st.integers(0, 3))
def test_what_is_not_changed_is_joined_as_it_was(lengths, size, overlap):
    signal = np.linspace(-1, 1, sum(lengths), dtype=np.float32)[:, None] * [1, -0.5]
    blocks = np.split(signal, np.cumsum(lengths)[:-1]) if lengths else []
    pieces = list(overlapping(blocks, size, overlap))
    assert all(len(piece) == size for piece in pieces[:-1]) and sum(map(len, pieces)) >= len(signal)
    made = np.concatenate([np.zeros((0, 2)), *faded(pieces, size, overlap)])
    np.testing.assert_allclose(made, signal, atol=1e-6)


def test_neighbours_are_faded_over():
    pieces = [np.zeros((10, 1), np.float32), np.ones((7, 1), np.float32)]
    made = np.concatenate(list(faded(pieces, 10, 5)))[:, 0]
    assert made == pytest.approx([0] * 5 + [0, 0.25, 0.5, 0.75, 1] + [1] * 2)
