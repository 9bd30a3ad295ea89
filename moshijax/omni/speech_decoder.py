"""The streaming speech decoder: states of the text model to an alignment of units (arXiv 2409.06666, 2.4).

Every state is repeated, a causal stack runs over the repetitions, and each of them is a unit or the blank of CTC.
As the stack is causal, the alignment of what has been said never changes, and neither does what it collapses to.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp

from moshijax.annotations import Size
from moshijax.errors import require
from moshijax.nn.functions import parameter_functions, stream_functions
from moshijax.nn.layout import is_stacked
from moshijax.nn.projection import Linear
from moshijax.nn.streaming import Around
from moshijax.nn.transformer import Transformer, TransformerConfig

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

Params = dict[str, Any]


@dataclass(frozen=True)
class SpeechDecoderConfig:
    """A speech decoder.

    Attributes:
      input_dim: E, width of the states of the text model.
      units: U, classes of speech; the class behind them, U, is the blank.
      stack: The layers. `context` is how many repetitions the cache of a stream holds.
      upsample: Repetitions of every state.
      scan_layers: Training compiles one layer and scans over stacked parameters.
    """

    input_dim: Size
    units: Size
    stack: TransformerConfig
    upsample: Size = 25
    scan_layers: bool = False

    def __post_init__(self) -> None:
        require(self.stack.causal, "stack.causal=False: the speech decoder must be causal")
        require(not self.stack.cross_attention, "stack.cross_attention=True: the speech decoder has no source")

    @property
    def blank(self) -> int:
        """The class of no unit."""
        return self.units

    def with_dtype(self, dtype: str, param_dtype: str | None = None) -> SpeechDecoderConfig:
        """Return the config with other types of computation and, where it is given, of parameters."""
        stack = replace(self.stack, dtype=dtype, param_dtype=param_dtype or self.stack.param_dtype)
        return replace(self, stack=stack)


class SpeechDecoder(Around):
    """States `[B, T, E]` to logits `[B, upsample T, U + 1]`; a streaming layer (`moshijax.nn.streaming`).

    The stack has no norm behind it.

    Attributes:
      config: What the decoder is.
      scan_layers: Parameters of layers have a leading axis.
    """

    config: SpeechDecoderConfig
    scan_layers: bool = False

    block_size = 1

    @property
    def output_ratio(self) -> Fraction:
        """Repetitions of every state."""
        return Fraction(self.config.upsample)

    @property
    def receptive_field(self) -> int | None:
        """States that the logits of one see; None: all."""
        field = self.inner().receptive_field
        return None if field is None else -(-field // self.config.upsample)

    @nn.nowrap
    def inner(self) -> Transformer:
        """Return the stack, to which the repetitions of a state are one block."""
        return Transformer(self.config.stack, block=self.config.upsample, scan_layers=self.scan_layers, parent=None)

    def setup(self) -> None:
        c = self.config
        types = dict(dtype=c.stack.dtype, param_dtype=c.stack.param_dtype, precision=c.stack.precision, use_bias=True)
        self.input_proj = Linear(c.input_dim, c.stack.dim, ("embed", None), **types)
        self.stack = self.inner()
        self.output_proj = Linear(c.stack.dim, c.units + 1, ("entries", "embed"), **types)

    def _repeated(self, states: Array) -> Array:
        """Project, then repeat: the projection is the same for all repetitions."""
        return jnp.repeat(self.input_proj(states), self.config.upsample, axis=1)

    def __call__(
        self, states: Float[Array, "B T E"], source_BL: Int[Array, "B L"] | None = None
    ) -> Float[Array, "B L U+1"]:
        """Run whole sequences; padding on the right changes nothing before it.

        Args:
          states: Of the text model.
          source_BL: The number of the state of every position; None: each is repeated as often as the others.
        """
        if source_BL is None:
            return self.output_proj(self.stack(self._repeated(states)))
        return self.output_proj(self.stack(jnp.take_along_axis(self.input_proj(states), source_BL[..., None], axis=1)))

    def step(
        self, state: dict[str, Any], states: Float[Array, "B T E"], active: Bool[Array, " B"] | None = None
    ) -> tuple[dict[str, Any], Float[Array, "B L U+1"]]:
        """Run any number of new states of the text model; see `Transformer.step`."""
        state, x = self.stack.step(state, self._repeated(states), active)
        return state, self.output_proj(x)


def _decoder(config: SpeechDecoderConfig, params: Params) -> SpeechDecoder:
    return SpeechDecoder(config, is_stacked(params, ("layers",)))


def init_boxed(config: SpeechDecoderConfig, key: Array) -> Params:
    """Return new parameters in the training layout, each boxed with its logical axis names (for sharding)."""
    states = jnp.zeros((1, 1, config.input_dim), jnp.float32)
    return SpeechDecoder(config, config.scan_layers).init(key, states)["params"]


init, abstract = parameter_functions(init_boxed)
init_state, reset = stream_functions(SpeechDecoder)


def logits(
    config: SpeechDecoderConfig,
    params: Params,
    states: Float[Array, "B T E"],
    source_BL: Int[Array, "B L"] | None = None,
) -> Float[Array, "B L U+1"]:
    """Return the logits of all repetitions of whole sequences of states; see `SpeechDecoder.__call__`."""
    return _decoder(config, params).apply({"params": params}, states, source_BL)


def step(
    config: SpeechDecoderConfig,
    params: Params,
    state: dict[str, Any],
    states: Float[Array, "B T E"],
    active_B: Bool[Array, " B"] | None = None,
) -> tuple[dict[str, Any], Float[Array, "B L U+1"]]:
    """Run new states of a stream.

    Args:
      config: Of the decoder.
      params: In the inference layout.
      state: As `init_state` or the last step returned it.
      states: After the final norm of the text model.
      active_B: Rows that are false are frozen.

    Returns:
      The new state, and the logits of the new repetitions.
    """
    return _decoder(config, params).apply({"params": params}, state, states, active_B, method="step")


def collapse(
    labels_BL: Int[Array, "B L"], blank: int | None = None, last_B: Int[Array, " B"] | None = None
) -> tuple[Bool[Array, "B L"], Int[Array, " B"]]:
    """Find the labels that remain when equal neighbours are merged and blanks are dropped, in that order.

    Args:
      labels_BL: A new piece of an alignment, or of units that were not merged yet.
      blank: The class of no unit; None: there is none.
      last_B: The last label of the piece before, -1 at first; None: there was none.

    Returns:
      Where a label remains, and the last label of each row, for the next piece.
    """
    before = jnp.full_like(labels_BL[:, 0], -1) if last_B is None else last_B
    shifted = jnp.concatenate([before[:, None], labels_BL[:, :-1]], axis=1)
    keep = labels_BL != shifted
    return (keep if blank is None else keep & (labels_BL != blank)), labels_BL[:, -1]
