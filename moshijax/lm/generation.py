"""Streaming generation: one frame in, one frame out, every row of the batch on its own clock.

Follows `LMGen` of `moshi` (`models/lm.py`) with `support_out_of_sync`. The state is a dict of arrays with leading axis
B: a row can be taken out and put into another slot. In call n of a row (counted from 1 after its start or reset)

- position n - 1 is fed; the first call feeds initial tokens only, whatever is given;
- the text token and the codes sampled for row k have index `n - 1 - delay_k`;
- the frame returned has index `n - 1 - max_delay`; before it exists the row returns `UNGENERATED`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp

from moshijax.errors import ConfigError
from moshijax.lm.config import LMConfig
from moshijax.lm.model import LanguageModel, Params
from moshijax.lm.sampling import TOP_K_LIMIT, Sampling, sample
from moshijax.lm.tokens import UNGENERATED
from moshijax.nn.attention import advance
from moshijax.nn.layout import is_stacked
from moshijax.nn.transformer import Transformer

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Int

State = dict[str, Any]


class StepOutput(NamedTuple):
    """What one step computed: `out_BK` (see `generate_step`), the tokens just sampled or forced, and their logits."""

    out_BK: Array
    sampled_BK: Array
    text_logits_BV: Array
    logits_BQV: Array
    extra_logits: Array | None


def init_generation(
    config: LMConfig,
    params: Params | None,
    batch_size: int,
    sampling: Sampling | None = None,
    *,
    top_k_limit: int = TOP_K_LIMIT,
    conditions: dict[str, Array] | None = None,
) -> State:
    """State of `batch_size` rows at their start. `params` is not looked at: the state is a function of the config.

    `conditions`: value index `[B]` per conditioner, -1 = absent.

    Raises:
        ConfigError: the model has no attention window, so its cache would have no bound.
    """
    del params
    if config.temporal.context is None:
        raise ConfigError("temporal.context is None: generation needs an attention window; set context")
    slots = config.layout.max_delay + 2
    state: State = {
        "tokens": jnp.full((batch_size, config.layout.num_streams, slots), UNGENERATED, jnp.int32),
        "offset": jnp.zeros((batch_size,), jnp.int32),
        "temporal": Transformer(config.temporal).init_state(batch_size),
        "sampling": (sampling or Sampling()).rows(batch_size, top_k_limit),
    }
    if config.conditioners:
        given = conditions or {}
        absent = jnp.full((batch_size,), -1, jnp.int32)
        state["conditions"] = {c.name: jnp.asarray(given.get(c.name, absent), jnp.int32) for c in config.conditioners}
    return state


def reset_generation(
    config: LMConfig, state: State, rows: Bool[Array, " B"], sampling: dict[str, Array] | None = None
) -> State:
    """The rows that are true start afresh, with new sampling parameters (`Sampling.rows`) where given."""
    state = {
        **state,
        "tokens": jnp.where(rows[:, None, None], UNGENERATED, state["tokens"]),
        "offset": jnp.where(rows, 0, state["offset"]),
        "temporal": Transformer(config.temporal).reset(state["temporal"], rows),
    }
    if sampling is not None:

        def replace(new: Array, old: Array) -> Array:
            return jnp.where(rows.reshape(-1, *(1,) * (old.ndim - 1)), new, old)

        state["sampling"] = {name: replace(sampling[name], old) for name, old in state["sampling"].items()}
    return state


def _write(tokens_BKC: Array, slot_BK: Array, values_BK: Array, active_B: Array | None) -> Array:
    """Put one value per row of the grid into its slot."""
    here = jnp.arange(tokens_BKC.shape[2]) == slot_BK[..., None]
    if active_B is not None:
        here = here & active_B[:, None, None]
    return jnp.where(here, values_BK[..., None].astype(tokens_BKC.dtype), tokens_BKC)


def _read(tokens_BKC: Array, slot_BK: Array) -> Array:
    return jnp.take_along_axis(tokens_BKC, slot_BK[..., None], axis=2)[..., 0]


def input_column(
    config: LMConfig, state: State, given_BK: Int[Array, "B G"], active_B: Bool[Array, " B"] | None
) -> tuple[State, Int[Array, "B K"]]:
    """Store the given tokens and read the column that the model sees at this position."""
    layout = config.layout
    tokens, offset = state["tokens"], state["offset"]
    slots = tokens.shape[2]
    delays = jnp.asarray(layout.delays, jnp.int32)
    if layout.given_rows:
        first = layout.given_rows[0]
        slot = (offset[:, None] + delays[first:]) % slots
        tokens = jnp.concatenate([tokens[:, :first], _write(tokens[:, first:], slot, given_BK, active_B)], axis=1)
    column = _read(tokens, jnp.broadcast_to((offset % slots)[:, None], tokens.shape[:2]))
    initial = offset[:, None] <= delays
    if active_B is not None:
        initial = initial | ~active_B[:, None]
    return {**state, "tokens": tokens}, jnp.where(initial, jnp.asarray(config.initial_column, jnp.int32), column)


def commit(
    config: LMConfig, state: State, sampled_BK: Int[Array, "B M"], active_B: Bool[Array, " B"] | None
) -> tuple[State, Int[Array, "B M"]]:
    """Store the sampled text and codes, advance the rows, and read the frame that is now complete."""
    layout = config.layout
    count = len(layout.model_rows)
    offset = advance(state["offset"], 1, active_B)
    tokens = state["tokens"]
    slots = tokens.shape[2]
    slot = jnp.broadcast_to((offset % slots)[:, None], sampled_BK.shape)
    tokens = jnp.concatenate([_write(tokens[:, :count], slot, sampled_BK, active_B), tokens[:, count:]], axis=1)
    delays = jnp.asarray(layout.delays[:count], jnp.int32)
    out = _read(tokens[:, :count], (offset[:, None] - layout.max_delay + delays) % slots)
    ready = offset > layout.max_delay
    if active_B is not None:
        ready = ready & active_B
    return {**state, "tokens": tokens, "offset": offset}, jnp.where(ready[:, None], out, UNGENERATED)


def read_given(config: LMConfig, state: State) -> Int[Array, "B G"]:
    """Tokens of the given rows in the frame that the last step returned (with `max_delay` 0 they are not known yet)."""
    layout = config.layout
    delays = jnp.asarray([layout.delays[row] for row in layout.given_rows], jnp.int32)
    tokens = state["tokens"][:, layout.given_rows[0] :]
    return _read(tokens, (state["offset"][:, None] - layout.max_delay + delays) % tokens.shape[2])


def step(
    config: LMConfig,
    params: Params,
    state: State,
    given_BK: Int[Array, "B G"] | None,
    force_BK: Int[Array, "B M"] | None = None,
    active_B: Bool[Array, " B"] | None = None,
    *,
    top_k_limit: int = TOP_K_LIMIT,
    text_policy: Callable[[Array], Array] | None = None,
) -> tuple[State, StepOutput]:
    """`generate_step` with everything it computed. `text_policy` maps the text tokens `[B]` to those to use."""
    layout = config.layout
    B = state["offset"].shape[0]
    given = len(layout.given_rows)
    if given_BK is None:
        given_BK = jnp.zeros((B, 0), jnp.int32)
    if given_BK.shape != (B, given):
        raise ConfigError(f"given tokens of shape {given_BK.shape}: must be [{B}, {given}], one per given row")
    count = len(layout.model_rows)
    if force_BK is not None and force_BK.shape != (B, count):
        raise ConfigError(f"forced tokens of shape {force_BK.shape}: must be [{B}, {count}], text then generated rows")
    module = LanguageModel(config, stacked=is_stacked(params))
    variables = {"params": params}

    def forced(k: int, token_B: Array) -> Array:
        return token_B if force_BK is None else jnp.where(force_BK[:, k] == UNGENERATED, token_B, force_BK[:, k])

    state, column = input_column(config, state, given_BK, active_B)
    temporal, z_BD, text_logits = module.apply(
        variables, state["temporal"], column, active_B, state.get("conditions"), method="temporal_step"
    )
    choice, position = state["sampling"], state["offset"]
    text_logits = text_logits.astype(jnp.float32)
    text_logits = text_logits.at[:, config.pad_id].add(choice["pad_bonus"])
    token = sample(
        text_logits, choice["text_temperature"], choice["text_top_k"], choice["seed"], position, 0, top_k_limit
    )
    token = forced(0, token if text_policy is None else text_policy(token))
    sampled, past, audio_logits = [token], (), []
    for k in range(count - 1):
        past, logits = module.apply(variables, k, past, token, z_BD, method="depth_step")
        audio_logits.append(logits.astype(jnp.float32))
        token = sample(logits, choice["temperature"], choice["top_k"], choice["seed"], position, 1 + k, top_k_limit)
        token = forced(1 + k, token)
        sampled.append(token)
    extra = module.apply(variables, z_BD, method="extra") if config.extra_heads else None
    sampled_BK = jnp.stack(sampled, axis=1)
    logits_BQV = jnp.stack(audio_logits, axis=1) if audio_logits else jnp.zeros((B, 0, config.card), jnp.float32)
    state, out = commit(config, {**state, "temporal": temporal}, sampled_BK, active_B)
    return state, StepOutput(out, sampled_BK, text_logits, logits_BQV, extra)


def generate_step(
    config: LMConfig,
    params: Params,
    state: State,
    given_BK: Int[Array, "B G"] | None,
    force_BK: Int[Array, "B M"] | None = None,
    active_B: Bool[Array, " B"] | None = None,
    *,
    top_k_limit: int = TOP_K_LIMIT,
) -> tuple[State, Int[Array, "B M"]]:
    """One frame for every row.

    Args:
        params: in the inference layout for speed (`moshijax.nn.layout.unstack_layers`); the training layout works too.
        given_BK: tokens of `layout.given_rows`, the newest frame of each (undelayed); None when there are none.
        force_BK: tokens that replace the ones sampled in this call, text then the generated audio rows;
            `UNGENERATED` leaves a row free. Index `n - 1 - delay_k` in call n.
        active_B: rows that are false keep their state and return `UNGENERATED`.
        top_k_limit: largest top-k this compiled step can serve.

    Returns:
        The state and `out_BK`, tokens of `layout.model_rows` of the frame `max_delay` calls ago; `UNGENERATED` where a
        row is not ready.
    """
    state, output = step(config, params, state, given_BK, force_BK, active_B, top_k_limit=top_k_limit)
    return state, output.out_BK
