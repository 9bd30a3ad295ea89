"""How codebooks learn: straight-through quantisation with statistics, and the update from those statistics.

Two pure functions. `quantize` runs inside the loss: it quantises with the codebooks as they are and returns plain sums
over the batch. `update` makes the next codebooks from the sums of the whole batch, so that it gives the same result
whether they were added up over microbatches or devices: moving averages, k-means for the next level that has none yet,
and new vectors for codes that nobody uses.

Sources: arXiv 2410.00037 section 3.3.3; upstream `moshi/quantization/core_vq.py` and `audiocraft`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from moshijax.errors import ConfigError
from moshijax.nn.vq import codebook_tables, half_squared_norm, lookup, nearest

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

HIGHEST = jax.lax.Precision.HIGHEST


@dataclass(frozen=True)
class QuantizerTraining:
    """Settings of codebook training.

    Attributes:
      decay: of the moving averages of usage and sums.
      quantization_rate: probability that a sequence is decoded from the quantised latent; otherwise its projected
        latent passes unquantised (drawn for the semantic and the acoustic part apart).
      dropout: draw the number of acoustic levels of a batch uniformly from 1 to all.
      dropped_levels_learn: codebooks of dropped levels follow their residuals all the same. In the reference they
        rest, so that the last of 7 learns in a seventh of the steps; a thousand steps are too few for that.
      kmeans_iterations: of the initialisation of a level.
      samples_per_code: vectors kept per step and level, per code, for k-means and for replacements.
      replace_every: steps between replacements of dead codes.
      dead_below: a code is dead if its usage is below this share of the uniform usage.
      fixed: "semantic", "acoustic" or both: codebooks that stay as they are once they are initialised.
    """

    decay: float = 0.99
    quantization_rate: float = 0.5
    dropout: bool = True
    dropped_levels_learn: bool = False
    kmeans_iterations: int = 50
    samples_per_code: int = 4
    replace_every: int = 5
    dead_below: float = 0.1
    fixed: tuple[str, ...] = ()

    def __post_init__(self):
        if not 0 < self.decay < 1:
            raise ConfigError(f"decay {self.decay} must lie between 0 and 1")
        if not 0 <= self.quantization_rate <= 1:
            raise ConfigError(f"quantization_rate {self.quantization_rate} must lie in 0 to 1")
        if self.samples_per_code < 1 or self.replace_every < 1 or self.kmeans_iterations < 1:
            raise ConfigError("samples_per_code, replace_every and kmeans_iterations must be at least 1")
        if unknown := set(self.fixed) - {"semantic", "acoustic"}:
            raise ConfigError(f"fixed names {sorted(unknown)[0]!r}; it can name 'semantic' and 'acoustic'")


class Statistics(NamedTuple):
    """Sums over the vectors of a batch; sums of microbatches and shards are the sums of the batch.

    Attributes:
      counts: how often each code was chosen.
      sums: of the vectors that chose it.
      samples: vectors as each level saw them, drawn at random from the whole batch.
    """

    counts: Float[Array, "Q V"]
    sums: Float[Array, "Q V C"]
    samples: Float[Array, "Q S C"]


class Quantized(NamedTuple):
    """What `quantize` returns.

    Attributes:
      values: input of the decoder side: quantised, or as it was in rows that pass through.
      quantized: quantised in every row; the gradient passes straight through the codebooks.
      first: the same with the first level alone.
      codes: -1 where a level is dropped or has no codebook yet.
      commitment: per row, the mean over active levels of the mean squared distance to the code.
      active_levels: levels that took part, in this batch.
      statistics: for `update`.
    """

    values: Float[Array, "B T C"]
    quantized: Float[Array, "B T C"]
    first: Float[Array, "B T C"]
    codes: Int[Array, "B Q T"]
    commitment: Float[Array, " B"]
    active_levels: Float[Array, ""]
    statistics: Statistics


def row_uniform(key: Array, rows: Int[Array, " B"]) -> Float[Array, " B"]:
    """Draw a number in [0, 1) for each row of the whole batch, whatever microbatch it is in."""
    return jax.vmap(lambda row: jax.random.uniform(jax.random.fold_in(key, row)))(rows)


def quantize(
    settings: QuantizerTraining,
    codebook: dict[str, Array],
    z: Float[Array, "B T C"],
    levels: Int[Array, ""] | int,
    pass_through: Bool[Array, " B"],
    key: Array,
    rows: Int[Array, " B"],
    total_rows: Int[Array, ""] | int,
) -> Quantized:
    """Quantise residuals for training, with the codebooks as they are.

    Args:
      settings: see `QuantizerTraining`.
      codebook: `embedding_sum`, `cluster_usage` and `initialized` of one quantiser.
      z: projected latents.
      levels: how many levels take part; may be traced.
      pass_through: rows that are decoded unquantised (their codes are still counted).
      key: of the draw of samples; the same for all microbatches of a batch.
      rows: numbers of these rows in the whole batch.
      total_rows: rows of the whole batch.
    """
    num_levels, bins = codebook["cluster_usage"].shape
    tables = jax.lax.stop_gradient(codebook_tables(codebook))
    draws = settings.samples_per_code * bins
    row_key, time_key = jax.random.split(key)
    sample_row = jax.random.randint(row_key, (draws,), 0, total_rows)
    sample_time = jax.random.randint(time_key, (draws,), 0, z.shape[1])
    mine = sample_row[:, None] == rows  # [S, B]; at most one row of this microbatch
    here, owned = jnp.argmax(mine, axis=1), jnp.any(mine, axis=1)

    residual, total = jax.lax.stop_gradient(z), jnp.zeros_like(z)
    first = total
    codes, commitment, counts, sums, samples = [], 0.0, [], [], []
    active_levels = 0.0
    for q in range(num_levels):
        active = (q < levels) & codebook["initialized"][q]
        code = nearest(residual, tables[q], half_squared_norm(tables[q]))
        entry = jnp.where(codebook["initialized"][q], lookup(code, tables[q]), 0.0)
        chosen = jnp.where(active, entry, 0.0)
        # The level's input carries a gradient only here: z minus the (constant) levels before.
        distance = jnp.mean(jnp.square(z - total - chosen), axis=(1, 2))
        commitment = commitment + jnp.where(active, distance, 0.0)
        learns = codebook["initialized"][q] if settings.dropped_levels_learn else active
        one_hot = jax.nn.one_hot(code, bins, dtype=z.dtype) * learns
        counts.append(jnp.sum(one_hot, axis=(0, 1)))
        sums.append(jnp.einsum("btv,btc->vc", one_hot, residual, precision=HIGHEST))
        samples.append(jnp.where(owned[:, None], residual[here, sample_time], 0.0))
        codes.append(jnp.where(active, code, -1))
        active_levels = active_levels + active
        # Levels that are dropped still pass their residual on: the next level's samples are of what it will see.
        residual, total = residual - entry, total + chosen
        first = total if q == 0 else first
    quantized, first = (z + jax.lax.stop_gradient(x - z) for x in (total, first))
    return Quantized(
        values=jnp.where(pass_through[:, None, None], z, quantized),
        quantized=quantized,
        first=first,
        codes=jnp.stack(codes, axis=1),
        commitment=commitment / jnp.maximum(active_levels, 1.0),
        active_levels=jnp.asarray(active_levels, jnp.float32),
        statistics=Statistics(jnp.stack(counts), jnp.stack(sums), jnp.stack(samples)),
    )


def update(
    settings: QuantizerTraining,
    codebook: dict[str, Array],
    statistics: Statistics,
    key: Array,
    step: Int[Array, ""] | int,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return the codebook after a step.

    Args:
      settings: see `QuantizerTraining`.
      codebook: before the step.
      statistics: of the whole batch.
      key: for k-means and replacements.
      step: number of the step; dead codes are replaced when `step % replace_every` is the last of its round.

    Returns:
      The new codebook, and per level: `replaced` (share of codes replaced) and `usage_entropy` (of the moving
      usage, divided by log V; 1 is uniform), both `[Q]`.
    """
    codebook = jax.tree.map(jnp.asarray, codebook)
    usage, sums, initialized = codebook["cluster_usage"], codebook["embedding_sum"], codebook["initialized"]
    num_levels, bins = usage.shape
    counts, batch_sums, samples = jax.lax.stop_gradient(statistics)
    kmeans_key, replace_key = jax.random.split(key)

    # Moving averages; a level that took no part keeps its own.
    took_part = jnp.sum(counts, axis=1) > 0
    decay = jnp.where(took_part, settings.decay, 1.0)[:, None]
    usage = usage * decay + counts * (1 - decay)
    sums = sums * decay[..., None] + batch_sums * (1 - decay[..., None])

    # Dead codes restart from a vector of this batch.
    uniform = jnp.sum(usage, axis=1, keepdims=True) / bins
    dead = (usage < settings.dead_below * uniform) & took_part[:, None]
    dead &= (jnp.asarray(step) % settings.replace_every) == settings.replace_every - 1
    pick = jax.vmap(lambda k: jax.random.choice(k, samples.shape[1], (bins,), replace=False))
    chosen = pick(jax.random.split(replace_key, num_levels))
    fresh = jnp.take_along_axis(samples, chosen[..., None], axis=1)
    usage = jnp.where(dead, uniform, usage)
    sums = jnp.where(dead[..., None], fresh * uniform[..., None], sums)

    # The first level without codebook gets one; the levels after it wait until their residuals make sense.
    level = jnp.argmin(initialized)  # the first False
    missing = ~initialized[level]

    def fill(_):
        counts, centroids = kmeans(samples[level], bins, settings.kmeans_iterations, kmeans_key)
        counts = jnp.maximum(counts, USAGE_AT_LEAST)
        return usage.at[level].set(counts), sums.at[level].set(centroids * counts[:, None])

    usage, sums = jax.lax.cond(missing, fill, lambda _: (usage, sums), None)
    new = {
        "embedding_sum": sums,
        "cluster_usage": usage,
        "initialized": initialized.at[level].set(True),
    }
    share = usage / jnp.maximum(jnp.sum(usage, axis=1, keepdims=True), 1e-20)
    entropy = -jnp.sum(share * jnp.log(jnp.maximum(share, 1e-20)), axis=1) / jnp.log(bins)
    return new, {"replaced": jnp.mean(dead.astype(jnp.float32), axis=1), "usage_entropy": entropy}


