"""Sampling one token per row of the batch, with parameters and random streams of the row's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from moshijax.errors import ConfigError

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

#: Largest top-k of a compiled step, unless it is built for another one.
TOP_K_LIMIT = 250

#: What a random number is for; folded into the key so that new uses never disturb old ones.
PURPOSE_TOKEN = 0


#: Name and dtype of every sampling parameter, one value per row (of the seed two).
SAMPLING_INPUTS = {
    "seed": np.uint32,
    "temperature": np.float32,
    "text_temperature": np.float32,
    "top_k": np.int32,
    "text_top_k": np.int32,
    "pad_bonus": np.float32,
}


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters: numbers, or arrays `[B]` with one value per batch row.

    The defaults are those of the released Moshi.

    Attributes:
      temperature: of audio; 0 is greedy.
      text_temperature: of text; 0 is greedy.
      top_k: of audio; 0 is off.
      text_top_k: of text; 0 is off.
      pad_bonus: added to the logit of the PAD piece.
      seed: a number (row i gets the pair `(seed, i)`), or an array `[B]` or `[B, 2]` with a seed per row.
    """

    temperature: Any = 0.8
    text_temperature: Any = 0.7
    top_k: Any = 250
    text_top_k: Any = 25
    pad_bonus: Any = 0.0
    seed: Any = 0

    @classmethod
    def greedy(cls) -> Sampling:
        """Return parameters that always take the most likely token."""
        return cls(temperature=0.0, text_temperature=0.0)

    def rows(self, batch_size: int, top_k_limit: int = TOP_K_LIMIT) -> dict[str, Array]:
        """Return the parameters as arrays `[B]`, `seed` `[B, 2]`: the argument `sampling` of a generation step.

        Raises:
          ConfigError: a value is out of range or has another batch size.
        """
        out: dict[str, Array] = {}
        for name, dtype in SAMPLING_INPUTS.items():
            if name == "seed":
                continue
            value = np.asarray(getattr(self, name), dtype)
            if value.shape not in ((), (batch_size,)):
                raise ConfigError(
                    f"{name} of shape {value.shape}: must be a number or have one value per row, {batch_size}"
                )
            if name != "pad_bonus" and not (value >= 0).all():
                raise ConfigError(f"{name}={getattr(self, name)}: must be 0 or more")
            if name.endswith("top_k") and (value > top_k_limit).any():
                raise ConfigError(
                    f"{name}={getattr(self, name)}: must be at most top_k_limit={top_k_limit}; raise the limit"
                )
            out[name] = jnp.asarray(np.broadcast_to(value, (batch_size,)))
        seed = np.asarray(self.seed)
        if seed.ndim == 0:
            seed = np.stack([np.full(batch_size, seed), np.arange(batch_size)], axis=1)
        elif seed.shape == (batch_size,):
            seed = np.stack([np.zeros_like(seed), seed], axis=1)
        if seed.shape != (batch_size, 2):
            raise ConfigError(f"seed of shape {seed.shape}: must be a number, [{batch_size}] or [{batch_size}, 2]")
        out["seed"] = jnp.asarray(seed.astype(np.int64) & 0xFFFFFFFF, jnp.uint32)
        return out


def input_specs(batch_size: int) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Return shape and dtype of every array that `Sampling.rows` returns."""
    return {
        name: ((batch_size, 2) if name == "seed" else (batch_size,), dtype) for name, dtype in SAMPLING_INPUTS.items()
    }


def row_noise(seed_B2: Array, count_B: Int[Array, " B"], row: int, purpose: int, size: int) -> Float[Array, "B V"]:
    """Draw Gumbel noise for one token of every row.

    It is a function of the row's seed, its own count of executed steps, the grid row and the purpose.
    """

    def one(seed: Array, count: Array) -> Array:
        key = jax.random.wrap_key_data(seed, impl="threefry2x32")
        for part in (count, row, purpose):
            key = jax.random.fold_in(key, part)
        return jax.random.gumbel(key, (size,), jnp.float32)

    return jax.vmap(one)(seed_B2, count_B)


def sample(
    logits_BV: Float[Array, "B V"],
    temperature_B: Float[Array, " B"],
    top_k_B: Int[Array, " B"],
    seed_B2: Array,
    count_B: Int[Array, " B"],
    row: int,
    top_k_limit: int = TOP_K_LIMIT,
) -> Int[Array, " B"]:
    """Sample one token per row by Gumbel-argmax over its `top_k` largest float32 logits.

    Greedy rows draw too and drop their noise: a condition would make an accelerator wait for the host at every head.

    Args:
      logits_BV: any float type.
      temperature_B: 0 is greedy.
      top_k_B: 0 is off; of equal logits at the cut the lower ids stay.
      seed_B2: uint32, of every row.
      count_B: steps that every row has executed.
      row: of the grid.
      top_k_limit: the largest top-k that this compiled step can serve.

    Returns:
      int32 ids.
    """
    warm_B = temperature_B > 0
    noise_BV = row_noise(seed_B2, count_B, row, PURPOSE_TOKEN, logits_BV.shape[-1])
    noise_BV = jnp.where(warm_B[:, None], noise_BV, 0.0)
    scaled_BV = logits_BV.astype(jnp.float32) / jnp.where(warm_B, temperature_B, 1.0)[:, None]
    of_all_B = jnp.argmax(scaled_BV + noise_BV, axis=-1).astype(jnp.int32)
    limit = min(top_k_limit, logits_BV.shape[-1])
    if limit == 0:
        return of_all_B
    best_BL, ids_BL = jax.lax.top_k(scaled_BV, limit)
    kept_BL = jnp.arange(limit) < top_k_B[:, None]
    scores_BL = jnp.where(kept_BL, best_BL + jnp.take_along_axis(noise_BV, ids_BL, axis=1), -jnp.inf)
    of_best_B = jnp.take_along_axis(ids_BL, jnp.argmax(scores_BL, axis=-1)[:, None], axis=1)[:, 0]
    return jnp.where(top_k_B > 0, of_best_B, of_all_B)
