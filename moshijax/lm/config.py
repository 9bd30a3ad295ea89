"""Configuration of the language model: everything that decides its parameters and its function."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from moshijax.annotations import Count, Factor, Parts, Size
from moshijax.errors import ConfigError
from moshijax.lm.layouts import StreamLayout
from moshijax.nn.lora import LoRA
from moshijax.nn.norms import NORM_KINDS
from moshijax.nn.transformer import TransformerConfig, require_moshi_form
from moshijax.tokens import EPAD, PAD


@dataclass(frozen=True)
class DepthConfig:
    """The depth transformer, which runs over the generated audio rows inside one frame.

    Attributes:
      transformer: its stack; `context` stays None.
      weights_per_step: every step has attention and feed-forward weights of its own.
      multi_linear: every step has an input projection of its own.
      schedule: `schedule[k]` is the number of the weights that step k uses, where several steps share some; None: k.
      hidden_dims: feed-forward widths per distinct weight where they differ; the largest is `transformer.hidden_dim`.
      low_rank: width of factored token tables; None: not factored.
      output_norm: kind of norm before each head, with parameters per codebook; None: none.
    """

    transformer: TransformerConfig
    weights_per_step: bool = True
    multi_linear: bool = True
    schedule: tuple[Parts, ...] | None = None
    hidden_dims: tuple[Size, ...] | None = None
    low_rank: Size | None = None
    output_norm: str | None = None

    def __post_init__(self) -> None:
        for name in ("schedule", "hidden_dims"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))
        stack = self.transformer
        require_moshi_form(stack, "the depth transformer")
        if stack.context is not None or not stack.causal or stack.cross_attention:
            raise ConfigError(
                f"depth context={stack.context}: the depth transformer sees all its steps; use None, causal, without "
                "cross_attention"
            )
        if stack.cache_dtype != "computed":
            raise ConfigError(
                f"depth cache_dtype={stack.cache_dtype!r}: the few steps of a frame have no ring cache; use 'computed'"
            )
        if stack.attention_implementation not in ("auto", "xla"):
            raise ConfigError(
                f"depth attention_implementation={stack.attention_implementation!r}: the few steps of a frame have no "
                "kernel; use 'auto'"
            )
        if self.weights_per_step and stack.gating == "none":
            raise ConfigError(
                "depth gating='none' with weights_per_step: plain blocks share weights; name an activation"
            )
        if self.schedule is not None and sorted(set(self.schedule)) != list(range(max(self.schedule, default=-1) + 1)):
            raise ConfigError(f"schedule={self.schedule}: must use every weight from 0 to its largest entry")
        if self.hidden_dims is not None and max(self.hidden_dims, default=0) != stack.hidden_dim:
            raise ConfigError(f"hidden_dim={stack.hidden_dim}: must be the largest of hidden_dims={self.hidden_dims}")
        if self.low_rank is not None and self.low_rank < 1:
            raise ConfigError(f"low_rank={self.low_rank}: must be None or positive")
        if self.output_norm is not None and self.output_norm not in NORM_KINDS:
            raise ConfigError(f"output_norm={self.output_norm!r}: must be None or one of {', '.join(NORM_KINDS)}")

    def step_weights(self, dep_q: int) -> tuple[int, ...]:
        """Return the number of the attention and feed-forward weights that each of `dep_q` steps uses."""
        return self._schedule(dep_q) if self.weights_per_step else (0,) * dep_q

    def input_weights(self, dep_q: int) -> tuple[int, ...]:
        """Return the number of the input projection that each of `dep_q` steps uses."""
        return self._schedule(dep_q) if self.multi_linear else (0,) * dep_q

    def _schedule(self, dep_q: int) -> tuple[int, ...]:
        return self.schedule if self.schedule is not None else tuple(range(dep_q))


@dataclass(frozen=True)
class LookupConditioner:
    """A named attribute with a learnt vector per value.

    Attributes:
      name: of the condition.
      bins: number of values.
      dim: width of its table.
      values: the values by name, where they are listed.
      fuse: "sum" adds the vector to every temporal input, "cross" makes it a position of the cross-attention source.
    """

    name: str
    bins: Size
    dim: Size
    values: tuple[str, ...] | None = None
    fuse: str = "sum"

    def __post_init__(self) -> None:
        _check_fuse(self)
        if self.values is not None:
            object.__setattr__(self, "values", tuple(self.values))
            if len(self.values) > self.bins:
                raise ConfigError(f"conditioner {self.name}: {len(self.values)} values do not fit bins={self.bins}")


@dataclass(frozen=True)
class TensorConditioner:
    """A named sequence of vectors that comes from outside, such as the voice of a speaker.

    Attributes:
      name: of the condition.
      dim: width of the vectors.
      length: positions; shorter sequences are filled up with the learnt vector for absent ones. None: any number, which
        a streaming step does not allow.
      fuse: as in `LookupConditioner`; a summed one has one position.
    """

    name: str
    dim: Size
    length: Size | None = None
    fuse: str = "cross"

    def __post_init__(self) -> None:
        _check_fuse(self)
        if self.fuse == "sum" and self.length not in (None, 1):
            raise ConfigError(
                f"conditioner {self.name}: length={self.length} cannot be summed; it must have 1 position"
            )


Conditioner = LookupConditioner | TensorConditioner


def _check_fuse(conditioner: Conditioner) -> None:
    if conditioner.fuse not in ("sum", "cross"):
        raise ConfigError(f"conditioner {conditioner.name}: fuse={conditioner.fuse!r} must be sum or cross")


@dataclass(frozen=True)
class LMConfig:
    """A language model over the grid of `layout`.

    Compute and parameter types are those of `temporal` and `depth.transformer`.

    Attributes:
      layout: rows of the grid and their delays.
      card: codes per audio codebook.
      text_card: text pieces.
      temporal: the temporal transformer.
      depth: the depth transformer; None without generated or scored audio rows.
      text_card_out: size of the text head where it differs from `text_card`.
      demux_text: a text token may hold two pieces (`TokenTables`), what is fed now and a look-ahead; `mux` joins them.
      norm_emb: layer norm on embeddings.
      bias_proj: biases on the heads.
      extra_heads: number of heads beside the text head on the temporal output.
      extra_heads_dim: classes of each of them.
      conditioners: those that are summed, then those for cross-attention, each in its order.
      cross_positions: scale of the sinusoidal positions added to the cross-attention source; None: none are added.
      pad_id: padding piece.
      epad_id: piece at the end of padding, before a word.
      lora: low-rank updates beside the weights of linear maps; None: none.
      scan_layers: training compiles one layer and scans over stacked parameters; off, every layer has its own arrays,
        which is faster for small models on CPU (a scan copies the parameters of each layer out and their gradients
        back).
    """

    layout: StreamLayout
    card: Size
    text_card: Size
    temporal: TransformerConfig
    depth: DepthConfig | None = None
    text_card_out: Size | None = None
    demux_text: bool = False
    norm_emb: bool = False
    bias_proj: bool = False
    extra_heads: Parts = 0
    extra_heads_dim: Size = 6
    conditioners: tuple[LookupConditioner | TensorConditioner, ...] = ()
    cross_positions: Factor | None = None
    pad_id: Count = PAD
    epad_id: Count = EPAD
    lora: LoRA | None = None
    scan_layers: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "conditioners", tuple(self.conditioners))
        for name in ("card", "text_card"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)!r}: must be a positive whole number")
        for name in ("pad_id", "epad_id"):
            if not 0 <= getattr(self, name) < self.text_card:
                raise ConfigError(f"{name}={getattr(self, name)}: must be a text piece, 0 to {self.text_card - 1}")
        if self.demux_text and (self.norm_emb or (self.text_card + 1) * (self.text_card + 2) >= 2**31):
            raise ConfigError(
                f"demux_text with norm_emb={self.norm_emb}, text_card={self.text_card}: pairs of pieces need int32 ids "
                "and plain tables; use norm_emb=False and a text_card below 46339"
            )
        if self.temporal.mlp_bias:
            raise ConfigError("temporal.mlp_bias=True: the temporal transformer has no such biases; use False")
        if not self.temporal.causal:
            raise ConfigError("temporal.causal=False: the language model must be causal")
        crossing = [c.name for c in self.conditioners if c.fuse == "cross"]
        if bool(crossing) != self.temporal.cross_attention:
            raise ConfigError(
                f"temporal.cross_attention={self.temporal.cross_attention} with conditioners {crossing} for it: they "
                "need each other"
            )
        dep_q = self.layout.dep_q
        if (self.depth is None) != (dep_q == 0):
            have = "no depth transformer" if self.depth is None else "a depth transformer"
            raise ConfigError(f"{have} with {dep_q} generated or scored audio rows: they need each other")
        if self.depth is not None:
            schedule = self.depth.schedule
            if schedule is not None and len(schedule) != dep_q:
                raise ConfigError(f"schedule has {len(schedule)} entries: must have one per depth step, {dep_q}")
            distinct = len(set(self.depth.step_weights(dep_q)))
            if self.depth.hidden_dims is not None and len(self.depth.hidden_dims) != distinct:
                raise ConfigError(f"hidden_dims has {len(self.depth.hidden_dims)} entries: must have {distinct}")

    @property
    def text_vocab(self) -> int:
        """Classes of the text head."""
        return self.text_card if self.text_card_out is None else self.text_card_out

    def mux(self, first: Any, second: Any) -> Any:
        """Return the text token that holds `first`, and `second` where it is not -1 (`demux_text`)."""
        return first + (self.text_card + 1) * (second + 1)

    @property
    def initial_column(self) -> tuple[int, ...]:
        """The initial token of every row."""
        return (self.text_card,) + (self.card,) * self.layout.n_q

    def with_dtype(self, dtype: str, param_dtype: str | None = None, precision: str | None = None) -> LMConfig:
        """Return the config with other types of computation, and of parameters and precision where they are given."""

        def convert(stack: TransformerConfig) -> TransformerConfig:
            return dataclasses.replace(
                stack,
                dtype=dtype,
                param_dtype=param_dtype or stack.param_dtype,
                precision=precision or stack.precision,
            )

        depth = self.depth and dataclasses.replace(self.depth, transformer=convert(self.depth.transformer))
        return dataclasses.replace(self, temporal=convert(self.temporal), depth=depth)