#: A centroid that k-means left without vectors starts with this usage, so that its table row stays finite and is soon
#: replaced.
USAGE_AT_LEAST = 1e-2


def kmeans(
    vectors: Float[Array, "S C"], clusters: int, iterations: int, key: Array
) -> tuple[Float[Array, " V"], Float[Array, "V C"]]:
    """Run Lloyd's algorithm from random vectors; a cluster that is left empty starts again from another one.

    Args:
      vectors: at least as many as `clusters`.
      clusters: V.
      iterations: of the algorithm.
      key: of the choice of the centroids, at the start and for empty clusters.

    Returns:
      Sizes and centroids of the clusters.
    """

    def draw(key):
        return vectors[jax.random.choice(key, vectors.shape[0], (clusters,), replace=False)]

    def assign(centroids):
        codes = nearest(vectors, centroids, half_squared_norm(centroids))
        one_hot = jax.nn.one_hot(codes, clusters, dtype=vectors.dtype)
        return jnp.sum(one_hot, axis=0), jnp.einsum("sv,sc->vc", one_hot, vectors, precision=HIGHEST)

    def improve(i, centroids):
        counts, sums = assign(centroids)
        fresh = draw(jax.random.fold_in(key, i))
        return jnp.where(counts[:, None] > 0, sums / jnp.maximum(counts, 1)[:, None], fresh)

    centroids = jax.lax.fori_loop(0, iterations, improve, draw(key))
    counts, _ = assign(centroids)
    return counts, centroids
