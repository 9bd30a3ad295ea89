"""Pre-norm transformer stack: whole sequences with scan and remat for training, ring caches for streaming."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from moshijax.annotations import Context, Factor, Parts, Positive, Size
from moshijax.errors import require
from moshijax.nn import rope
from moshijax.nn.attention import RINGS, Attention, CrossAttention, advance, counted
from moshijax.nn.causal_attention import IMPLEMENTATIONS
from moshijax.nn.lora import Place
from moshijax.nn.mlp import ACTIVATIONS, MLP
from moshijax.nn.norms import NORM_KINDS, Norm

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

#: positional kind -> rotary pairing inside attention.
POSITIONAL_KINDS: dict[str, str | None] = {
    "rope": "interleaved",
    "rope_concat": "split",
    "sin": None,
    "sin_rope": "interleaved",
    "none": None,
}

REMAT_POLICIES: dict[str, Any] = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}

PRECISIONS = ("default", "high", "highest")


@dataclass(frozen=True)
class TransformerConfig:
    """A stack of identical layers. `hidden_dim` is the resolved width (see `mlp.hidden_width`).

    `cross_attention`: every layer also attends to a source sequence of width `dim`, between its two other branches.
    `remat_policy`: None keeps all activations; "full" recomputes each layer, "dots" keeps matrix products,
    "dots_no_batch" keeps those without batch axes.
    `attention_implementation`: of causal attention over whole sequences, one of `causal_attention.IMPLEMENTATIONS`.
    """

    dim: Size
    num_layers: Parts
    num_heads: Size
    hidden_dim: Size
    gating: str = "none"
    norm: str = "layer_norm"
    positional_embedding: str = "rope"
    max_period: Positive = 10000.0
    positional_scale: Factor = 1.0
    context: Context | None = None
    kv_repeat: Size = 1
    layer_scale: Factor | None = None
    causal: bool = True
    cross_attention: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"
    precision: str = "highest"
    remat_policy: str | None = None
    attention_implementation: str = "auto"

    def __post_init__(self) -> None:
        for name in ("dim", "num_heads", "hidden_dim", "kv_repeat"):
            value = getattr(self, name)
            require(isinstance(value, int) and value >= 1, f"{name}={value!r}: must be a positive whole number")
        require(
            isinstance(self.num_layers, int) and self.num_layers >= 0, f"num_layers={self.num_layers!r}: must be >= 0"
        )
        heads = self.num_heads
        require(
            self.dim % heads == 0,
            f"num_heads={heads} does not divide dim={self.dim}; use a divisor of {self.dim}, such as "
            f"{max(d for d in range(1, min(heads, self.dim) + 1) if self.dim % d == 0)}",
        )
        require(
            heads % self.kv_repeat == 0, f"kv_repeat={self.kv_repeat} does not divide num_heads={heads}; use a divisor"
        )
        require(
            self.kv_repeat == 1 or not self.cross_attention,
            f"kv_repeat={self.kv_repeat} with cross_attention: its keys are not shared by heads; use kv_repeat=1",
        )
        for name, choices in (
            ("gating", ("none", *ACTIVATIONS)),
            ("norm", tuple(NORM_KINDS)),
            ("positional_embedding", tuple(POSITIONAL_KINDS)),
            ("precision", PRECISIONS),
            ("remat_policy", (None, *REMAT_POLICIES)),
            ("attention_implementation", IMPLEMENTATIONS),
        ):
            value = getattr(self, name)
            require(value in choices, f"{name}={value!r}: must be one of {', '.join(map(str, choices))}")
        if POSITIONAL_KINDS[self.positional_embedding] is not None:
            width = self.dim // heads
            require(
                width % 2 == 0, f"head width {width} = {self.dim}/{heads} is odd: rotary positions need an even one"
            )
        kernel = self.attention_implementation
        require(
            kernel in ("auto", "xla") or self.causal,
            f"attention_implementation={kernel!r} with causal=False: only causal attention has kernels; use 'auto'",
        )
        require(
            kernel != "cudnn" or self.dtype != "float32",
            "attention_implementation='cudnn' with dtype='float32': cuDNN computes in bfloat16 or float16; set it, or "
            "use 'auto'",
        )
        if self.positional_embedding.startswith("sin"):
            require(
                self.dim % 2 == 0 and self.dim >= 4,
                f"dim={self.dim}: sinusoidal positions need an even dim of 4 or more",
            )
        require(
            self.context is None or (isinstance(self.context, int) and self.context >= 1),
            f"context={self.context!r}: must be None or a positive whole number",
        )
        for name in ("dtype", "param_dtype"):
            value = getattr(self, name)
            require(value in ("float32", "bfloat16", "float16"), f"{name}={value!r}: use float32, bfloat16 or float16")


class LayerScale(nn.Module):
    """Learnt factor per channel on a branch (CaiT, arXiv 2103.17239). Parameter `scale [D]`."""

    dim: int
    initial: float
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        init = nn.with_logical_partitioning(nn.initializers.constant(self.initial), ("norm",))
        return x * self.param("scale", init, (self.dim,), jnp.dtype(self.param_dtype)).astype(x.dtype)


class TransformerLayer(nn.Module):
    """`x + Attn(norm(x))`, then `x + MLP(norm(x))`, each branch optionally scaled per channel.

    With cross-attention, `x + CrossAttn(norm(x), source)` between the two; its norm is a layer norm in every model.
    """

    config: TransformerConfig
    block: int = 1
    ring: str = "exact"
    place: Place = Place()

    def setup(self) -> None:
        c = self.config
        self.norm1 = Norm(c.dim, c.norm, c.param_dtype)
        self.attention = make_attention(c, self.block, self.ring, self.place / "attention")
        self.norm2 = Norm(c.dim, c.norm, c.param_dtype)
        types = dict(dtype=c.dtype, param_dtype=c.param_dtype, precision=c.precision)
        self.mlp = MLP(c.dim, c.hidden_dim, c.gating, "truncated_normal", **types, place=self.place / "mlp")
        if c.layer_scale is not None:
            self.layer_scale_1 = LayerScale(c.dim, c.layer_scale, c.param_dtype)
            self.layer_scale_2 = LayerScale(c.dim, c.layer_scale, c.param_dtype)
        if c.cross_attention:
            self.norm_cross = Norm(c.dim, "layer_norm", c.param_dtype)
            self.cross_attention = CrossAttention(c.dim, c.num_heads, **types)
            if c.layer_scale is not None:
                self.layer_scale_cross = LayerScale(c.dim, c.layer_scale, c.param_dtype)

    def _scale(self, branch: str, x: Array) -> Array:
        return x if self.config.layer_scale is None else getattr(self, f"layer_scale_{branch}")(x)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        source: Float[Array, "B S D"] | None = None,
        segments: Int[Array, "B T"] | None = None,
    ) -> tuple[Array, None]:
        """Return `(y, None)`, the carry form that `nn.scan` wants."""
        x = nn.with_logical_constraint(x, ("batch", "time", "embed_act"))
        x = x + self._scale("1", self.attention(self.norm1(x), segments))
        if source is not None:
            x = x + self._cross(x, self.cross_attention.keys_values(source))
        x = x + self._scale("2", self.mlp(self.norm2(x)))
        return nn.with_logical_constraint(x, ("batch", "time", "embed_act")), None

    def _cross(self, x: Array, source: dict[str, Array]) -> Array:
        return self._scale("cross", self.cross_attention(self.norm_cross(x), source))

    def step(
        self, cache: dict[str, Array], x: Array, offset_B: Array, count_B: Array | None, source: Any = None
    ) -> tuple[Any, Array]:
        """Run new positions; `source`: keys and values of the source, where there is one (`source_cache`)."""
        cache, update = self.attention.attend_cached(cache, self.norm1(x), offset_B, count_B)
        x = x + self._scale("1", update)
        if source is not None:
            x = x + self._cross(x, source)
        return cache, x + self._scale("2", self.mlp(self.norm2(x)))

    def source_cache(self, source: Float[Array, "B S D"]) -> dict[str, Array]:
        return self.cross_attention.keys_values(source)


def make_attention(c: TransformerConfig, block: int, ring: str, place: Place) -> Attention:
    """The attention layer that `config` describes."""
    return Attention(
        dim=c.dim,
        num_heads=c.num_heads,
        kv_repeat=c.kv_repeat,
        context=c.context,
        causal=c.causal,
        rotary=POSITIONAL_KINDS[c.positional_embedding],
        max_period=c.max_period,
        block=block,
        ring=ring,
        dtype=c.dtype,
        param_dtype=c.param_dtype,
        precision=c.precision,
        implementation=c.attention_implementation,
        place=place,
    )


class Transformer(nn.Module):
    """The stack, without a final norm: `[B, T, D] -> [B, T, D]` in the compute dtype.

    Parameters are `layers_0 ..` or, with `scan_layers`, `layers` with a leading layer axis. Streaming state:
    `offset [B]` and, per layer, a ring cache (`layers`, a tuple). `block` positions arrive together.

    With `cross_attention` a source `[B, S, D]` is given beside `x`, and in a step what `source_caches` made of it: it
    stays the same while a row streams, so it is not part of the state here. Maps at a `place` with a low-rank update
    have one.
    """

    config: TransformerConfig
    block: int = 1
    ring: str = "exact"
    scan_layers: bool = False
    place: Place = Place()

    def setup(self) -> None:
        c = self.config
        require(self.ring in RINGS, f"ring={self.ring!r}: must be one of {', '.join(RINGS)}")
        layer = TransformerLayer
        if c.remat_policy is not None:
            layer = nn.remat(layer, policy=REMAT_POLICIES[c.remat_policy], prevent_cse=not self.scan_layers)
        if self.scan_layers:
            layer = nn.scan(
                layer,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=nn.broadcast,
                length=c.num_layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            self.layers = layer(c, self.block, self.ring, self.place)
        else:
            self.layers = [layer(c, self.block, self.ring, self.place) for _ in range(c.num_layers)]

    @property
    def block_size(self) -> int:
        return self.block

    @property
    def output_ratio(self) -> Fraction:
        return Fraction(1)

    @property
    def receptive_field(self) -> int | None:
        """Each layer adds its window to the block."""
        c = self.config
        return None if c.context is None or not c.causal else c.num_layers * (c.context - 1) + self.block

    def _embed_positions(self, x: Array, positions: Array) -> Array:
        c = self.config
        x = x.astype(jnp.dtype(c.dtype))
        if c.positional_embedding.startswith("sin"):
            x = x + c.positional_scale * rope.sinusoid(positions, c.dim, c.max_period).astype(x.dtype)
        return x

    def __call__(
        self,
        x: Float[Array, "B T D"],
        source: Float[Array, "B S D"] | None = None,
        segments: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """`segments`: positions of different numbers do not see each other (documents packed in a row)."""
        require((source is not None) == self.config.cross_attention, "a source goes with cross_attention, and only so")
        x = self._embed_positions(x, jnp.arange(x.shape[1]))
        arguments = (source, segments)
        if self.scan_layers:
            return self.layers(x, *arguments)[0] if self.config.num_layers else x
        for layer in self.layers:
            x, _ = layer(x, *arguments)
        return x

    def source_caches(self, source: Float[Array, "B S D"]) -> tuple[dict[str, Array], ...]:
        """Keys and values of a source `[B, S, D]` for the cross-attention of every layer, each `[B, H, S, C]`."""
        return tuple(layer.source_cache(source) for layer in self._unstacked())

    @nn.nowrap
    def init_state(self, batch_size: int) -> dict[str, Any]:
        attention = make_attention(self.config, self.block, self.ring, self.place)
        return {
            "offset": jnp.zeros((batch_size,), jnp.int32),
            "layers": tuple(attention.init_cache(batch_size) for _ in range(self.config.num_layers)),
        }

    def step(
        self,
        state: dict[str, Any],
        x: Float[Array, "B T D"],
        active: Bool[Array, " B"] | None = None,
        sources: tuple[dict[str, Array], ...] | None = None,
        lengths: Int[Array, " B"] | None = None,
    ) -> tuple[dict[str, Any], Float[Array, "B T D"]]:
        """Run any number of whole blocks in one pass.

        Args:
          active: Rows that are false are frozen.
          sources: What `source_caches` returned, with cross-attention.
          lengths: Only the first so many of the T positions count; the outputs of the others mean nothing.

        Raises:
          ConfigError: The parameters are stacked.
        """
        offset, T = state["offset"], x.shape[1]
        count = counted(T, active, lengths)
        x = self._embed_positions(x, offset[:, None] + jnp.arange(T))
        caches = []
        for i, layer in enumerate(self._unstacked()):
            arguments = () if sources is None else (sources[i],)
            cache, x = layer.step(state["layers"][i], x, offset, count, *arguments)
            caches.append(cache)
        return {"offset": advance(offset, T, count), "layers": tuple(caches)}, x

    def _unstacked(self) -> list[TransformerLayer]:
        require(not self.scan_layers, "stacked layers do not stream; call unstack_layers on the parameters first")
        return self.layers

    @nn.nowrap
    def reset(self, state: dict[str, Any], rows: Bool[Array, " B"]) -> dict[str, Any]:
        return {**state, "offset": jnp.where(rows, 0, state["offset"])}
