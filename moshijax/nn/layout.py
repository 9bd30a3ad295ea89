"""The two parameter layouts and the pure functions between them.

Training keeps the layers of a stack in arrays with a leading axis (`layers`, and `steps` for weights per depth step);
inference keeps one array per layer and step (`layers_0`, `steps_3`, ...). Models that train without a scan over layers
stack the steps alone. Convert before jit: slicing a stacked array inside a compiled step copies it on every call.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

STACKED_NAMES = ("layers", "steps")
_UNSTACKED = re.compile(r"^(layers|steps)_(\d+)$")


def is_stacked(params: Mapping[str, Any], names: Collection[str] = STACKED_NAMES) -> bool:
    """True if any sub-tree is in the training layout; `names`: stacked under one of these."""
    return any(
        name in names or (isinstance(child, Mapping) and is_stacked(child, names)) for name, child in params.items()
    )


def unstack_layers(params: Mapping[str, Any], names: Collection[str] = STACKED_NAMES) -> dict[str, Any]:
    """Training layout to inference layout, or only what is stacked under `names`; other parts come back unchanged."""
    out: dict[str, Any] = {}
    for name, child in params.items():
        if not isinstance(child, Mapping):
            out[name] = child
        elif name in names:
            length = jax.tree.leaves(child)[0].shape[0]
            for i in range(length):
                out[f"{name}_{i}"] = unstack_layers(jax.tree.map(lambda leaf, i=i: leaf[i], dict(child)), names)
        else:
            out[name] = unstack_layers(child, names)
    return out


def stack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """Inference layout to training layout; the inverse of `unstack_layers`."""
    out: dict[str, Any] = {}
    numbered: dict[str, dict[int, Any]] = {}
    for name, child in params.items():
        match = _UNSTACKED.match(name)
        if match:
            numbered.setdefault(match[1], {})[int(match[2])] = stack_layers(child)
        else:
            out[name] = stack_layers(child) if isinstance(child, Mapping) else child
    for name, children in numbered.items():
        ordered = [children[i] for i in range(len(children))]
        out[name] = jax.tree.map(_stack, *ordered)
    return out


def relayout(params: Mapping[str, Any], scan_layers: bool) -> dict[str, Any]:
    """The training layout with or without a scan over layers."""
    return stack_layers(params) if scan_layers else unstack_layers(params, ("layers",))


def _stack(*leaves):
    if all(isinstance(leaf, np.ndarray) for leaf in leaves):
        return np.stack(leaves)
    return jnp.stack(leaves)


def pack_in_proj(fused, num_heads: int, kv_repeat: int = 1):
    """Published attention projection `[..., q|k|v rows, D]` to ours, whose rows are grouped by key/value head.

    Ours is `[..., G * (R + 2) * C, D]` with, for each key/value head, its `R = kv_repeat` query heads, its key, then
    its value: one product gives all three, and a split of the rows over devices keeps whole groups together.
    """
    groups, width = num_heads // kv_repeat, fused.shape[-2] // (num_heads + 2 * (num_heads // kv_repeat))
    lead, dim = fused.shape[:-2], fused.shape[-1]
    xp = np if isinstance(fused, np.ndarray) else jnp
    rows_q = num_heads * width
    q = fused[..., :rows_q, :].reshape(*lead, groups, kv_repeat, width, dim)
    kv = fused[..., rows_q:, :].reshape(*lead, 2, groups, width, dim)
    kv = xp.moveaxis(kv, -4, -3)
    return xp.concatenate([q, kv], axis=-3).reshape(*lead, -1, dim)


def unpack_in_proj(packed, num_heads: int, kv_repeat: int = 1):
    """The inverse of `pack_in_proj`."""
    groups = num_heads // kv_repeat
    lead, dim = packed.shape[:-2], packed.shape[-1]
    xp = np if isinstance(packed, np.ndarray) else jnp
    grouped = packed.reshape(*lead, groups, kv_repeat + 2, -1, dim)
    parts = grouped[..., :kv_repeat, :, :], grouped[..., kv_repeat, :, :], grouped[..., kv_repeat + 1, :, :]
    return xp.concatenate([part.reshape(*lead, -1, dim) for part in parts], axis=-2)
