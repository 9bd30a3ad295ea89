"""From the logical axes that models name to the mesh axes of a run, by one table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
from flax.core import meta
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from moshijax.errors import ConfigError
from moshijax.train.experiment import MeshConfig

# Logical axis -> mesh axes. Kernels [out, in] of layers are stored over `fsdp` along their rows, so that what is
# gathered and scattered lies in one piece: along their columns, XLA for GPUs transposes whole float32 stacks of layers,
# there and back. What else is wide is stored over `fsdp` along the model width. `tensor` divides heads, hidden units
# and the entries of heads. Activations lie over `data` x `fsdp` along the batch.
RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    ("batch", ("data", "fsdp")),
    ("rows", "data"),  # of a batch that all devices which share a table look up
    ("heads", "tensor"),
    ("heads_rows", ("tensor", "fsdp")),
    ("mlp", "tensor"),
    ("mlp_rows", ("tensor", "fsdp")),
    ("vocab", "tensor"),
    ("embed", "fsdp"),
    ("embed_columns", None),
    ("embed_depth", None),
    ("entries", None),  # of an embedding table: one more than the vocabulary, so it rarely divides
    ("layers", None),
    ("steps", None),
    ("codebook", None),
    ("norm", None),
    ("time", None),
    ("embed_act", None),
    ("steps_act", None),
)


HOST = "pinned_host"


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """Make a mesh over `devices` (default: all) with axes data, fsdp and tensor, of axis type Auto.

    An axis may take a part of a dimension of a TPU slice (2 of the 4 x 4 x 8 chips of v5p-256 for `tensor`), which
    `jax.make_mesh` refuses.
    """
    devices = devices or jax.devices()
    shape = config.shape(len(devices))
    placed = mesh_utils.create_device_mesh(tuple(shape.values()), devices, allow_split_physical_axes=True)
    return Mesh(placed, tuple(shape), axis_types=(AxisType.Auto,) * len(shape))


def _axes(logical: str | None, rules: Mapping[str, Any], name: str) -> tuple[str, ...]:
    if logical is None:
        return ()
    if logical not in rules:
        raise ConfigError(
            f"{name} names the logical axis {logical!r}, for which there is no rule; known: {', '.join(rules)}"
        )
    mapped = rules[logical]
    return () if mapped is None else (mapped,) if isinstance(mapped, str) else tuple(mapped)


def spec_of(
    name: str,
    shape: tuple[int, ...],
    logical_axes: tuple[str | None, ...],
    mesh: Mesh,
    rules: tuple[tuple[str, Any], ...] = RULES,
) -> PartitionSpec:
    """Partition one array.

    Args:
      name: path of the array, for messages.
      shape: its sizes.
      logical_axes: a name (or None) for each of them.
      mesh: of the run.
      rules: logical axis -> mesh axes.

    Raises:
      ConfigError: two dimensions fall on one mesh axis, a dimension does not divide by its devices (both numbers are
        named), or a logical axis has no rule.
    """
    table, used, parts = dict(rules), {}, []
    if len(logical_axes) != len(shape):
        raise ConfigError(f"{name} has shape {shape} but {len(logical_axes)} logical axes {logical_axes}")
    for size, logical in zip(shape, logical_axes, strict=True):
        axes = tuple(axis for axis in _axes(logical, table, name) if mesh.shape[axis] > 1)
        for axis in axes:
            if axis in used:
                raise ConfigError(
                    f"{name}: logical axes {used[axis]!r} and {logical!r} both map to mesh axis {axis!r}; change a rule"
                )
            used[axis] = logical
        count = math.prod(mesh.shape[axis] for axis in axes)
        if size % count:
            raise ConfigError(
                f"{name}: dimension {logical!r} of size {size} does not divide by the {count} devices of mesh axis "
                f"{'x'.join(axes)!r}; change the mesh or the size"
            )
        parts.append(axes if len(axes) > 1 else axes[0] if axes else None)
    return PartitionSpec(*parts)


def path_of(keys: tuple[Any, ...]) -> str:
    """Return the slash-separated name of a leaf, from its key path."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in keys)


def unboxed(tree: Any) -> Any:
    """Take the boxes of logical axis names off the arrays (or shapes) of a tree; add no sharding constraint."""

    def one(leaf: Any) -> Any:
        return leaf.value if isinstance(leaf, meta.AxisMetadata) else leaf

    return jax.tree.map(one, tree, is_leaf=lambda x: isinstance(x, meta.AxisMetadata))


def shardings_of(boxed: Any, mesh: Mesh, rules: tuple[tuple[str, Any], ...] = RULES) -> Any:
    """Lay out an abstract tree whose leaves may be boxed with logical axis names; return the same tree, unboxed.

    Leaves without names are replicated.
    """

    def one(keys: tuple[Any, ...], leaf: Any) -> NamedSharding:
        if isinstance(leaf, meta.AxisMetadata):
            spec = spec_of(path_of(keys), leaf.value.shape, tuple(leaf.names), mesh, rules)
            return NamedSharding(mesh, spec)
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(one, boxed, is_leaf=lambda x: isinstance(x, meta.AxisMetadata))


def like_parameters(tree: Any, parameters: Mapping[str, NamedSharding], mesh: Mesh) -> Any:
    """Lay out a tree, such as an optimiser state, that holds copies of parameters under their flat paths.

    Args:
      tree: abstract tree; somewhere on the way to a copy stands a dict keyed by parameter path.
      parameters: parameter path -> its sharding.
      mesh: of the run.
    """

    def one(keys: tuple[Any, ...], leaf: Any) -> NamedSharding:
        for key in keys:
            found = parameters.get(getattr(key, "key", None))
            if found is not None and leaf.ndim == len(found.spec):
                return found
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(one, tree)


def in_host_memory(tree: Any, shardings: Any) -> Any:
    """Move the shardings of a tree's arrays to pinned memory of the host; scalars stay on the devices.

    Raises:
      ConfigError: the devices have no such memory.
    """

    def one(leaf: Any, where: NamedSharding) -> NamedSharding:
        return where.with_memory_kind(HOST) if leaf.ndim else where

    mesh = jax.tree.leaves(shardings)[0].mesh
    kinds = [memory.kind for memory in mesh.devices.flat[0].addressable_memories()]
    if HOST not in kinds:
        raise ConfigError(f"moments_memory = 'host': these devices have {', '.join(kinds)}, no {HOST}; use 'device'")
    return jax.tree.map(one, tree, shardings)


def batch_sharding(name: str, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Lay out an array of a batch: its rows over data x fsdp."""
    return NamedSharding(mesh, spec_of(f"batch[{name!r}]", shape, ("batch",) + (None,) * (len(shape) - 1), mesh))


def context(mesh: Mesh, rules: tuple[tuple[str, Any], ...] = RULES) -> Any:
    """Return the context in which models are traced: the mesh, and the rules for their activation constraints."""
    from contextlib import ExitStack

    stack = ExitStack()
    stack.enter_context(jax.set_mesh(mesh))
    stack.enter_context(nn.logical_axis_rules(rules))
    return stack
