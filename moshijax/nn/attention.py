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
from moshijax.nn.projection import Linear, add_bias
from moshijax.nn.quantised import Quantised, factors, quantise
from moshijax.nn.rope import RopeScaling
from moshijax.nn.streaming import whole_blocks

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

RINGS = ("exact", "window")
#: Projections of attention that may have a bias: of queries, keys, values and outputs.
BIASES = ("q", "k", "v", "out")
#: Types of ring caches: that of the computation, or `Quantised`.
CACHE_DTYPES = ("computed", "int8")


def ring_positions(end_B: Int[Array, " B"], capacity: int) -> Int[Array, "B S"]:
    """Return the position that every slot of a ring holds once `0 .. end - 1` were written; negative where none is."""
    slot = jnp.arange(capacity)
    last = (end_B - 1)[:, None]
    # The newest position p <= last with p = slot (mod capacity).
    return last - (last - slot) % capacity


def ring_write(
    cache: Float[Array, "B G S *C"],
    new: Float[Array, "B T G *C"],
    offset_B: Int[Array, " B"],
    count_B: Int[Array, " B"] | None,
) -> Float[Array, "B G S *C"]:
    """Write new entries into a ring, entry i at slot `(offset + i) mod capacity`; of more than fit, the last ones stay.

    A scatter over the merged axis `B G`: XLA on CPU does it in place, where updating slices of the four axes copies the
    whole cache (and ten times over when B is 1). Entries that do not count get slots out of bounds, which the scatter
    drops.

    Args:
      cache: The ring, S its capacity.
      new: Entries, cast to the type of the ring.
      offset_B: Entries written before.
      count_B: Only the first so many of the T entries are written; None: all.

    Returns:
      The ring after it.
    """
    B, T, G, *entry = new.shape
    capacity = cache.shape[2]
    i = jnp.arange(T)
    slot_BT = (offset_B[:, None] + i) % capacity
    if count_B is not None or T > capacity:
        end = T if count_B is None else count_B[:, None]
        slot_BT = jnp.where((i < end) & (i >= end - capacity), slot_BT, capacity + i)
    new_NT = jnp.swapaxes(new, 1, 2).reshape(B * G, T, *entry).astype(cache.dtype)
    row_NT, slot_NT = jnp.arange(B * G)[:, None], jnp.repeat(slot_BT, G, axis=0)
    cache_NS = cache.reshape(B * G, capacity, *entry)
    return cache_NS.at[row_NT, slot_NT].set(new_NT, mode="drop", unique_indices=True).reshape(cache.shape)


def attend_parts(
    q_BTGRC: Array,
    parts: Sequence[tuple[Array | Quantised, Array | Quantised, Bool[Array, "B T S"]]],
    precision: str | None,
) -> Float[Array, "B T G R C"]:
    """Run `attend` over keys and values in several arrays, each read where it lies.

    Args:
      q_BTGRC: Queries.
      parts: Keys `[B, G, S, C]`, values of the same shape, and a mask `[B, T, S]` that is false where a query may not
        look; S differs from part to part. The products run on the merged axis `B G`. Scales of quantised keys multiply
        the scores, those of values the weights.
      precision: Of the products.
    """
    B, T, G, R, C = q_BTGRC.shape
    q_NMC = jnp.transpose(q_BTGRC, (0, 2, 1, 3, 4)).reshape(B * G, T * R, C)
    batch = ((0,), (0,))
    scores, values = [], []
    for k_BGSC, v_BGSC, mask_BTS in parts:
        S = k_BGSC.shape[2]
        dimensions = ((2,), (2,)), batch
        (k_NSC, k_scale_NS), value = (factors(_merged(x)) for x in (k_BGSC, v_BGSC))
        k_NSC = k_NSC.astype(q_NMC.dtype)
        score = jax.lax.dot_general(q_NMC, k_NSC, dimensions, precision=precision, preferred_element_type=jnp.float32)
        if k_scale_NS is not None:
            score = score * k_scale_NS[:, None]
        mask = jnp.broadcast_to(mask_BTS[:, None, :, None], (B, G, T, R, S)).reshape(score.shape)
        scores.append(jnp.where(mask, score / math.sqrt(C), jnp.finfo(jnp.float32).min))
        values.append(value)
    weights = jax.nn.softmax(scores[0] if len(scores) == 1 else jnp.concatenate(scores, axis=-1), axis=-1)
    y_NMC, at = 0, 0
    for v_NSC, v_scale_NS in values:
        part = weights[..., at : at + v_NSC.shape[1]]
        if v_scale_NS is not None:
            part = part * v_scale_NS[:, None]
        product = weighted_sum(part.astype(q_NMC.dtype), v_NSC.astype(q_NMC.dtype), precision)
        y_NMC, at = product if at == 0 else y_NMC + product, at + v_NSC.shape[1]
    return jnp.transpose(y_NMC.reshape(B, G, T, R, C), (0, 2, 1, 3, 4))


