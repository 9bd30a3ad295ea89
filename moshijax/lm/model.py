"""The language model: temporal transformer over frames, depth transformer over the rows of a frame.

Moshi (arXiv 2410.00037, 3.4; `models/lm.py` of `moshi`). Functions take a config and a plain tree of parameters, in
either layout of `moshijax.nn.layout`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from moshijax.errors import ConfigError
from moshijax.lm import conditioning, delays
from moshijax.lm.conditioning import ConditionProjection, Conditions
from moshijax.lm.config import LMConfig, LookupConditioner
from moshijax.lm.depth import DepthTransformer
from moshijax.lm.embedding import TokenTables
from moshijax.lm.scoring import LMScores, at_frames, into_frames, score_in_pieces
from moshijax.nn import lora, rope
from moshijax.nn.functions import parameter_functions
from moshijax.nn.layout import is_stacked, unstack_layers
from moshijax.nn.norms import Norm
from moshijax.nn.projection import Kernels, Linear, linear
from moshijax.nn.transformer import Transformer
from moshijax.tokens import BOS, ZERO

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

Params = dict[str, Any]


class LMOutput(NamedTuple):
    """Predictions aligned with the codes: `logits[:, q, t]` are of `codes[:, 1 + q, t]`.

    Where a mask is false there is no prediction or no target, and the logits mean nothing (they are finite).

    Attributes:
      logits: Of the audio rows that the depth transformer predicts, in the compute dtype as all logits.
      mask: Of `logits`.
      text_logits: Of the text row.
      text_mask: Of `text_logits`.
      extra_logits: Of the H extra heads; None: the model has none.
    """

    logits: Float[Array, "B Q T V"]
    mask: Bool[Array, "B Q T"]
    text_logits: Float[Array, "B 1 T V"]
    text_mask: Bool[Array, "B 1 T"]
    extra_logits: Float[Array, "B T H V"] | None = None


class LanguageModel(Kernels):
    """The parameters and the pieces that training and generation share; its methods run through `init` and `apply`.

    Attributes:
      config: What the model is.
      scan_layers: Parameters of layers have a leading axis (`moshijax.nn.layout`).
      stack_steps: Parameters of depth steps have a leading axis.
    """

    kernel_axes = (None, None, "embed")  # of the extra heads

    config: LMConfig
    scan_layers: bool = False
    stack_steps: bool = False

    @classmethod
    def of(cls, config: LMConfig, params: Params) -> LanguageModel:
        """Return the module that fits the layout of `params`."""
        return cls(config, is_stacked(params, ("layers",)), is_stacked(params, ("steps",)))

    @classmethod
    def streaming(cls, config: LMConfig, params: Params) -> tuple[LanguageModel, dict[str, Params]]:
        """Return the module that runs step by step, and its variables: one array per layer and step."""
        return cls(config), {"params": unstack_layers(params) if is_stacked(params) else params}

    @nn.nowrap
    def init_with_output(self, *args: Any, **kwargs: Any) -> Any:
        """Initialise, with the low-rank updates of the config; `init` calls this."""
        with lora.updates(self.config.lora):
            return super().init_with_output(*args, **kwargs)

    @nn.nowrap
    def apply(self, *args: Any, **kwargs: Any) -> Any:
        """Run a method, with the low-rank updates of the config."""
        with lora.updates(self.config.lora):
            return super().apply(*args, **kwargs)

    def setup(self) -> None:
        c = self.config
        lora.require_active(c.lora)
        t = c.temporal
        types = dict(dtype=t.dtype, param_dtype=t.param_dtype, precision=t.precision)
        if c.layout.n_q:
            self.audio_embedding = TokenTables(c.layout.n_q, c.card + 1, t.dim, use_norm=c.norm_emb, **types)
        self.text_embedding = TokenTables(1, c.text_card + 1, t.dim, use_norm=c.norm_emb, demux=c.demux_text, **types)
        self.conditioners = {
            x.name: ConditionProjection(x.dim, t.dim, x.bins if isinstance(x, LookupConditioner) else None)
            for x in c.conditioners
        }
        self.temporal = Transformer(t, scan_layers=self.scan_layers)
        self.out_norm = Norm(t.dim, t.norm, t.param_dtype)
        self.text_head = Linear(t.dim, c.text_vocab, ("vocab", "embed"), c.bias_proj, **types)
        heads = ("extra_heads",) if c.extra_heads else ()
        self.add_kernels(heads, (c.extra_heads, c.extra_heads_dim, t.dim), t.param_dtype)
        if c.depth is not None:
            self.depth = DepthTransformer(c, self.scan_layers, self.stack_steps)

    def embed(self, codes_BKT: Array, text_only: bool = False) -> Float[Array, "B T D"]:
        """Return the sum of the embeddings of all rows: audio in order, then text.

        The rows are added up where they were looked up, before anything travels between devices.

        Args:
          codes_BKT: Input columns.
          text_only: The audio rows are `ZERO` where their initial tokens end, and need no look-up from there on.
        """
        layout = self.config.layout
        audio_BQT = codes_BKT[:, 1:, : 1 + layout.max_delay if text_only else None]
        x = self.text_embedding(codes_BKT[:, 0][None])[0]
        if layout.n_q:
            rows = self.audio_embedding(jnp.moveaxis(audio_BQT, 1, 0))
            audio = sum(rows[1:], rows[0])
            x = jnp.pad(audio, ((0, 0), (0, x.shape[1] - audio.shape[1]), (0, 0))) + x
        x = nn.with_logical_constraint(x, ("rows", "time", "embed"))
        return nn.with_logical_constraint(x, ("batch", "time", "embed_act"))

    def condition(self, conditions: Conditions | None, batch: int) -> dict[str, Array]:
        """Return what conditions become: `sum [B, D]`, added to every temporal input, and `cross [B, S, D]`, a source.

        In the compute dtype; only what the model has.

        Args:
          conditions: As in `forward`.
          batch: Rows.

        Raises:
          ConfigError: A condition that the model does not have, or one of the wrong shape.
        """
        c = self.config
        found: dict[str, list[Array]] = {"sum": [], "cross": []}
        values = conditioning.complete(c.conditioners, conditions, batch)
        for conditioner in c.conditioners:
            found[conditioner.fuse].append(self.conditioners[conditioner.name](values[conditioner.name]))
        out = {}
        dtype = jnp.dtype(c.temporal.dtype)
        if found["sum"]:
            out["sum"] = sum(found["sum"][1:], found["sum"][0])[:, 0].astype(dtype)
        if found["cross"]:
            source = jnp.concatenate(found["cross"], axis=1)
            if c.cross_positions is not None:
                positions = rope.sinusoid(jnp.arange(source.shape[1]), c.temporal.dim, 10000.0)
                source = source + c.cross_positions * positions
            out["cross"] = source.astype(dtype)
        return out

    def source_caches(self, source_BSD: Array) -> tuple[dict[str, Array], ...]:
        """Return keys and values of the cross-attention source, per layer of the temporal transformer."""
        return self.temporal.source_caches(source_BSD)

    def _temporal(
        self,
        codes_BKT: Array,
        conditions: Conditions | None,
        segments_BT: Array | None = None,
        text_only: bool = False,
    ) -> Float[Array, "B T D"]:
        """Run the temporal transformer over whole sequences of input columns: what all heads read, normalised."""
        fused = self.condition(conditions, codes_BKT.shape[0])
        x = self.embed(codes_BKT, text_only)
        if "sum" in fused:
            x = x + fused["sum"][:, None].astype(x.dtype)
        return self.out_norm(self.temporal(x, fused.get("cross"), segments_BT))

    def inputs(self, codes_BKT: Array) -> Int[Array, "B K T+1"]:
        """Return the initial column, then the delayed codes: position p of row k holds code `p - 1 - delay_k`."""
        c = self.config
        first = jnp.asarray(c.initial_column, codes_BKT.dtype)
        first = jnp.broadcast_to(first[None, :, None], (codes_BKT.shape[0], c.layout.num_streams, 1))
        return jnp.concatenate([first, delays.delay(codes_BKT, c.layout.delays, c.initial_column)], axis=2)

    def __call__(self, codes_BKT: Array, conditions: Conditions | None = None) -> LMOutput:
        """Predict; see `forward`."""
        c = self.config
        B, _, T = codes_BKT.shape
        sequence = self.inputs(codes_BKT)
        z = self._temporal(sequence[:, :, :-1], conditions)
        text_logits = self.text_head(z)
        extra = self.extra(z) if c.extra_heads else None
        dep_q = c.layout.dep_q
        if c.depth is not None:
            logits = delays.undelay(self.depth(sequence[:, :, 1:], z), c.layout.delays[1 : 1 + dep_q])
        else:
            logits = jnp.zeros((B, 0, T, c.card), text_logits.dtype)
        text_logits = delays.undelay(text_logits[:, None], c.layout.delays[:1])
        mask = target_mask(c, codes_BKT)
        return LMOutput(logits, mask[:, 1:], text_logits, mask[:, :1], extra)

    def score(
        self,
        codes_BKT: Array,
        conditions: Conditions | None,
        text_only: bool,
        separate_documents: bool,
        frames: int | None,
        depth_frames_BF: Array | None,
    ) -> LMScores:
        """Score the targets; see the function `score`.

        They are made where the model predicts, in its own order; only they are moved back to the codes, not the logits.
        """
        sequence = self.inputs(codes_BKT)
        documents = None
        if separate_documents:  # the first one sees the initial column, as every sequence does
            begins = (sequence[:, 0, :-1] == BOS).at[:, :2].set(False)
            documents = jnp.cumsum(begins, axis=1, dtype=jnp.int32)
        z = self._temporal(sequence[:, :, :-1], conditions, documents, text_only)
        inputs = sequence[:, :, 1:]

        def text_head(module: LanguageModel, x: Array) -> Array:
            return module.text_head(x)

        def depth_heads(module: LanguageModel, x: Array) -> Array:
            return module.depth.heads(x.reshape(x.shape[0], -1, x.shape[-1])).reshape(*x.shape[:-1], -1)

        found = [score_in_pieces(self, text_head, z[None], jnp.moveaxis(inputs[:, :1], 1, 0), frames)]
        counts = None
        if self.config.depth is not None and not text_only:
            rows = slice(1, 1 + self.config.layout.dep_q)
            some, at = inputs, z
            if depth_frames_BF is not None:
                some, at = at_frames(inputs, depth_frames_BF, 2), at_frames(z, depth_frames_BF, 1)
            targets = jnp.moveaxis(some, 1, 0)[rows]
            parts = score_in_pieces(self, depth_heads, self.depth.hidden(some, at), targets, frames)
            if depth_frames_BF is not None:
                T, F = z.shape[1], depth_frames_BF.shape[1]
                chosen = into_frames(jnp.full(parts[0].shape, T / F, jnp.float32), depth_frames_BF, T)
                parts = tuple(into_frames(part, depth_frames_BF, T) for part in parts)
                counts = jnp.concatenate([jnp.ones_like(chosen[:1]), chosen])
            found.append(parts)
        shifts = self.config.layout.delays[: sum(len(nll) for nll, _ in found)]
        nll, correct = (jnp.moveaxis(jnp.concatenate(parts), 0, 1) for parts in zip(*found, strict=True))
        if counts is not None:
            counts = delays.undelay(jnp.moveaxis(counts, 0, 1), shifts)
        return LMScores(delays.undelay(nll, shifts), delays.undelay(correct, shifts), counts)

    def temporal_steps(
        self,
        state: Any,
        columns_BKT: Int[Array, "B K T"],
        active_B: Array | None = None,
        conditions: dict[str, Any] | None = None,
        lengths_B: Array | None = None,
    ) -> tuple[Any, Float[Array, "B T D"]]:
        """Run T positions of input columns.

        Args:
          state: Of the temporal transformer.
          columns_BKT: Input columns, delayed.
          active_B: Rows that are false are frozen; None: none.
          conditions: Those of a generation state.
          lengths_B: Only the first so many positions count; None: all.

        Returns:
          The new state, and what all heads read.
        """
        conditions = conditions or {}
        x = self.embed(columns_BKT)
        if "sum" in conditions:
            x = x + conditions["sum"][:, None].astype(x.dtype)
        state, x = self.temporal.step(state, x, active_B, conditions.get("cross"), lengths_B)
        return state, self.out_norm(x)

    def temporal_step(
        self, state: Any, column_BK: Array, active_B: Array | None, conditions: dict[str, Any] | None = None
    ) -> tuple[Any, Array, Array]:
        """Run one position; return the new state, what all heads read `[B, D]`, and text logits `[B, V]`."""
        state, z = self.temporal_steps(state, column_BK[:, :, None], active_B, conditions)
        return state, z[:, 0], self.text_head(z)[:, 0]

    def depth_inputs(self, z_BD: Float[Array, "B D"]) -> Float[Array, "Q B E"]:
        """Return what the steps of the depth transformer read of a frame."""
        return self.depth.inputs(z_BD)

    def depth_step(self, k: int, past: Any, token_B: Array, input_BE: Array) -> tuple[Any, Array]:
        """Run step k of the depth transformer; see `DepthTransformer.step`."""
        return self.depth.step(k, past, token_B, input_BE)

    def extra(self, z: Float[Array, "... D"]) -> Float[Array, "... H V"]:
        """Return the logits of the extra heads."""
        kernel = self.kernel_of("extra_heads")
        logits = linear(z, kernel.reshape(-1, kernel.shape[-1]), self.config.temporal.precision)
        return logits.reshape(*z.shape[:-1], *kernel.shape[:-1])


def target_mask(config: LMConfig, codes_BKT: Int[Array, "B K T"]) -> Bool[Array, "B 1+Q T"]:
    """Return where row k (text, then the rows of the depth transformer) has a prediction and a target, not `ZERO`."""
    rows = 1 + config.layout.dep_q
    exists = delays.valid(config.layout.delays[:rows], codes_BKT.shape[2])
    return exists & (codes_BKT[:, :rows] != ZERO)


def _check_codes(config: LMConfig, codes_BKT: Array) -> None:
    if codes_BKT.ndim != 3 or codes_BKT.shape[1] != config.layout.num_streams:
        raise ConfigError(
            f"codes of shape {tuple(codes_BKT.shape)}: must be [B, {config.layout.num_streams}, T], "
            "one row per stream of the layout"
        )


def init_boxed(config: LMConfig, key: Array) -> Params:
    """Return new parameters in the training layout, each boxed with its logical axis names (for sharding)."""
    codes = jnp.zeros((1, config.layout.num_streams, 2), jnp.int32)
    return LanguageModel(config, config.scan_layers, stack_steps=True).init(key, codes)["params"]


init, abstract = parameter_functions(init_boxed)


def partition_specs(config: LMConfig) -> Params:
    """Return the logical axis names of every parameter of the training layout, as a tree of `PartitionSpec`."""
    return nn.get_partition_spec(jax.eval_shape(lambda key: init_boxed(config, key), jax.random.key(0)))


def count_parameters(config: LMConfig) -> int:
    """Return the number of learnt values, without the padding of uneven depth widths."""
    total = sum(leaf.size for leaf in jax.tree.leaves(abstract(config)))
    depth = config.depth
    if depth is not None and depth.hidden_dims is not None:
        stack = depth.transformer
        matrices = 2 if stack.gating == "none" else 3
        missing = sum(stack.hidden_dim - width for width in depth.hidden_dims)
        total -= stack.num_layers * matrices * stack.dim * missing
    return total


def forward(
    config: LMConfig, params: Params, codes_BKT: Int[Array, "B K T"], conditions: Conditions | None = None
) -> LMOutput:
    """Predict every scored or generated row from the codes before it (teacher forcing), aligned with the codes.

    Args:
      config: Of the model.
      params: In either layout of `moshijax.nn.layout`.
      codes_BKT: One row per stream of the layout, not delayed.
      conditions: Per conditioner of the config the value indices `[B]` of a lookup (-1 = absent), or
        `conditioning.Vectors`; those that are missing are absent.

    Raises:
      ConfigError: Codes or conditions that do not fit the model.
    """
    _check_codes(config, codes_BKT)
    return LanguageModel.of(config, params).apply({"params": params}, codes_BKT, conditions)


def score(
    config: LMConfig,
    params: Params,
    codes_BKT: Int[Array, "B K T"],
    conditions: Conditions | None = None,
    *,
    text_only: bool = False,
    separate_documents: bool = False,
    frames: int | None = None,
    depth_frames_BF: Int[Array, "B F"] | None = None,
) -> LMScores:
    """Score every target by what `forward` would predict, aligned with the codes, without whole logits.

    Args:
      config: As in `forward`.
      params: As in `forward`.
      codes_BKT: As in `forward`.
      conditions: As in `forward`.
      text_only: The text row alone, of codes whose audio rows are all `ZERO`: they are not looked at, and the depth
        transformer does not run.
      separate_documents: What begins with BOS sees nothing of what comes before it.
      frames: Logits of so many frames exist at once (they are computed again in the backward pass); None: of all.
      depth_frames_BF: Numbers (0 to T - 1, none twice in a row) of the frames of the temporal transformer that the
        depth transformer runs on, the same count F in each row; None: on all.

    Raises:
      ConfigError: Codes or conditions that do not fit the model.
    """
    _check_codes(config, codes_BKT)
    model = LanguageModel.of(config, params)
    settings = text_only, separate_documents, frames, depth_frames_BF
    return model.apply({"params": params}, codes_BKT, conditions, *settings, method="score")
