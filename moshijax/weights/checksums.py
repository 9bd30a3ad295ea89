"""Checksums of arrays, made on the devices that hold them.

No layer below notices a byte that changes in a checkpoint: Orbax and TensorStore check what they find their arrays by,
not what these hold. A checksum is a sum of integers, so that it is the same on every device, mesh and number of
processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, UInt32

_WORDS = {1: jnp.uint8, 2: jnp.uint16}  # size in bytes of an element -> type of its bits; larger ones are several words


@jax.jit
def _checksum(x: Array) -> UInt32[Array, ""]:
    """Return the sum of the hashes of all words with their places, modulo 2^32.

    The hash, the last part of MurmurHash3, is one to one: if a word changes, the sum does. If several do, it stays with
    a chance of 2^-32, whichever bits they are.
    """
    x = jax.device_put(x, jax.memory.Space.Device)
    x = x.astype(jnp.uint8) if x.dtype == bool else x
    words = jax.lax.bitcast_convert_type(x, _WORDS.get(x.dtype.itemsize, jnp.uint32)).astype(jnp.uint32)
    place, stride = jnp.zeros(words.shape, jnp.uint32), 1
    for axis in reversed(range(words.ndim)):
        place += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    hashed = words + place * jnp.uint32(0x9E3779B9)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        hashed = (hashed ^ (hashed >> shift)) * jnp.uint32(factor)
    return jnp.sum(hashed ^ (hashed >> 16), dtype=jnp.uint32)


def checksums(tree: Any) -> dict[str, int]:
    """Return the name of every leaf of a tree of arrays -> its checksum; one leaf at a time takes device memory."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(keys, simple=True, separator="/"): int(_checksum(leaf)) for keys, leaf in leaves}


def verify(tree: Any, expected: Mapping[str, int]) -> None:
    """Check that arrays are those of which the checksums were made.

    Raises:
      ValueError: some are not; the first is named.
    """
    changed = [name for name, found in checksums(tree).items() if found != expected.get(name)]
    if changed:
        others = f" and {len(changed) - 1} more are" if len(changed) > 1 else " is"
        raise ValueError(f"{changed[0]}{others} not what was written")