def weighted_sum(weights_NMS: Array, values_NSC: Array, precision: str | None) -> Float[Array, "N M C"]:
    """Return `weights @ values` for every N.

    For a single row of weights in two halves of S, added in float32: as one product XLA makes a multiplication and a
    sum of it, and for some NVIDIA cards (H200) puts the multiplication into the softmax before, which then writes
    all of `[N, S, C]`.
    """
    N, M, S = weights_NMS.shape
    if M > 1 or S % 2:
        return jax.lax.dot_general(weights_NMS, values_NSC, (((2,), (1,)), ((0,), (0,))), precision=precision)
    halves = jax.lax.dot_general(
        weights_NMS.reshape(N, M, 2, S // 2),
        values_NSC.reshape(N, 2, S // 2, -1),
        (((3,), (2,)), ((0, 2), (0, 1))),
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    return jnp.sum(halves, axis=1).astype(values_NSC.dtype)


def _merged(x_BGSC: Array | Quantised) -> Array | Quantised:
    """Return `[B G, S, C]`; nothing moves."""
    return jax.tree.map(lambda part: part.reshape(-1, *part.shape[2:]), x_BGSC)


def _heads_first(x_BTGC: Array | Quantised) -> Array | Quantised:
    """Return `[B, G, T, C]`."""
    return jax.tree.map(lambda part: jnp.swapaxes(part, 1, 2), x_BTGC)


class Attention(nn.Module):
    """Multi-head self-attention: `[B, T, D] -> [B, T, D]` (`modules/transformer.py` of `moshi`).

    The biases, where there are some, are parameters beside the maps: `q_bias [H C]`, `k_bias`, `v_bias [G C]` and
    `out_bias [D]`.

    Streaming state: `k`, `v` `[B, G, capacity, C]` in the compute dtype, or `Quantised` with a scale per position and
    head, and `offset [B]`, the number of positions seen.

    Attributes:
      dim: D.
      num_heads: Of queries.
      kv_repeat: Query heads per head of keys and values.
      context: Positions that a query sees, its own among them; None: all.
      causal: Queries see no later positions.
      rotary: Which channels rotate together, "interleaved" or "split" (`rope.rotate`); None: no rotation.
      max_period: Of the rotations, in positions.
      rope_scaling: Of the rotations; None: none.
      biases: The projections that have a bias, names in `BIASES`.
      block: Positions that arrive together in a step.
      ring: "exact": the ring holds `context + block - 1` positions. "window": it holds `context`, and the earlier
        positions of a block see fewer keys than they are entitled to, as in PyTorch.
      initializer: Of the projections, a name in `projection.INITIALIZERS`.
      dtype: In which it computes.
      param_dtype: Of new parameters.
      precision: Of all products.
      cache_dtype: Of the keys and values that steps look at, one of `CACHE_DTYPES`.
      implementation: Over whole causal sequences, one of `causal_attention.IMPLEMENTATIONS`.
    """

    dim: int
    num_heads: int
    kv_repeat: int = 1
    context: int | None = None
    causal: bool = True
    rotary: str | None = "interleaved"
    max_period: float = 10000.0
    rope_scaling: RopeScaling | None = None
    biases: tuple[str, ...] = ()
    block: int = 1
    ring: str = "exact"
    initializer: str = "truncated_normal"
    dtype: str = "float32"
    param_dtype: str = "float32"
    precision: str | None = "highest"
    cache_dtype: str = "computed"
    implementation: str = "auto"

    def setup(self) -> None:
        settings = dict(
            initializer=self.initializer, dtype=self.dtype, param_dtype=self.param_dtype, precision=self.precision
        )
        rows = (self.num_heads + 2 * self.groups) * self.head_dim
        self.in_proj = Linear(self.dim, rows, ("heads_rows", "embed_columns"), **settings)
        self.out_proj = Linear(self.dim, self.dim, ("embed", "heads"), **settings)
        width = self.groups * self.head_dim
        sizes = {"q": (self.dim, "heads"), "k": (width, "heads"), "v": (width, "heads"), "out": (self.dim, "embed")}
        self.bias = {
            name: self.param(
                f"{name}_bias",
                nn.with_logical_partitioning(nn.initializers.zeros, sizes[name][1:]),
                sizes[name][:1],
                jnp.dtype(self.param_dtype),
            )
            for name in self.biases
        }

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
        q = self._biased("q", qkv[..., : self.kv_repeat, :])
        k, v = self._biased("k", qkv[..., self.kv_repeat, :]), self._biased("v", qkv[..., self.kv_repeat + 1, :])
        if self.rotary is not None:
            cos, sin = rope.rotation(positions, self.head_dim, self.max_period, self.rope_scaling)
            cos, sin = cos[..., None, :], sin[..., None, :]
            q = rope.rotate(q, cos[..., None, :], sin[..., None, :], interleaved=self.rotary == "interleaved")
            k = rope.rotate(k, cos, sin, interleaved=self.rotary == "interleaved")
        return q, k, v

    def _biased(self, name: str, y: Array) -> Array:
        """Add the bias of a projection to its outputs `[B, T, ...]`, where it has one."""
        return add_bias(y, self.bias[name].reshape(y.shape[2:])) if name in self.biases else y

    def _output(self, y_BTGRC: Array) -> Float[Array, "B T D"]:
        return self._biased("out", self.out_proj(y_BTGRC.reshape(*y_BTGRC.shape[:2], self.dim)))

    def __call__(self, x: Float[Array, "B T D"], segments: Int[Array, "B T"] | None = None) -> Float[Array, "B T D"]:
        """Attend over a whole sequence.

        Args:
          x: Inputs.
          segments: Positions of different numbers do not see each other; only in causal attention.
        """
        q, k, v = self._project(x, jnp.arange(x.shape[1]))
        if self.causal:
            y = causal_attention(q, k, v, self.context, self.precision, self.implementation, segments)
        else:
            y = attend(q, jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2), None, self.precision)
        return self._output(y)

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
        T = x.shape[1]
        whole_blocks(T, self.block, "attention")
        q, *projected = self._project(x, offset_B[:, None] + jnp.arange(T))
        # A position is seen as the ring holds it from the first, so that blocks of any length see the same.
        new = {name: self._held(y) for name, y in zip(("k", "v"), projected, strict=True)}
        written = jax.tree.map(lambda ring, entries: ring_write(ring, entries, offset_B, count_B), cache, new)
        if T == self.block:  # the ring holds a block and all that its queries see: nothing else has to be read
            mask = self._mask(offset_B, T, ring_positions(offset_B + T, self.capacity))
            parts = [(written["k"], written["v"], mask)]
        else:
            before = self._mask(offset_B, T, ring_positions(offset_B, self.capacity))
            among = self._mask(offset_B, T, offset_B[:, None] + jnp.arange(T))
            parts = [(cache["k"], cache["v"], before), (_heads_first(new["k"]), _heads_first(new["v"]), among)]
        return written, self._output(attend_parts(q, parts, self.precision))

    def _mask(self, offset_B: Array, T: int, key_BS: Array) -> Bool[Array, "B T S"]:
        """Which of the keys at positions `key_BS` the queries at `offset .. offset + T - 1` see."""
        query_BT = offset_B[:, None] + jnp.arange(T)
        mask = window_mask(query_BT, key_BS, self.context)
        if self.ring == "window":  # a block is written over the oldest keys before its first query looks
            end_BT = offset_B[:, None] + (jnp.arange(T) // self.block + 1) * self.block
            mask = mask & (key_BS[:, None, :] >= end_BT[..., None] - self.context)
        return mask

    def _held(self, x_BTGC: Array) -> Array | Quantised:
        """Return keys or values in the type of the ring."""
        return quantise(x_BTGC) if self.cache_dtype == "int8" else x_BTGC

    @nn.nowrap
    def init_cache(self, batch_size: int) -> dict[str, Array | Quantised]:
        """Return an empty ring: `k`, `v` `[B, G, capacity, C]`."""
        shape = (batch_size, self.groups, self.capacity, self.head_dim)

        def empty() -> Array | Quantised:
            if self.cache_dtype == "int8":
                return Quantised(jnp.zeros(shape, jnp.int8), jnp.zeros(shape[:-1], jnp.float32))
            return jnp.zeros(shape, jnp.dtype(self.dtype))

        return {"k": empty(), "v": empty()}

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
        self.q_proj = Linear(self.dim, self.dim, ("heads_rows", "embed_columns"), **settings)
        self.k_proj = Linear(self.dim, self.dim, ("heads_rows", "embed_columns"), **settings)
        self.v_proj = Linear(self.dim, self.dim, ("heads_rows", "embed_columns"), **settings)
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
