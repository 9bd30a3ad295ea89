"""The depth transformer: the audio rows of one frame, one after the other (RQ-Transformer, arXiv 2203.01941).

In training all frames are rows of a batch N = B T and the K steps are the sequence, step-major `[K, N, D]`, so that
weights per step are batched products. In generation the steps are unrolled, each with its own arrays.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from moshijax.lm.config import DepthConfig, LMConfig
from moshijax.lm.embedding import TokenTables
from moshijax.nn import rope
from moshijax.nn.mlp import ACTIVATIONS
from moshijax.nn.norms import NORM_KINDS, Norm, normalise
from moshijax.nn.projection import StackedLinear, StepLinear
from moshijax.nn.transformer import POSITIONAL_KINDS, REMAT_POLICIES, LayerScale

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


class DepthAttention(nn.Module):
    """Causal attention over the steps, with projections per step. State of a frame: the keys and values so far.

    Attributes:
      config: Of the depth transformer.
      schedule: The weights of every step (`StepLinear`).
      stacked: The weights of all steps are one array.
    """

    config: DepthConfig
    schedule: tuple[int, ...]
    stacked: bool

    def setup(self) -> None:
        c = self.config.transformer
        settings = dict(dtype=c.dtype, param_dtype=c.param_dtype, precision=c.precision, stacked=self.stacked)
        rows = (c.num_heads + 2 * (c.num_heads // c.kv_repeat)) * (c.dim // c.num_heads)
        self.in_proj = StepLinear(c.dim, rows, self.schedule, ("heads_rows", "embed_columns"), **settings)
        self.out_proj = StepLinear(c.dim, c.dim, self.schedule, ("embed", "heads"), **settings)

    def _split(self, qkv: Array, positions: Array) -> tuple[Array, Array, Array]:
        """`[..., rows]` to queries `[..., G, R, C]`, keys and values `[..., G, C]`; positions lead like `qkv`."""
        c = self.config.transformer
        groups, repeat, width = c.num_heads // c.kv_repeat, c.kv_repeat, c.dim // c.num_heads
        qkv = qkv.reshape(*qkv.shape[:-1], groups, repeat + 2, width)
        q, k, v = qkv[..., :repeat, :], qkv[..., repeat, :], qkv[..., repeat + 1, :]
        kind = POSITIONAL_KINDS[c.positional_embedding]
        if kind is not None:
            cos, sin = rope.rotation(positions, width, c.max_period)
            cos, sin = cos[..., None, None, :], sin[..., None, None, :]
            q = rope.rotate(q, cos, sin, interleaved=kind == "interleaved")
            k = rope.rotate(k, cos[..., 0, :], sin[..., 0, :], interleaved=kind == "interleaved")
        return q, k, v

    def __call__(self, x_KND: Array) -> Array:
        c = self.config.transformer
        K, N, _ = x_KND.shape
        q, k, v = self._split(self.in_proj(x_KND), jnp.arange(K)[:, None])
        scores = jnp.einsum("kngrc,lngc->ngrkl", q, k, precision=c.precision, preferred_element_type=jnp.float32)
        mask = jnp.tril(jnp.ones((K, K), bool))
        scores = jnp.where(mask, scores / math.sqrt(q.shape[-1]), jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        y = jnp.einsum("ngrkl,lngc->kngrc", weights, v, precision=c.precision)
        return self.out_proj(y.reshape(K, N, c.dim))

    def step(self, k_step: int, past: tuple[Array, ...], x_ND: Array) -> tuple[tuple[Array, ...], Array]:
        """Run step `k_step`; `past` holds keys and values `[N, G, k, C]` of the earlier ones (empty at step 0)."""
        c = self.config.transformer
        q, k, v = self._split(self.in_proj.step(k_step, x_ND), jnp.full((1,), k_step))
        k, v = k[:, :, None], v[:, :, None]
        if past:
            k, v = jnp.concatenate([past[0], k], axis=2), jnp.concatenate([past[1], v], axis=2)
        scores = jnp.einsum("ngrc,nglc->ngrl", q, k, precision=c.precision, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores / math.sqrt(q.shape[-1]), axis=-1).astype(v.dtype)
        y = jnp.einsum("ngrl,nglc->ngrc", weights, v, precision=c.precision)
        return (k, v), self.out_proj.step(k_step, y.reshape(-1, c.dim))


class DepthMLP(nn.Module):
    """Feed-forward block with weights per step, otherwise as `mlp.MLP`. Attributes as in `DepthAttention`."""

    config: DepthConfig
    schedule: tuple[int, ...]
    stacked: bool

    def setup(self) -> None:
        c = self.config.transformer
        settings = dict(dtype=c.dtype, param_dtype=c.param_dtype, precision=c.precision, stacked=self.stacked)
        settings["used"] = self.config.hidden_dims
        wide = c.dim, c.hidden_dim, self.schedule, ("mlp_rows", "embed_columns")
        if c.gating != "none":
            self.gate = StepLinear(*wide, **settings)
        self.up = StepLinear(*wide, **settings)
        self.down = StepLinear(c.hidden_dim, c.dim, self.schedule, ("embed", "mlp"), used_axis=1, **settings)

    def __call__(self, x_KND: Array) -> Array:
        gating = self.config.transformer.gating
        if gating == "none":
            return self.down(ACTIVATIONS["gelu"](self.up(x_KND)))
        return self.down(ACTIVATIONS[gating](self.gate(x_KND)) * self.up(x_KND))

    def step(self, k: int, x_ND: Array) -> Array:
        """Run step k alone, `[N, D] -> [N, D]`."""
        gating = self.config.transformer.gating
        if gating == "none":
            return self.down.step(k, ACTIVATIONS["gelu"](self.up.step(k, x_ND)))
        return self.down.step(k, ACTIVATIONS[gating](self.gate.step(k, x_ND)) * self.up.step(k, x_ND))


class DepthLayer(nn.Module):
    """Pre-norm layer; norms and layer scales are shared by all steps. Attributes as in `DepthAttention`."""

    config: DepthConfig
    schedule: tuple[int, ...]
    stacked: bool

    def setup(self) -> None:
        c = self.config.transformer
        self.norm1 = Norm(c.dim, c.norm, c.param_dtype)
        self.attention = DepthAttention(self.config, self.schedule, self.stacked)
        self.norm2 = Norm(c.dim, c.norm, c.param_dtype)
        self.mlp = DepthMLP(self.config, self.schedule, self.stacked)
        if c.layer_scale is not None:
            self.layer_scale_1 = LayerScale(c.dim, c.layer_scale, c.param_dtype)
            self.layer_scale_2 = LayerScale(c.dim, c.layer_scale, c.param_dtype)

    def _scale(self, number: int, x: Array) -> Array:
        if self.config.transformer.layer_scale is None:
            return x
        return self.layer_scale_1(x) if number == 1 else self.layer_scale_2(x)

    def __call__(self, x_KND: Array) -> tuple[Array, None]:
        x_KND = x_KND + self._scale(1, self.attention(self.norm1(x_KND)))
        return x_KND + self._scale(2, self.mlp(self.norm2(x_KND))), None

    def step(self, k: int, past: tuple[Array, ...], x_ND: Array) -> tuple[tuple[Array, ...], Array]:
        """Run step k alone; `past` as in `DepthAttention.step`."""
        past, update = self.attention.step(k, past, self.norm1(x_ND))
        x_ND = x_ND + self._scale(1, update)
        return past, x_ND + self._scale(2, self.mlp.step(k, self.norm2(x_ND)))


class StepNorm(nn.Module):
    """A norm with parameters per codebook: `scale [K, D]`, and `bias [K, D]` if its kind has one (`NORM_KINDS`)."""

    steps: int
    dim: int
    kind: str
    param_dtype: str

    def setup(self) -> None:
        dtype = jnp.dtype(self.param_dtype)
        ones = nn.with_logical_partitioning(nn.initializers.ones, ("codebook", "norm"))
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("codebook", "norm"))
        self.scale = self.param("scale", ones, (self.steps, self.dim), dtype)
        self.bias = self.param("bias", zeros, (self.steps, self.dim), dtype) if NORM_KINDS[self.kind][0] else None

    def __call__(self, x_KND: Array) -> Array:
        return normalise(x_KND, self.kind, self.scale[:, None], None if self.bias is None else self.bias[:, None])

    def step(self, k: int, x_ND: Array) -> Array:
        """Normalise the inputs of step k."""
        return normalise(x_ND, self.kind, self.scale[k], None if self.bias is None else self.bias[k])


class DepthTransformer(nn.Module):
    """Logits of the generated audio rows of a frame, from the temporal output and the tokens before each row.

    Moshi (arXiv 2410.00037, 3.4.1; `models/lm.py` of `moshi`).

    Attributes:
      config: Of the whole model.
      scan_layers: Parameters of layers have a leading axis (`moshijax.nn.layout`).
      stack_steps: Parameters of steps have a leading axis.
    """

    config: LMConfig
    scan_layers: bool
    stack_steps: bool

    def setup(self) -> None:
        lm, depth = self.config, self.config.depth
        c, K = depth.transformer, lm.layout.dep_q
        types = dict(dtype=c.dtype, param_dtype=c.param_dtype, precision=c.precision)
        maps = dict(**types, stacked=self.stack_steps)
        # One array in both layouts: all steps read the same temporal output, so this is one product.
        axes = ("steps", "embed_depth", "embed")
        self.inputs = StackedLinear(lm.temporal.dim, c.dim, depth.input_weights(K), axes, **types)
        tables = dict(low_rank=depth.low_rank, use_norm=lm.norm_emb, **types)
        self.text_embedding = TokenTables(1, lm.text_card + 1, c.dim, demux=lm.demux_text, **tables)
        if K > 1:
            self.audio_embedding = TokenTables(K - 1, lm.card + 1, c.dim, **tables)
        layer = DepthLayer
        if c.remat_policy is not None:
            layer = nn.remat(layer, policy=REMAT_POLICIES[c.remat_policy], prevent_cse=not self.scan_layers)
        schedule = depth.step_weights(K)
        if self.scan_layers:
            layer = nn.scan(
                layer,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=c.num_layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            self.layers = layer(depth, schedule, self.stack_steps)
        else:
            self.layers = [layer(depth, schedule, self.stack_steps) for _ in range(c.num_layers)]
        if depth.output_norm is not None:
            self.output_norm = StepNorm(K, c.dim, depth.output_norm, c.param_dtype)
        axes = ("vocab", "embed_depth")
        self.heads = StepLinear(c.dim, lm.card, tuple(range(K)), axes, lm.bias_proj, "truncated_normal", **maps)

    def _positions(self, x: Array, positions: Array) -> Array:
        c = self.config.depth.transformer
        if c.positional_embedding.startswith("sin"):
            x = x + c.positional_scale * rope.sinusoid(positions, c.dim, c.max_period).astype(x.dtype)
        return x

    def __call__(self, codes_BKT: Int[Array, "B K T"], z_BTD: Float[Array, "B T D"]) -> Float[Array, "B Q T V"]:
        """Return teacher-forced logits: step k reads row k of the codes (0 is text) and predicts row k + 1."""
        x_KBTD = self.hidden(codes_BKT, z_BTD)
        K, B, T, D = x_KBTD.shape
        return jnp.moveaxis(self.heads(x_KBTD.reshape(K, B * T, D)).reshape(K, B, T, -1), 0, 1)

    def hidden(self, codes_BKT: Int[Array, "B K T"], z_BTD: Float[Array, "B T D"]) -> Float[Array, "Q B T D"]:
        """Return what the heads read, teacher-forced."""
        K = self.config.layout.dep_q
        B, T, D = z_BTD.shape
        x_KND = self.inputs(z_BTD.reshape(B * T, D))
        ids_KN = jnp.moveaxis(codes_BKT[:, :K], 1, 0).reshape(K, B * T)
        tokens_KND = self.text_embedding(ids_KN[:1])
        if K > 1:
            tokens_KND = jnp.concatenate([tokens_KND, self.audio_embedding(ids_KN[1:])])
        x_KND = self._positions(tokens_KND + x_KND, jnp.arange(K)[:, None])
        x_KND = nn.with_logical_constraint(x_KND, ("steps_act", "batch", "embed_act"))
        if self.scan_layers:
            x_KND = self.layers(x_KND)[0] if self.config.depth.transformer.num_layers else x_KND
        else:
            for layer in self.layers:
                x_KND, _ = layer(x_KND)
        if self.config.depth.output_norm is not None:
            x_KND = self.output_norm(x_KND)
        return x_KND.reshape(K, B, T, -1)

    def step(
        self, k: int, past: tuple[Any, ...], token_B: Int[Array, " B"], input_BD: Float[Array, "B D"]
    ) -> tuple[tuple[Any, ...], Float[Array, "B V"]]:
        """Return the logits of step k from the token of the row before and entry k of what `inputs` makes of a frame.

        `past` is `()` at step 0. Only in the inference layout: one array per layer and step.
        """
        token = self.text_embedding.one(0, token_B) if k == 0 else self.audio_embedding.one(k - 1, token_B)
        x = self._positions(token + input_BD, jnp.full((1,), k))
        past = past or ((),) * self.config.depth.transformer.num_layers
        new = []
        for i in range(self.config.depth.transformer.num_layers):
            cache, x = self.layers[i].step(k, past[i], x)
            new.append(cache)
        if self.config.depth.output_norm is not None:
            x = self.output_norm.step(k, x)
        return tuple(new), self.heads.step(k, x)
