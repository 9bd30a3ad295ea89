"""Functions that every model has beside its own, of a config and plain arrays: parameters and streams that begin."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax

from moshijax.nn.layout import unstack_layers

if TYPE_CHECKING:
    from jaxtyping import Array, Bool

Params = dict[str, Any]


def parameter_functions(boxed: Callable[[Any, Array], Params]) -> tuple[Callable[..., Params], Callable[..., Params]]:
    """Return `init` and `abstract` of a model.

    Args:
      boxed: From a config and a key to new parameters in the training layout, each boxed with its logical axis names.
    """

    @partial(jax.jit, static_argnums=(0, 2))
    def init(config: Any, key: Array, stacked: bool = True) -> Params:
        """Return new parameters as a plain tree, in the training layout, or for inference if not `stacked`."""
        params = nn.meta.unbox(boxed(config, key))
        return params if stacked else unstack_layers(params)

    def abstract(config: Any, stacked: bool = True) -> Params:
        """Return the shapes and types of the parameters; nothing is allocated."""
        return jax.eval_shape(lambda key: init(config, key, stacked), jax.random.key(0))

    return init, abstract


def stream_functions(module: Callable[[Any], Any]) -> tuple[Callable[..., Params], Callable[..., Params]]:
    """Return `init_state` and `reset` of a model.

    Args:
      module: From a config to its streaming layer (`moshijax.nn.streaming`), which needs no parameters for either.
    """

    def init_state(config: Any, batch_size: int) -> Params:
        """Return the state before the first position; `context` of its stack says for how many there is room.

        Raises:
          ConfigError: The stack has no `context`.
        """
        return module(config).init_state(batch_size)

    def reset(config: Any, state: Params, rows_B: Bool[Array, " B"]) -> Params:
        """Return the state in which the rows that are true begin again."""
        return module(config).reset(state, rows_B)

    return init_state, reset
