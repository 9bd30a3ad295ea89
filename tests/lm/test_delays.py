from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from moshijax.lm import delays


def test_shift_and_back():
    codes = jnp.arange(2 * 3 * 6).reshape(2, 3, 6)
    shifts = (0, 2, 9)
    moved = np.asarray(delays.delay(codes, shifts, (-7, -8, -9)))
    np.testing.assert_array_equal(moved[:, 0], codes[:, 0])
    np.testing.assert_array_equal(moved[:, 1, 2:], codes[:, 1, :4])
    assert (moved[:, 1, :2] == -8).all() and (moved[:, 2] == -9).all()
    back = np.asarray(delays.undelay(jnp.asarray(moved)[..., None].astype(jnp.float32), shifts))[..., 0]
    exists = np.asarray(delays.valid(shifts, 6))
    np.testing.assert_array_equal(exists, [[t < 6 - d for t in range(6)] for d in shifts])
    np.testing.assert_array_equal(back[:, exists], np.asarray(codes)[:, exists])
    assert (back[:, ~exists] == 0).all()
