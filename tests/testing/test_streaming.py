"""`check_streaming` finds every way to break the contract."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from moshijax.nn.conv import CausalConv
from moshijax.testing import check_streaming


class Right(CausalConv):
    pass


class SeesTheFuture(CausalConv):
    def __call__(self, x):
        return super().__call__(x + 1e-2 * jnp.roll(x, -1, axis=1))


class Forgets(CausalConv):
    def step(self, state, x, active=None):
        return state, super().step(state, x, active)[1]


class StepsDiffer(CausalConv):
    def step(self, state, x, active=None):
        state, y = super().step(state, x, active)
        return state, y + (1e-3 if x.shape[1] > 1 else 0.0)


class NeverFreezes(CausalConv):
    def step(self, state, x, active=None):
        return super().step(state, x, None)


class NeverResets(CausalConv):
    def reset(self, state, rows):
        return state


class ChangesItsState(CausalConv):
    def step(self, state, x, active=None):
        state, y = super().step(state, x, active)
        return {**state, "steps": jnp.zeros(x.shape[0])}, y


class CountsGlobally(CausalConv):
    def init_state(self, batch_size):
        return {**super().init_state(batch_size), "step": jnp.zeros(())}


class MixesRows(CausalConv):
    def step(self, state, x, active=None):
        return super().step(state, x + 1e-3 * x.mean(0, keepdims=True), active)


class WrongGradient(CausalConv):
    def step(self, state, x, active=None):
        return super().step(jax.lax.stop_gradient(state), x, active)


class ShortReceptiveField(CausalConv):
    receptive_field = 2


BROKEN = {
    SeesTheFuture: "largest error",
    Forgets: "against the whole sequence",
    StepsDiffer: "against the whole sequence",
    NeverFreezes: "after frozen steps and resets",
    NeverResets: "after frozen steps and resets",
    ChangesItsState: "changed the state",
    CountsGlobally: "lacks leading axis B",
    MixesRows: "largest error",
    WrongGradient: "gradients of steps",
    ShortReceptiveField: "receptive field 2",
}


def check(make):
    check_streaming(make(2, 3, 3), jax.random.key(0), 2, sizes=(1, 2), splits=3, blocks=8)


def test_right():
    check(Right)


@pytest.mark.parametrize("make", BROKEN, ids=lambda make: make.__name__)
def test_broken(make):
    with pytest.raises(AssertionError, match=BROKEN[make]):
        check(make)
