"""Causal windowed self-attention with a ring cache, rotary positions and shared key/value heads; cross-attention.

Heads are grouped: G key/value heads, each serving `R = kv_repeat` query heads. Whole sequences and blocks of any length
give the same numbers; only `ring="window"` deviates, in the way the PyTorch streaming path does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp

from moshijax.errors import ConfigError
from moshijax.nn import rope
from moshijax.nn.causal_attention import attend, causal_attention, window_mask
from moshijax.nn.projection import Linear
from moshijax.nn.streaming import whole_blocks

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

RINGS = ("exact", "window")


def ring_positions(end_B: Int[Array, " B"], capacity: int) -> Int[Array, "B S"]:
    """Return the position that every slot of a ring holds once `0 .. end - 1` were written; negative where none is."""
    slot = jnp.arange(capacity)
    last = (end_B - 1)[:, None]
    # The newest position p <= last with p = slot (mod capacity).
    return last - (last - slot) % capacity


def ring_write(
    cache_BGSC: Array, new_BTGC: Array, offset_B: Int[Array, " B"], count_B: Int[Array, " B"] | None
) -> Array:
    """Write new entries into a ring, entry i at slot `(offset + i) mod capacity`; of more than fit, the last ones stay.

    A scatter over the merged axis `B G`: XLA on CPU does it in place, where updating slices of the four axes copies the
    whole cache (and ten times over when B is 1). Entries that do not count get slots out of bounds, which the scatter
    drops.

    Args:
      cache_BGSC: The ring, S its capacity.
      new_BTGC: Entries, cast to the type of the ring.
      offset_B: Entries written before.
      count_B: Only the first so many of the T entries are written; None: all.

    Returns:
      The ring after it, `[B, G, S, C]`.
    """
    B, T, G, C = new_BTGC.shape
    capacity = cache_BGSC.shape[2]
    i = jnp.arange(T)
    slot_BT = (offset_B[:, None] + i) % capacity
    if count_B is not None or T > capacity:
        end = T if count_B is None else count_B[:, None]
        slot_BT = jnp.where((i < end) & (i >= end - capacity), slot_BT, capacity + i)
    new_NTC = jnp.swapaxes(new_BTGC, 1, 2).reshape(B * G, T, C).astype(cache_BGSC.dtype)
    row_NT, slot_NT = jnp.arange(B * G)[:, None], jnp.repeat(slot_BT, G, axis=0)
    cache_NSC = cache_BGSC.reshape(B * G, capacity, C)
    return cache_NSC.at[row_NT, slot_NT].set(new_NTC, mode="drop", unique_indices=True).reshape(cache_BGSC.shape)


def attend_parts(
    q_BTGRC: Array, parts: Sequence[tuple[Array, Array, Bool[Array, "B T S"]]], precision: str | None
) -> Float[Array, "B T G R C"]:
    """Run `attend` over keys and values in several arrays, each read where it lies.

    Args:
      q_BTGRC: Queries.
      parts: Keys `[B, G, S, C]`, values of the same shape, and a mask `[B, T, S]` that is false where a query may not
        look; S differs from part to part. The products run on the merged axis `B G`.
      precision: Of the products.
    """
    B, T, G, R, C = q_BTGRC.shape
    q_NMC = jnp.transpose(q_BTGRC, (0, 2, 1, 3, 4)).reshape(B * G, T * R, C)
    batch = ((0,), (0,))
    scores, values = [], []
    for k_BGSC, v_BGSC, mask_BTS in parts:
        S = k_BGSC.shape[2]
        dimensions = ((2,), (2,)), batch
        k_NSC = k_BGSC.reshape(B * G, S, C)
        score = jax.lax.dot_general(q_NMC, k_NSC, dimensions, precision=precision, preferred_element_type=jnp.float32)
        mask = jnp.broadcast_to(mask_BTS[:, None, :, None], (B, G, T, R, S)).reshape(score.shape)
        scores.append(jnp.where(mask, score / math.sqrt(C), jnp.finfo(jnp.float32).min))
        values.append(v_BGSC.reshape(B * G, S, C))
    weights = jax.nn.softmax(scores[0] if len(scores) == 1 else jnp.concatenate(scores, axis=-1), axis=-1)
    y_NMC, at = 0, 0
    for v_NSC in values:
        part = weights[..., at : at + v_NSC.shape[1]].astype(v_NSC.dtype)
        product = jax.lax.dot_general(part, v_NSC, (((2,), (1,)), batch), precision=precision)
        y_NMC, at = product if at == 0 else y_NMC + product, at + v_NSC.shape[1]
    return jnp.transpose(y_NMC.reshape(B, G, T, R, C), (0, 2, 1, 3, 4))


class Attention(nn.Module):
    """Multi-head self-attention without biases: `[B, T, D] -> [B, T, D]` (`modules/transformer.py` of `moshi`).

    Streaming state: `k`, `v` `[B, G, capacity, C]` in the compute dtype and `offset [B]`, the number of positions seen.

    Attributes:
      dim: D.
      num_heads: Of queries.
      kv_repeat: Query heads per head of keys and values.
      context: Positions that a query sees, its own among them; None: all.
      causal: Queries see no later positions.
      rotary: Which channels rotate together, "interleaved" or "split" (`rope.rotate`); None: no rotation.
      max_period: Of the rotations, in positions.
      block: Positions that arrive together in a step.
      ring: "exact": the ring holds `context + block - 1` positions. "window": it holds `context`, and the earlier
        positions of a block see fewer keys than they are entitled to, as in PyTorch.
      initializer: Of the projections, a name in `projection.INITIALIZERS`.
      dtype: In which it computes.
      param_dtype: Of new parameters.
      precision: Of all products.
      implementation: Over whole causal sequences, one of `causal_attention.IMPLEMENTATIONS`.
    """

    dim: int
    num_heads: int
    kv_repeat: int = 1
    context: int | None = None
    causal: bool = True
    rotary: str | None = "interleaved"
    max_period: float = 10000.0
    block: int = 1
    ring: str = "exact"
    initializer: str = "truncated_normal"
    dtype: str = "float32"
    param_dtype: str = "float32"
    precision: str | None = "highest"
    implementation: str = "auto"

    def setup(self) -> None:
        settings = dict(
            initializer=self.initializer, dtype=self.dtype, param_dtype=self.param_dtype, precision=self.precision
        )
        rows = (self.num_heads + 2 * self.groups) * self.head_dim
        self.in_proj = Linear(self.dim, rows, ("heads", "embed"), **settings)
        self.out_proj = Linear(self.dim, self.dim, ("embed", "heads"), **settings)

    @property
    def groups(self) -> int:
        """G, heads of keys and values."""
        return self.num_heads // self.kv_repeat

    @property
    def head_dim(self) -> int:
        """C, width of a head."""
        return self.dim // self.num_heads

    @property
    def block_size(self) -> int:
        """Positions per block."""
        return self.block

    @property
    def output_ratio(self) -> Fraction:
        """Output positions per input position: 1."""
        return Fraction(1)

    @property
    def receptive_field(self) -> int | None:
        """Positions that a block's outputs see: its first query is `block - 1` before its end, and sees `context`."""
        return None if self.context is None else self.context + self.block - 1

    @property
    def capacity(self) -> int:
        """Slots of the ring cache.

        Raises:
          ConfigError: Attention without a causal window has no ring.
        """
        if self.context is None or not self.causal:
            raise ConfigError("context is None: streaming attention needs a causal window; set context")
        return self.context if self.ring == "window" else self.context + self.block - 1

    def _project(self, x: Array, positions: Array) -> tuple[Array, Array, Array]:
        B, T, _ = x.shape
        qkv = self.in_proj(x).reshape(B, T, self.groups, self.kv_repeat + 2, self.head_dim)
        q, k, v = qkv[..., : self.kv_repeat, :], qkv[..., self.kv_repeat, :], qkv[..., self.kv_repeat + 1, :]
        if self.rotary is not None:
            cos, sin = rope.rotation(positions, self.head_dim, self.max_period)
            cos, sin = cos[..., None, :], sin[..., None, :]
            q = rope.rotate(q, cos[..., None, :], sin[..., None, :], interleaved=self.rotary == "interleaved")
            k = rope.rotate(k, cos, sin, interleaved=self.rotary == "interleaved")
        return q, k, v

    def __call__(self, x: Float[Array, "B T D"], segments: Int[Array, "B T"] | None = None) -> Float[Array, "B T D"]:
        """Attend over a whole sequence.

        Args:
          x: Inputs.
          segments: Positions of different numbers do not see each other; only in causal attention.
        """
        B, T, _ = x.shape
        q, k, v = self._project(x, jnp.arange(T))
        if self.causal:
            y = causal_attention(q, k, v, self.context, self.precision, self.implementation, segments)
        else:
            y = attend(q, jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2), None, self.precision)
        return self.out_proj(y.reshape(B, T, self.dim))

    def attend_cached(
        self, cache: dict[str, Array], x: Float[Array, "B T D"], offset_B: Array, count_B: Array | None = None
    ) -> tuple[dict[str, Array], Float[Array, "B T D"]]:
        """Attend from new positions `offset ..` over the ring `cache` and themselves, and write them into the ring.

        Args:
          cache: `k`, `v` `[B, G, capacity, C]`.
          x: Any number of whole blocks.
          offset_B: Positions seen before.
          count_B: How many of the T positions count in each row, the first ones; None: all. The others are not written,
            and their outputs mean nothing.

        Returns:
          The ring after it, and the outputs.
        """
        B, T, _ = x.shape
        whole_blocks(T, self.block, "attention")
        q, k, v = self._project(x, offset_B[:, None] + jnp.arange(T))
        written = {
            "k": ring_write(cache["k"], k, offset_B, count_B),
            "v": ring_write(cache["v"], v, offset_B, count_B),
        }
        if T == self.block:  # the ring holds a block and all that its queries see: nothing else has to be read
            mask = self._mask(offset_B, T, ring_positions(offset_B + T, self.capacity))
            parts = [(written["k"], written["v"], mask)]
        else:
            before = self._mask(offset_B, T, ring_positions(offset_B, self.capacity))
            among = self._mask(offset_B, T, offset_B[:, None] + jnp.arange(T))
            parts = [(cache["k"], cache["v"], before), (jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2), among)]
        return written, self.out_proj(attend_parts(q, parts, self.precision).reshape(B, T, self.dim))

    def _mask(self, offset_B: Array, T: int, key_BS: Array) -> Bool[Array, "B T S"]:
        """Which of the keys at positions `key_BS` the queries at `offset .. offset + T - 1` see."""
        query_BT = offset_B[:, None] + jnp.arange(T)
        mask = window_mask(query_BT, key_BS, self.context)
        if self.ring == "window":  # a block is written over the oldest keys before its first query looks
            end_BT = offset_B[:, None] + (jnp.arange(T) // self.block + 1) * self.block
            mask = mask & (key_BS[:, None, :] >= end_BT[..., None] - self.context)
        return mask

    @nn.nowrap
    def init_cache(self, batch_size: int) -> dict[str, Array]:
        """Return an empty ring: `k`, `v` `[B, G, capacity, C]`."""
        shape = (batch_size, self.groups, self.capacity, self.head_dim)
        return {"k": jnp.zeros(shape, jnp.dtype(self.dtype)), "v": jnp.zeros(shape, jnp.dtype(self.dtype))}

    @nn.nowrap
    def init_state(self, batch_size: int) -> dict[str, Array]:
        """Return the state before the first position."""
        return {**self.init_cache(batch_size), "offset": jnp.zeros((batch_size,), jnp.int32)}

    def step(
        self,
        state: dict[str, Array],
        x: Float[Array, "B T D"],
        active: Bool[Array, " B"] | None = None,
        lengths: Int[Array, " B"] | None = None,
    ) -> tuple[dict[str, Array], Float[Array, "B T D"]]:
        """Run any number of whole blocks in one pass.

        Args:
          state: As `init_state` or the last step returned it.
          x: New positions.
          active: As in `counted`.
          lengths: As in `counted`.

        Returns:
          The new state, and the outputs.
        """
        count = counted(x.shape[1], active, lengths)
        cache, y = self.attend_cached({"k": state["k"], "v": state["v"]}, x, state["offset"], count)
        return {**cache, "offset": advance(state["offset"], x.shape[1], count)}, y

    @nn.nowrap
    def reset(self, state: dict[str, Array], rows: Bool[Array, " B"]) -> dict[str, Array]:
        """Return the state in which the rows that are true begin again; their rings need no clearing."""
        return {**state, "offset": jnp.where(rows, 0, state["offset"])}


class CrossAttention(nn.Module):
    """Attention from every position of `x [B, T, D]` to a fixed source `[B, S, D]`: no mask, no positions, no biases.

    The keys and values of the source do not change while a row streams: compute them once (`keys_values`). As in
    `modules/transformer.py` of `moshi`.

    Attributes:
      dim: D, of inputs and source.
      num_heads: H.
      dtype: In which it computes.
      param_dtype: Of new parameters.
      precision: Of all products.
    """

    dim: int
    num_heads: int
    dtype: str = "float32"
    param_dtype: str = "float32"
    precision: str | None = "highest"

    def setup(self) -> None:
        settings = dict(dtype=self.dtype, param_dtype=self.param_dtype, precision=self.precision)
        self.q_proj = Linear(self.dim, self.dim, ("heads", "embed"), **settings)
        self.k_proj = Linear(self.dim, self.dim, ("heads", "embed"), **settings)
        self.v_proj = Linear(self.dim, self.dim, ("heads", "embed"), **settings)
        self.out_proj = Linear(self.dim, self.dim, ("embed", "heads"), **settings)

    def _heads(self, x_BSD: Array) -> Array:
        return x_BSD.reshape(*x_BSD.shape[:2], self.num_heads, self.dim // self.num_heads)

    def keys_values(self, source_BSD: Float[Array, "B S D"]) -> dict[str, Float[Array, "B H S C"]]:
        """Return the keys `k` and values `v` of a source."""
        return {
            "k": jnp.swapaxes(self._heads(self.k_proj(source_BSD)), 1, 2),
            "v": jnp.swapaxes(self._heads(self.v_proj(source_BSD)), 1, 2),
        }

    def __call__(self, x: Float[Array, "B T D"], source: dict[str, Array]) -> Float[Array, "B T D"]:
        """Attend from `x` to a source, given as `keys_values` returned it."""
        q_BTHRC = self._heads(self.q_proj(x))[:, :, :, None]
        y = attend(q_BTHRC, source["k"], source["v"], None, self.precision)
        return self.out_proj(y.reshape(x.shape))


def counted(
    steps: int, active_B: Bool[Array, " B"] | None, lengths_B: Int[Array, " B"] | None = None
) -> Int[Array, " B"] | None:
    """Return how many of `steps` new positions count in each row; None: all.

    Args:
      steps: New positions.
      active_B: Rows that are false are frozen: nothing counts.
      lengths_B: Only the first so many positions count, 0 to `steps`.
    """
    if active_B is None:
        return lengths_B
    return jnp.where(active_B, steps if lengths_B is None else lengths_B, 0)


def advance(offset_B: Int[Array, " B"], steps: int, count_B: Int[Array, " B"] | None) -> Int[Array, " B"]:
    """Return the offsets after `steps` positions, of which `count_B` count (see `counted`)."""
    return offset_B + (steps if count_B is None else count_B)
