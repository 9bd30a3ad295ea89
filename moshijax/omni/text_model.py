"""Text models of the Llama and Qwen2 kind: what answers, from embeddings of text and speech.

The classes `LlamaForCausalLM` and `Qwen2ForCausalLM` of Transformers. Inputs are embeddings, not ids, so that rows of
speech can stand among them (`moshijax.omni.prompt`). Functions take a config and a plain tree of parameters, in either
layout of `moshijax.nn.layout`; those that stream take the inference layout.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp

from moshijax.annotations import Size
from moshijax.errors import require
from moshijax.nn import lora
from moshijax.nn.functions import parameter_functions, stream_functions
from moshijax.nn.layout import is_stacked
from moshijax.nn.lora import LoRA
from moshijax.nn.norms import Norm
from moshijax.nn.projection import linear, truncated_normal
from moshijax.nn.streaming import Around
from moshijax.nn.transformer import Transformer, TransformerConfig

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

Params = dict[str, Any]


@dataclass(frozen=True)
class TextConfig:
    """A text model.

    Attributes:
      vocab: V, ids of the table and of the head.
      stack: Its layers. `context` is how many positions the cache of a stream holds, and with that memory: the length
        that the model was made for may be far more than a conversation needs.
      tied: The head is the table of the embeddings.
      scan_layers: Training compiles one layer and scans over stacked parameters.
      lora: Low-rank updates of its maps ("stack/attention/*"), those that have no bias; None: none.
    """

    vocab: Size
    stack: TransformerConfig
    tied: bool = False
    scan_layers: bool = True
    lora: LoRA | None = None

    def __post_init__(self) -> None:
        require(self.stack.causal, "stack.causal=False: a text model must be causal")
        require(not self.stack.cross_attention, "stack.cross_attention=True: a text model has no source to attend to")

    def with_dtype(self, dtype: str, param_dtype: str | None = None) -> TextConfig:
        """Return the config with other types of computation and, where it is given, of parameters."""
        stack = replace(self.stack, dtype=dtype, param_dtype=param_dtype or self.stack.param_dtype)
        return replace(self, stack=stack)


class TextModel(Around):
    """Embeddings `[B, T, D]` to what the head reads `[B, T, D]`; a streaming layer (`moshijax.nn.streaming`).

    Attributes:
      config: What the model is.
      scan_layers: Parameters of layers have a leading axis.
    """

    config: TextConfig
    scan_layers: bool = False

    block_size = 1
    output_ratio = Fraction(1)

    @property
    def receptive_field(self) -> int | None:
        """Positions that an output sees; None: all."""
        return self.inner().receptive_field

    @nn.nowrap
    def inner(self) -> Transformer:
        """Return the stack."""
        return Transformer(self.config.stack, scan_layers=self.scan_layers, parent=None)

    def setup(self) -> None:
        c, stack = self.config, self.config.stack
        lora.require_active(c.lora)
        init = nn.with_logical_partitioning(truncated_normal(stack.dim), ("vocab", "embed"))
        shape, dtype = (c.vocab, stack.dim), jnp.dtype(stack.param_dtype)
        self.table = self.param("table", init, shape, dtype)
        self.stack = self.inner()
        self.out_norm = Norm(stack.dim, stack.norm, stack.param_dtype)
        if not c.tied:
            self.head = self.param("head", init, shape, dtype)

    def embed(self, ids_BT: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Look ids up in the table; the result has the compute dtype."""
        return jnp.asarray(self.table)[ids_BT].astype(jnp.dtype(self.config.stack.dtype))

    def logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Return the logits of what `__call__` or `step` returned, in the compute dtype."""
        return linear(hidden, self.table if self.config.tied else self.head, self.config.stack.precision)

    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Run whole sequences; padding on the right changes nothing before it."""
        return self.out_norm(self.stack(x_BTD))

    def step(
        self,
        state: dict[str, Any],
        x_BTD: Float[Array, "B T D"],
        active: Bool[Array, " B"] | None = None,
        lengths: Int[Array, " B"] | None = None,
    ) -> tuple[dict[str, Any], Float[Array, "B T D"]]:
        """Run any number of new positions in one pass: one of an answer, or a whole prompt.

        Args:
          state: As `init_state` or the last step returned it.
          x_BTD: Embeddings.
          active: Rows that are false are frozen.
          lengths: Only the first so many of the T positions count; the outputs of the others mean nothing.

        Returns:
          The new state, and what the head reads.
        """
        state, x = self.stack.step(state, x_BTD, active, None, lengths)
        return state, self.out_norm(x)


def _apply(config: TextConfig, params: Params, *arguments: Any, method: str = "__call__") -> Any:
    model = TextModel(config, is_stacked(params, ("layers",)))
    with lora.updates(config.lora):
        return model.apply({"params": params}, *arguments, method=method)


def init_boxed(config: TextConfig, key: Array) -> Params:
    """Return new parameters in the training layout, each boxed with its logical axis names (for sharding)."""
    x = jnp.zeros((1, 2, config.stack.dim), jnp.dtype(config.stack.dtype))
    with lora.updates(config.lora):
        return TextModel(config, config.scan_layers).init(key, x)["params"]


init, abstract = parameter_functions(init_boxed)
init_state, reset = stream_functions(TextModel)


def embed(config: TextConfig, params: Params, ids_BT: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Return the embeddings of ids, which must be 0 to V - 1."""
    return _apply(config, params, ids_BT, method="embed")


def hidden(config: TextConfig, params: Params, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """Run whole sequences of embeddings: the states after the final norm, which head and speech decoder read."""
    return _apply(config, params, x_BTD)


def logits(config: TextConfig, params: Params, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
    """Return the logits of states after the final norm."""
    return _apply(config, params, hidden, method="logits")


def step(
    config: TextConfig,
    params: Params,
    state: dict[str, Any],
    x_BTD: Float[Array, "B T D"],
    active_B: Bool[Array, " B"] | None = None,
    lengths_B: Int[Array, " B"] | None = None,
) -> tuple[dict[str, Any], Float[Array, "B T D"]]:
    """Run new positions of a stream; see `TextModel.step`.

    Raises:
      ConfigError: the parameters are stacked.
    """
    return _apply(config, params, state, x_BTD, active_B, lengths_B, method="step")
