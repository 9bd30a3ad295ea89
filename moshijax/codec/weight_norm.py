"""Weight normalisation as a form of the parameters: a kernel becomes a direction and a length per output channel.

Modules know nothing of it: training keeps the split form and folds it before every use, so that what is saved for
others is plain. Source: arXiv 1602.07868.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array

DIRECTION, SCALE = "kernel_direction", "kernel_scale"


def _length(kernel: Array) -> Array:
    """Per output channel, the last axis; the gradient at a kernel of zeros is finite."""
    return jnp.sqrt(jnp.sum(jnp.square(kernel), axis=tuple(range(kernel.ndim - 1))) + 1e-24)


def split(tree: dict[str, Any]) -> dict[str, Any]:
    """Split every `kernel [..., O]` of a convolution into `kernel_direction [..., O]` and `kernel_scale [O]`.

    Matrices stay as they are. The layers compute the same.
    """
    if "kernel" in tree and tree["kernel"].ndim > 2:
        rest = {name: leaf for name, leaf in tree.items() if name != "kernel"}
        return {**rest, DIRECTION: tree["kernel"], SCALE: _length(tree["kernel"])}
    return {name: split(leaf) if isinstance(leaf, dict) else leaf for name, leaf in tree.items()}


def fold(tree: dict[str, Any]) -> dict[str, Any]:
    """Invert `split`; kernels without weight norm stay as they are."""
    if DIRECTION in tree:
        rest = {name: leaf for name, leaf in tree.items() if name not in (DIRECTION, SCALE)}
        return {**rest, "kernel": tree[DIRECTION] * (tree[SCALE] / _length(tree[DIRECTION]))}
    return {name: fold(leaf) if isinstance(leaf, dict) else leaf for name, leaf in tree.items()}
