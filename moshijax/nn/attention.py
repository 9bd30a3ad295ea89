"""Causal windowed self-attention with a ring cache, rotary positions and shared key/value heads; cross-attention.

Heads are grouped: G key/value heads, each serving `R = kv_repeat` query heads. Whole sequences and single blocks give
the same numbers; `ring="window"` alone deviates, in the way the PyTorch streaming path does.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp

from moshijax.errors import ConfigError
from moshijax.nn import rope
from moshijax.nn.causal_attention import attend, causal_attention, window_mask
from moshijax.nn.lora import Place
from moshijax.nn.projection import Linear

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

RINGS = ("exact", "window")


def ring_positions(end_B: Int[Array, " B"], capacity: int) -> Int[Array, "B S"]:
    """Absolute position held by every slot once positions `0 .. end - 1` were written; negative where nothing is."""
    slot = jnp.arange(capacity)
    last = (end_B - 1)[:, None]
    # The newest position p <= last with p = slot (mod capacity).
    return last - (last - slot) % capacity


def ring_write(
    cache_BGSC: Array, new_BTGC: Array, offset_B: Int[Array, " B"], active_B: Bool[Array, " B"] | None
) -> Array:
    """Write T entries at slots `(offset + i) mod capacity`; frozen rows write back what the slots held.

    A scatter over the merged axis `B G`: XLA on CPU does it in place, where updating slices of the four axes copies the
    whole cache (and ten times over when B is 1).
    """
    B, T, G, C = new_BTGC.shape
    capacity = cache_BGSC.shape[2]
    cache_NSC = cache_BGSC.reshape(B * G, capacity, C)
    new_NTC = jnp.swapaxes(new_BTGC, 1, 2).reshape(B * G, T, C).astype(cache_BGSC.dtype)
    row_NT = jnp.arange(B * G)[:, None]
    slot_NT = jnp.repeat((offset_B[:, None] + jnp.arange(T)) % capacity, G, axis=0)
    if active_B is not None:
        new_NTC = jnp.where(jnp.repeat(active_B, G)[:, None, None], new_NTC, cache_NSC[row_NT, slot_NT])
    cache_NSC = cache_NSC.at[row_NT, slot_NT].set(new_NTC, unique_indices=True)
    return cache_NSC.reshape(cache_BGSC.shape)


def attend_ring(
    q_BTGRC: Array, k_BGSC: Array, v_BGSC: Array, mask_BTS: Bool[Array, "B T S"], precision: str | None
) -> Float[Array, "B T G R C"]:
    """`attend` for a few queries over a cache, on the merged axis `B G`, so that the cache is read where it lies."""
    B, T, G, R, C = q_BTGRC.shape
    S = k_BGSC.shape[2]
    k_NSC, v_NSC = k_BGSC.reshape(B * G, S, C), v_BGSC.reshape(B * G, S, C)
    q_NMC = jnp.transpose(q_BTGRC, (0, 2, 1, 3, 4)).reshape(B * G, T * R, C)
    batch = ((0,), (0,))
    scores = jax.lax.dot_general(q_NMC, k_NSC, (((2,), (2,)), batch), precision=precision).astype(jnp.float32)
    mask = jnp.broadcast_to(mask_BTS[:, None, :, None], (B, G, T, R, S)).reshape(scores.shape)
    scores = jnp.where(mask, scores / math.sqrt(C), jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_NSC.dtype)
    y_NMC = jax.lax.dot_general(weights, v_NSC, (((2,), (1,)), batch), precision=precision)
    return jnp.transpose(y_NMC.reshape(B, G, T, R, C), (0, 2, 1, 3, 4))


class Attention(nn.Module):
    """Multi-head self-attention without biases: `[B, T, D] -> [B, T, D]`.

    Streaming state: `k`, `v` `[B, G, capacity, C]` and `offset [B]`, the number of positions seen. `block` is the count
    of positions that arrive together; the ring then holds `context + block - 1` positions, or `context` with
    `ring="window"`, where the earlier positions of a block see fewer keys than they are entitled to
    (`modules/transformer.py` of `moshi`).
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
    implementation: str = "auto"  # over whole causal sequences, see `causal_attention`
    place: Place = Place()

    def setup(self) -> None:
        settings = dict(
            initializer=self.initializer, dtype=self.dtype, param_dtype=self.param_dtype, precision=self.precision
        )
        rows = (self.num_heads + 2 * self.groups) * self.head_dim
        self.in_proj = Linear(self.dim, rows, ("heads", "embed"), **settings, place=self.place / "in_proj")
        self.out_proj = Linear(self.dim, self.dim, ("embed", "heads"), **settings, place=self.place / "out_proj")

    @property
    def groups(self) -> int:
        return self.num_heads // self.kv_repeat

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @property
    def block_size(self) -> int:
        return self.block

    @property
    def output_ratio(self) -> Fraction:
        return Fraction(1)

    @property
    def receptive_field(self) -> int | None:
        """The first query of a block looks `context` back from its own position, `block - 1` before the block's end."""
        return None if self.context is None else self.context + self.block - 1

    @property
    def capacity(self) -> int:
        """Slots of the ring cache."""
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
        """`segments`: positions of different numbers do not see each other (causal attention alone)."""
        B, T, _ = x.shape
        q, k, v = self._project(x, jnp.arange(T))
        if self.causal:
            y = causal_attention(q, k, v, self.context, self.precision, self.implementation, segments)
        else:
            y = attend(q, jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2), None, self.precision)
        return self.out_proj(y.reshape(B, T, self.dim))

    def attend_cached(
        self, cache: dict[str, Array], x: Float[Array, "B T D"], offset_B: Array, active_B: Array | None = None
    ) -> tuple[dict[str, Array], Float[Array, "B T D"]]:
        """Attend from new positions `offset ..` over the ring `cache` (`k`, `v`) and themselves; T in whole blocks."""
        B, T, _ = x.shape
        positions = offset_B[:, None] + jnp.arange(T)
        q, k, v = self._project(x, positions)
        if T == self.block:
            cache, y = self._one_block(cache, q, k, v, offset_B, active_B)
        else:

            def blocks(a: Array) -> Array:
                return jnp.moveaxis(a.reshape(B, T // self.block, self.block, *a.shape[2:]), 1, 0)

            def body(carry, inputs):
                cache, offset = carry
                cache, y = self._one_block(cache, *inputs, offset, active_B)
                return (cache, offset + self.block), y

            (cache, _), y = jax.lax.scan(body, (cache, offset_B), (blocks(q), blocks(k), blocks(v)))
            y = jnp.moveaxis(y, 0, 1)
        return cache, self.out_proj(y.reshape(B, T, self.dim))

    def _one_block(self, cache, q, k, v, offset_B, active_B):
        cache = {"k": ring_write(cache["k"], k, offset_B, active_B), "v": ring_write(cache["v"], v, offset_B, active_B)}
        query = offset_B[:, None] + jnp.arange(self.block)
        key = ring_positions(offset_B + self.block, self.capacity)
        mask = window_mask(query, key, self.context)
        return cache, attend_ring(q, cache["k"], cache["v"], mask, self.precision)

    @nn.nowrap
    def init_cache(self, batch_size: int) -> dict[str, Array]:
        shape = (batch_size, self.groups, self.capacity, self.head_dim)
        return {"k": jnp.zeros(shape, jnp.dtype(self.dtype)), "v": jnp.zeros(shape, jnp.dtype(self.dtype))}

    @nn.nowrap
    def init_state(self, batch_size: int) -> dict[str, Array]:
        return {**self.init_cache(batch_size), "offset": jnp.zeros((batch_size,), jnp.int32)}

    def step(
        self, state: dict[str, Array], x: Float[Array, "B T D"], active: Bool[Array, " B"] | None = None
    ) -> tuple[dict[str, Array], Float[Array, "B T D"]]:
        cache, y = self.attend_cached({"k": state["k"], "v": state["v"]}, x, state["offset"], active)
        return {**cache, "offset": advance(state["offset"], x.shape[1], active)}, y

    @nn.nowrap
    def reset(self, state: dict[str, Array], rows: Bool[Array, " B"]) -> dict[str, Array]:
        return {**state, "offset": jnp.where(rows, 0, state["offset"])}


class CrossAttention(nn.Module):
    """Attention from every position of `x [B, T, D]` to a fixed source `[B, S, D]`: no mask, no positions, no biases.

    The keys and values of the source do not change while a row streams: compute them once (`keys_values`). Its maps
    have no low-rank updates, as in the published layer.
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
        return {
            "k": jnp.swapaxes(self._heads(self.k_proj(source_BSD)), 1, 2),
            "v": jnp.swapaxes(self._heads(self.v_proj(source_BSD)), 1, 2),
        }

    def __call__(self, x: Float[Array, "B T D"], source: dict[str, Array]) -> Float[Array, "B T D"]:
        """`source`: what `keys_values` gave."""
        q_BTHRC = self._heads(self.q_proj(x))[:, :, :, None]
        y = attend(q_BTHRC, source["k"], source["v"], None, self.precision)
        return self.out_proj(y.reshape(x.shape))


def advance(offset_B: Int[Array, " B"], steps: int, active_B: Bool[Array, " B"] | None) -> Int[Array, " B"]:
    """Offsets after `steps` positions; frozen rows stay."""
    return offset_B + steps if active_B is None else jnp.where(active_B, offset_B + steps, offset_B)
