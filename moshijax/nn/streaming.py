"""The streaming contract: one layer, two ways to run it, equal results.

A streaming layer is a Linen module that has

* `__call__(x)`: the whole sequence `[B, T, ...]`, differentiable;
* `init_state(batch_size)`: a pytree of arrays, every leaf with leading axis `B` (no parameters needed, works
  unbound);
* `step(state, x, active=None) -> (state, y)`: any number of whole blocks; rows with `active` False keep their state
  (their output is meaningless);
* `reset(state, rows)`: the rows `[B]` that are True start afresh (works unbound);
* `block_size`: input steps per block; `output_ratio`: output steps per input step; `receptive_field`: how many
  input steps, counted back from the end of the block an output belongs to, can influence it (None: unbounded).

`moshijax.testing.check_streaming` verifies all of it. `Chain`, `Residual` and `Pointwise` build larger layers of
smaller.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from moshijax.errors import ConfigError

if TYPE_CHECKING:
    from jaxtyping import Array, Bool

State = Any


class StreamingLayer(Protocol):
    """What `Chain`, `Residual` and `check_streaming` ask of a layer (see the module docstring)."""

    block_size: int
    output_ratio: Fraction
    receptive_field: int | None

    def __call__(self, x: Array) -> Array: ...
    def init_state(self, batch_size: int) -> State: ...
    def step(self, state: State, x: Array, active: Array | None = None) -> tuple[State, Array]: ...
    def reset(self, state: State, rows: Array) -> State: ...


def select_rows(rows: Bool[Array, " B"], on_true: State, on_false: State) -> State:
    """Row b of every leaf from `on_true` where `rows[b]`, else from `on_false`. Touches whole leaves: small
    states only."""

    def select(a, b):
        return jnp.where(rows.reshape(rows.shape + (1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(select, on_true, on_false)


def keep_frozen(active: Bool[Array, " B"] | None, new: State, old: State) -> State:
    """The state after a step: `new` for active rows, `old` for frozen ones; all rows are active when `active`
    is None."""
    return new if active is None else select_rows(active, new, old)


def whole_blocks(length: int, block_size: int, name: str) -> int:
    """Number of blocks in `length` steps.

    Raises:
      ConfigError: `length` is zero or not a multiple of `block_size`.
    """
    if length <= 0 or length % block_size:
        raise ConfigError(
            f"{name}: input of {length} steps, must be a positive multiple of {block_size}; "
            f"pad the input to whole blocks"
        )
    return length // block_size


class Around(nn.Module):
    """Base of a layer around one other, whose state is all that it has: a stream begins as that of `inner` does."""

    @nn.nowrap
    def inner(self) -> StreamingLayer:
        """Return the layer inside, without a parent."""
        raise NotImplementedError

    @nn.nowrap
    def init_state(self, batch_size: int) -> State:
        """Return the state before the first position."""
        return self.inner().init_state(batch_size)

    @nn.nowrap
    def reset(self, state: State, rows: Bool[Array, " B"]) -> State:
        """Return the state in which the rows that are true begin again."""
        return self.inner().reset(state, rows)


class Pointwise(nn.Module):
    """A stateless function of each step by itself, such as an activation."""

    function: Callable[[Array], Array]

    block_size = 1
    output_ratio = Fraction(1)
    receptive_field = 1

    def __call__(self, x: Array) -> Array:
        return self.function(x)

    def step(self, state: State, x: Array, active: Array | None = None) -> tuple[State, Array]:
        return state, self.function(x)

    @nn.nowrap
    def init_state(self, batch_size: int) -> State:
        return ()

    @nn.nowrap
    def reset(self, state: State, rows: Array) -> State:
        return state


class Chain(nn.Module):
    """Streaming layers one after the other; parameters under `parts_0`, `parts_1`, ..."""

    parts: tuple[Any, ...]

    def __call__(self, x: Array) -> Array:
        for layer in self.parts:
            x = layer(x)
        return x

    def step(self, state: State, x: Array, active: Array | None = None) -> tuple[State, Array]:
        new = []
        for layer, layer_state in zip(self.parts, state, strict=True):
            layer_state, x = layer.step(layer_state, x, active)
            new.append(layer_state)
        return tuple(new), x

    @nn.nowrap
    def init_state(self, batch_size: int) -> State:
        return tuple(layer.init_state(batch_size) for layer in self.parts)

    @nn.nowrap
    def reset(self, state: State, rows: Array) -> State:
        return tuple(layer.reset(s, rows) for layer, s in zip(self.parts, state, strict=True))

    @property
    def block_size(self) -> int:
        block, ratio = 1, Fraction(1)
        for layer in self.parts:
            block *= (block * ratio / layer.block_size).denominator
            ratio *= layer.output_ratio
        return block

    @property
    def output_ratio(self) -> Fraction:
        return math.prod((layer.output_ratio for layer in self.parts), start=Fraction(1))

    @property
    def receptive_field(self) -> int | None:
        lookback, ratio = 0, Fraction(1)  # input steps before the first one of the current block
        for layer in self.parts:
            if layer.receptive_field is None:
                return None
            lookback += math.ceil((layer.receptive_field - layer.block_size) / ratio)
            ratio *= layer.output_ratio
        return self.block_size + lookback


class Residual(nn.Module):
    """`x + layer(x)`, for a layer that keeps length and width."""

    layer: Any

    def __call__(self, x: Array) -> Array:
        return x + self.layer(x)

    def step(self, state: State, x: Array, active: Array | None = None) -> tuple[State, Array]:
        state, y = self.layer.step(state, x, active)
        return state, x + y

    @nn.nowrap
    def init_state(self, batch_size: int) -> State:
        return self.layer.init_state(batch_size)

    @nn.nowrap
    def reset(self, state: State, rows: Array) -> State:
        return self.layer.reset(state, rows)

    @property
    def block_size(self) -> int:
        return self.layer.block_size

    @property
    def output_ratio(self) -> Fraction:
        return self.layer.output_ratio

    @property
    def receptive_field(self) -> int | None:
        return self.layer.receptive_field
