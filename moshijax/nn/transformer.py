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
from moshijax.nn.attention import BIASES, CACHE_DTYPES, RINGS, Attention, CrossAttention, advance, counted
from moshijax.nn.causal_attention import IMPLEMENTATIONS
from moshijax.nn.mlp import ACTIVATIONS, MLP
from moshijax.nn.norms import NORM_KINDS, Norm
from moshijax.nn.rope import RopeScaling

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
    """A stack of identical layers.

    Attributes:
      dim: D.
      num_layers: Layers, 0 or more.
      num_heads: Query heads, a divisor of D.
      hidden_dim: Width of the feed-forward blocks, resolved (see `mlp.hidden_width`).
      gating: Of the feed-forward blocks, a name in `mlp.ACTIVATIONS`, or "none".
      norm: A name in `norms.NORM_KINDS`.
      positional_embedding: A name in `POSITIONAL_KINDS`.
      max_period: Of rotations and sinusoids, in positions.
      rope_scaling: Of rotations; None: none.
      positional_scale: Factor of added sinusoids.
      context: Positions that a query sees, its own among them; None: all.
      kv_repeat: Query heads per head of keys and values.
      attention_biases: Projections of attention that have a bias, names in `attention.BIASES`.
      mlp_bias: The maps of the feed-forward blocks have biases.
      layer_scale: First value of a learnt factor per channel on every branch; None: no such factor.
      causal: Queries see no later positions.
      cross_attention: Every layer also attends to a source sequence of width D, between its two other branches.
      dtype: In which the stack computes.
      param_dtype: Of new parameters.
      precision: Of all products, one of `PRECISIONS`.
      cache_dtype: Of keys and values in streaming, one of `attention.CACHE_DTYPES`.
      remat_policy: None keeps all activations; "full" recomputes each layer, "dots" keeps matrix products,
        "dots_no_batch" keeps those without batch axes.
      attention_implementation: Of causal attention over whole sequences, one of `causal_attention.IMPLEMENTATIONS`.
    """

    dim: Size
    num_layers: Parts
    num_heads: Size
    hidden_dim: Size
    gating: str = "none"
    norm: str = "layer_norm"
    positional_embedding: str = "rope"
    max_period: Positive = 10000.0
    rope_scaling: RopeScaling | None = None
    positional_scale: Factor = 1.0
    context: Context | None = None
    kv_repeat: Size = 1
    attention_biases: tuple[str, ...] = ()
    mlp_bias: bool = False
    layer_scale: Factor | None = None
    causal: bool = True
    cross_attention: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"
    precision: str = "highest"
    cache_dtype: str = "computed"
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
            ("cache_dtype", CACHE_DTYPES),
            ("remat_policy", (None, *REMAT_POLICIES)),
            ("attention_implementation", IMPLEMENTATIONS),
        ):
            value = getattr(self, name)
            require(value in choices, f"{name}={value!r}: must be one of {', '.join(map(str, choices))}")
        require(
            set(self.attention_biases) <= set(BIASES) and len(set(self.attention_biases)) == len(self.attention_biases),
            f"attention_biases={self.attention_biases!r}: must be names of {', '.join(BIASES)}, each once",
        )
        require(
            self.rope_scaling is None or POSITIONAL_KINDS[self.positional_embedding] is not None,
            f"rope_scaling with positional_embedding={self.positional_embedding!r}, which rotates nothing; use None",
        )
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


def require_moshi_form(config: TransformerConfig, what: str, remedy: str | None = None) -> None:
    """Refuse what only backbones from elsewhere have (Llama, Qwen2), and published files of Moshi have no place for.

    Args:
      config: Of the stack.
      what: The stack, for the message.
      remedy: For the message; default: the value to use.

    Raises:
      ConfigError: It has such a thing.
    """
    for name, plain in (("attention_biases", ()), ("mlp_bias", False), ("rope_scaling", None)):
        value = getattr(config, name)
        require(value == plain, f"{name}={value!r}: {what} has none; {remedy or f'use {plain!r}'}")
    remedy = remedy or "use 'rms_norm_f32'"
    require(config.norm != "rms_norm_1e-6", f"norm={config.norm!r}: {what} has no such norm; {remedy}")


class LayerScale(nn.Module):
    """Learnt factor per channel on a branch (CaiT, arXiv 2103.17239). Parameter `scale [D]`, `initial` at first.

    Multiplied in float32, in which its gradient is summed too; the result has the type of the input.
    """

    dim: int
    initial: float
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        init = nn.with_logical_partitioning(nn.initializers.constant(self.initial), ("norm",))
        scale = self.param("scale", init, (self.dim,), jnp.dtype(self.param_dtype))
        return (x.astype(jnp.float32) * scale.astype(jnp.float32)).astype(x.dtype)


