"""From an `OptimizerConfig` to an optax transformation over the parameters that one program owns."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from moshijax.errors import ConfigError
from moshijax.train.experiment import OptimizerConfig, ParameterGroup

REST = "rest"


def learning_rate(config: OptimizerConfig, step: jax.Array, steps: int) -> jax.Array:
    """Rate at a global step [] int32 of a run of `steps` steps; float32."""
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
    """The first group whose pattern matches the path, else the rest."""
    for group in config.groups:
        if re.search(group.pattern, path):
            return group
    return ParameterGroup(name=REST, pattern="")


def check_groups(config: OptimizerConfig, paths: Sequence[str]) -> None:
    """Every group must match a parameter of the model.

    Raises:
      ConfigError: one does not.
    """
    for group in config.groups:
        if not any(re.search(group.pattern, path) for path in paths):
            raise ConfigError(
                f"parameter group {group.name!r}: pattern {group.pattern!r} matches none of {len(paths)} parameters; "
                f"one is called {paths[0]!r}"
            )


def trainable(config: OptimizerConfig, paths: Sequence[str]) -> tuple[str, ...]:
    """The paths that are not frozen."""
    return tuple(path for path in paths if not group_of(config, path).frozen)


def _scale_by_rate(config: OptimizerConfig, scale: float, steps: int) -> optax.GradientTransformationExtraArgs:
    """Multiplies by minus the learning rate at the global step, which comes as an extra argument."""

    def update(updates, state, params=None, *, step, **_):
        rate = -scale * learning_rate(config, step, steps)
        return jax.tree.map(lambda u: (rate * u).astype(u.dtype), updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def make_optimizer(config: OptimizerConfig, paths: Sequence[str], steps: int) -> optax.GradientTransformationExtraArgs:
    """AdamW over a flat dict {path: array} of the owned parameters; `update` needs the keyword `step`."""

    def adamw(group: ParameterGroup) -> optax.GradientTransformation:
        decay = config.weight_decay if group.weight_decay is None else group.weight_decay
        return optax.chain(
            optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
            optax.add_decayed_weights(decay) if decay else optax.identity(),
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
    """The transformation, with the float32 arrays of its state kept in `dtype` between updates."""

    def cast(state, old, new):
        return jax.tree.map(lambda leaf: leaf.astype(new) if leaf.dtype == old else leaf, state)

    def init(params):
        return cast(transform.init(params), jnp.float32, dtype)

    def update(updates, state, params=None, **extra):
        updates, state = transform.update(updates, cast(state, dtype, jnp.float32), params, **extra)
        return updates, cast(state, jnp.float32, dtype)

    return optax.GradientTransformationExtraArgs(
        lambda params: cast(transform.init(params), jnp.float32, dtype), update
    )


def clip_by_norm(limit: float) -> optax.GradientTransformation:
    """Scales gradients whose global norm exceeds `limit` down to it.

    One factor for all, which fuses into what follows; `optax.clip_by_global_norm` divides every leaf, and XLA on CPU
    writes and reads the quotients.
    """

    def update(updates, state, params=None):
        norm = optax.tree.norm(updates)
        factor = jnp.where(norm < limit, 1.0, limit / norm)
        return jax.tree.map(lambda u: u * factor.astype(u.dtype), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
