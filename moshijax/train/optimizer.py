"""Optimisers: their config, and from it to an optax transformation over the parameters that one update owns."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from moshijax.errors import ConfigError, require

REST = "rest"
#: Paths of parameters without weight decay: scales and biases. The length of a kernel with weight norm is decayed.
_UNDECAYED = re.compile(r"(^|/)(norm_)?(scale|bias)$")


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters whose path ("temporal/layers/attention/in_proj/kernel") contains a match of `pattern`.

    Attributes:
      name: of the group in metrics.
      pattern: regular expression.
      learning_rate_scale: factor of the optimiser's learning rate.
      weight_decay: None: the optimiser's.
      frozen: the parameters stay as they are and have no moments.
    """

    name: str
    pattern: str
    learning_rate_scale: float = 1.0
    weight_decay: float | None = None
    frozen: bool = False

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ConfigError(
                f"pattern {self.pattern!r} of group {self.name!r} is no regular expression: {error}"
            ) from None


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with decoupled weight decay, clipping by the global norm and one learning-rate schedule.

    The rate rises linearly over `warmup_steps`, stays at `learning_rate` until the fraction `decay_start` of all
    steps, then falls to `final_scale * learning_rate` at the last step. It reads the global step of the run, not the
    count of this optimiser's updates. A parameter belongs to the first of `groups` that matches its path, else to the
    unnamed rest.

    Attributes:
      learning_rate: the largest rate.
      warmup_steps: steps in which the rate rises.
      decay: "cosine", "linear" or "constant".
      decay_start: fraction of all steps at which the decay begins.
      final_scale: rate at the last step, relative to `learning_rate`.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      weight_decay: relative to the rate; added to the update, not to the gradient. Scales and biases, those of norms
        included, do not decay.
      clip_norm: largest global norm of the gradients; None: no clipping.
      groups: parameters with rates or decays of their own, or frozen.
      moments_dtype: type in which the two moments are kept between steps, "float32" or "bfloat16"; they are computed in
        float32. bfloat16 halves them and has 8 bits of precision: with a `b2` above 0.99 the second moment would change
        by less than that, which is not at all.
      moments_memory: "device", or "host" to keep the moments in pinned memory of the host between steps. Those of a
        kind of steps that is not running then take no memory of the device; each step of their kind moves them there
        and back.
    """

    learning_rate: float = 1e-3
    warmup_steps: int = 0
    decay: str = "cosine"
    decay_start: float = 0.0
    final_scale: float = 0.0
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float | None = 1.0
    groups: tuple[ParameterGroup, ...] = ()
    moments_dtype: str = "float32"
    moments_memory: str = "device"

    def __post_init__(self) -> None:
        require(
            self.moments_dtype in ("float32", "bfloat16"),
            f"moments_dtype is {self.moments_dtype!r}, not float32 or bfloat16",
        )
        require(
            self.moments_dtype == "float32" or self.b2 <= 0.99,
            f"moments_dtype = 'bfloat16' with b2 = {self.b2}: changes of less than 1 % are lost in bfloat16; use a "
            "b2 up to 0.99, or float32",
        )
        require(
            self.moments_memory in ("device", "host"), f"moments_memory is {self.moments_memory!r}, not device or host"
        )
        require(
            self.decay in ("cosine", "linear", "constant"), f"decay is {self.decay!r}, not cosine, linear or constant"
        )
        require(self.learning_rate >= 0, f"learning_rate is {self.learning_rate}; it must not be negative")
        require(self.warmup_steps >= 0, f"warmup_steps is {self.warmup_steps}; it must not be negative")
        require(
            0 <= self.decay_start < 1, f"decay_start is {self.decay_start}, a fraction of the steps from 0 to below 1"
        )
        for name in ("b1", "b2"):
            require(0 <= getattr(self, name) < 1, f"{name} is {getattr(self, name)}; it must be from 0 to below 1")
        require(
            self.clip_norm is None or self.clip_norm > 0, f"clip_norm is {self.clip_norm}; use None for no clipping"
        )
        names = [group.name for group in self.groups]
        require(len(set(names)) == len(names), f"parameter groups {names} have a name twice; give each its own")


def learning_rate(config: OptimizerConfig, step: jax.Array, steps: int) -> jax.Array:
    """Return the rate [] float32 at a global step [] int32 of a run of `steps` steps."""
    step = jnp.asarray(step, jnp.float32)
    rate = jnp.float32(config.learning_rate)
    if config.warmup_steps:
        rate *= jnp.minimum(1.0, (step + 1) / config.warmup_steps)
    if config.decay == "constant":
        return rate
    start = max(config.warmup_steps, config.decay_start * steps)
    progress = jnp.clip((step - start) / max(1.0, steps - start), 0.0, 1.0)
    if config.decay == "cosine":
        progress = 0.5 - 0.5 * jnp.cos(math.pi * progress)
    return rate * (1 - progress * (1 - config.final_scale))


def group_of(config: OptimizerConfig, path: str) -> ParameterGroup:
    """Return the first group whose pattern matches the path, else the rest."""
    for group in config.groups:
        if re.search(group.pattern, path):
            return group
    return ParameterGroup(name=REST, pattern="")


def check_groups(config: OptimizerConfig, paths: Sequence[str]) -> None:
    """Check that every group matches a parameter of the model.

    Raises:
      ConfigError: one matches none.
    """
    for group in config.groups:
        if not any(re.search(group.pattern, path) for path in paths):
            raise ConfigError(
                f"parameter group {group.name!r}: pattern {group.pattern!r} matches none of {len(paths)} parameters; "
                f"one is called {paths[0]!r}"
            )


def trainable(config: OptimizerConfig, paths: Sequence[str]) -> tuple[str, ...]:
    """Return the paths that are not frozen."""
    return tuple(path for path in paths if not group_of(config, path).frozen)


def _scale_by_rate(config: OptimizerConfig, scale: float, steps: int) -> optax.GradientTransformationExtraArgs:
    """Multiply updates by minus the learning rate at the global step, which is passed as the keyword `step`."""

    def update(updates, state, params=None, *, step, **_):
        rate = -scale * learning_rate(config, step, steps)
        return jax.tree.map(lambda u: (rate * u).astype(u.dtype), updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _decayed(params: Mapping[str, Any]) -> dict[str, bool]:
    return {path: _UNDECAYED.search(path) is None for path in params}


def make_optimizer(config: OptimizerConfig, paths: Sequence[str], steps: int) -> optax.GradientTransformationExtraArgs:
    """Return AdamW over a flat dict {path: array} of the owned parameters; its `update` needs the keyword `step`."""

    def adamw(group: ParameterGroup) -> optax.GradientTransformation:
        decay = config.weight_decay if group.weight_decay is None else group.weight_decay
        return optax.chain(
            optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
            optax.add_decayed_weights(decay, _decayed) if decay else optax.identity(),
            _scale_by_rate(config, group.learning_rate_scale, steps),
        )

    groups = {path: group_of(config, path) for path in paths}
    by_name = {group.name: adamw(group) for group in groups.values()}
    labels = {path: group.name for path, group in groups.items()}
    clip = clip_by_norm(config.clip_norm) if config.clip_norm is not None else optax.identity()
    whole = optax.with_extra_args_support(optax.chain(clip, optax.partition(by_name, labels)))
    return whole if config.moments_dtype == "float32" else kept_in(whole, jnp.dtype(config.moments_dtype))


def kept_in(
    transform: optax.GradientTransformationExtraArgs, dtype: jnp.dtype
) -> optax.GradientTransformationExtraArgs:
    """Wrap a transformation so that the float32 arrays of its state are kept in `dtype` between updates."""

    def cast(state, old, new):
        return jax.tree.map(lambda leaf: leaf.astype(new) if leaf.dtype == old else leaf, state)

    def init(params):
        return cast(transform.init(params), jnp.float32, dtype)

    def update(updates, state, params=None, **extra):
        updates, state = transform.update(updates, cast(state, dtype, jnp.float32), params, **extra)
        return updates, cast(state, jnp.float32, dtype)

    return optax.GradientTransformationExtraArgs(init, update)


def clip_by_norm(limit: float) -> optax.GradientTransformation:
    """Scale gradients whose global norm exceeds `limit` down to it.

    One factor for all, which fuses into what follows; `optax.clip_by_global_norm` divides every leaf, and XLA on CPU
    writes and reads the quotients.
    """

    def update(updates, state, params=None):
        norm = optax.tree.norm(updates)
        factor = jnp.where(norm < limit, 1.0, limit / norm)
        return jax.tree.map(lambda u: u * factor.astype(u.dtype), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
