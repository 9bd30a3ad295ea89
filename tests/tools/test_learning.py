"""The made-up language of tools/studies/learning.py is what its page says it is."""

from __future__ import annotations

import numpy as np

from moshijax.tokens import EPAD, PAD
from tools.studies import learning


def test_what_is_spoken_is_heard():
    """The words of the text row come back from the semantic codes, and the grammar expects them."""
    world = learning.World()
    grids = world.spoken(np.random.default_rng(0), rows=8, frames=96)
    again = world.spoken(np.random.default_rng(0), rows=8, frames=96)
    np.testing.assert_array_equal(grids, again)
    for grid in grids:
        written = [int(token) - learning.FIRST for token in grid[0] if token not in (PAD, EPAD)]
        words, lost = world.heard(grid[1])
        assert lost == 0 and words == written[: len(words)] and len(written) - len(words) <= 1
        assert world.surprise(words) < 1.6
    scrambled = np.random.default_rng(1).permutation(world.heard(grids[0][1])[0])
    assert world.surprise(list(scrambled)) > 3


def test_acoustic_codes_depend_on_each_other_and_on_the_next_sound():
    world = learning.World()
    grid = np.concatenate(list(world.spoken(np.random.default_rng(0), rows=64)), axis=1)
    sound, first, second = grid[1], grid[2], grid[3]
    right = (5 * first + sound) % learning.CARD == second
    assert 0.88 < right.mean() < 0.95  # but for chance, the second follows from the first

    def choices(*given):
        seen = {}
        for *key, code in zip(*given, first, strict=True):
            seen.setdefault(tuple(key), set()).add(int(code))
        return np.mean([len(codes) for codes in seen.values()])

    following = np.roll(sound, -1)
    assert choices(sound, following) < 0.6 * choices(sound)  # coarticulation