class TransformerLayer(nn.Module):
    """`x + Attn(norm(x))`, then `x + MLP(norm(x))`, each branch optionally scaled per channel.

    With cross-attention, `x + CrossAttn(norm(x), source)` between the two; its norm is a layer norm in every model.

    Attributes:
      config: Of the stack.
      block: Positions that arrive together in a step.
      ring: Kind of the ring cache, see `Attention`.
    """

    config: TransformerConfig
    block: int = 1
    ring: str = "exact"

    def setup(self) -> None:
        c = self.config
        self.norm1 = Norm(c.dim, c.norm, c.param_dtype)
        self.attention = make_attention(c, self.block, self.ring)
        self.norm2 = Norm(c.dim, c.norm, c.param_dtype)
        types = dict(dtype=c.dtype, param_dtype=c.param_dtype, precision=c.precision)
        self.mlp = MLP(c.dim, c.hidden_dim, c.gating, c.mlp_bias, **types)
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
        """Run new positions.

        Args:
          cache: Ring of the attention.
          x: Inputs `[B, T, D]`.
          offset_B: Positions seen before.
          count_B: How many of the T positions count, see `attention.counted`.
          source: Keys and values of the source, where there is one (`source_cache`).

        Returns:
          The ring after it, and the outputs `[B, T, D]`.
        """
        cache, update = self.attention.attend_cached(cache, self.norm1(x), offset_B, count_B)
        x = x + self._scale("1", update)
        if source is not None:
            x = x + self._cross(x, source)
        return cache, x + self._scale("2", self.mlp(self.norm2(x)))

    def source_cache(self, source: Float[Array, "B S D"]) -> dict[str, Array]:
        """Return the keys and values `[B, H, S, C]` of a source."""
        return self.cross_attention.keys_values(source)


def make_attention(c: TransformerConfig, block: int, ring: str) -> Attention:
    """Return the attention layer of a stack."""
    return Attention(
        dim=c.dim,
        num_heads=c.num_heads,
        kv_repeat=c.kv_repeat,
        context=c.context,
        causal=c.causal,
        rotary=POSITIONAL_KINDS[c.positional_embedding],
        max_period=c.max_period,
        rope_scaling=c.rope_scaling,
        biases=c.attention_biases,
        block=block,
        ring=ring,
        dtype=c.dtype,
        param_dtype=c.param_dtype,
        precision=c.precision,
        cache_dtype=c.cache_dtype,
        implementation=c.attention_implementation,
    )


class Transformer(nn.Module):
    """The stack, without a final norm: `[B, T, D] -> [B, T, D]` in the compute dtype.

    Streaming state: `offset [B]` and, per layer, a ring cache (`layers`, a tuple).

    With `cross_attention` a source `[B, S, D]` is given beside `x`, and in a step what `source_caches` made of it: it
    stays the same while a row streams, so it is not part of the state here.

    Attributes:
      config: Of the stack.
      block: Positions that arrive together in a step.
      ring: Kind of the ring caches, see `Attention`.
      scan_layers: Parameters are `layers` with a leading layer axis, instead of `layers_0 ..`.
    """

    config: TransformerConfig
    block: int = 1
    ring: str = "exact"
    scan_layers: bool = False

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
            self.layers = layer(c, self.block, self.ring)
        else:
            self.layers = [layer(c, self.block, self.ring) for _ in range(c.num_layers)]

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
        """Positions that a block's outputs see: each layer adds its window to the block; None: all."""
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
        """Run a whole sequence.

        Args:
          x: Inputs.
          source: With cross-attention, what every position attends to.
          segments: Positions of different numbers do not see each other (documents packed in a row).

        Raises:
          ConfigError: A source without cross-attention, or the reverse.
        """
        require((source is not None) == self.config.cross_attention, "a source goes with cross_attention, and only so")
        x = self._embed_positions(x, jnp.arange(x.shape[1]))
        arguments = (source, segments)
        if self.scan_layers:
            return self.layers(x, *arguments)[0] if self.config.num_layers else x
        for layer in self.layers:
            x, _ = layer(x, *arguments)
        return x

    def source_caches(self, source: Float[Array, "B S D"]) -> tuple[dict[str, Array], ...]:
        """Return keys and values of a source for the cross-attention of every layer, each `[B, H, S, C]`."""
        return tuple(layer.source_cache(source) for layer in self._unstacked())

    @nn.nowrap
    def init_state(self, batch_size: int) -> dict[str, Any]:
        """Return the state before the first position."""
        attention = make_attention(self.config, self.block, self.ring)
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
          state: As `init_state` or the last step returned it.
          x: New positions.
          active: Rows that are false are frozen.
          sources: What `source_caches` returned, with cross-attention.
          lengths: Only the first so many of the T positions count; the outputs of the others mean nothing.

        Returns:
          The new state, and the outputs.

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
        """Return the state in which the rows that are true begin again."""
        return {**state, "offset": jnp.where(rows, 0, state["offset"])}
