"""Streaming generation: one frame in, one frame out, every row of the batch on its own clock.

Follows `LMGen` of `moshi` (`models/lm.py`) with `support_out_of_sync`. The state is a dict of arrays with leading axis
B: a row can be taken out and put into another slot. How tokens are sampled, and how strongly they are guided, is not
part of it: every step takes it as rows of `Sampling` and `Guidance`. In call n of a row (counted from 1 after its start
or reset)

- position n - 1 is fed; the first call feeds initial tokens only, whatever is given;
- the text token and the codes sampled for row k have index `n - 1 - delay_k`;
- the frame returned has index `n - 1 - max_delay`; before it exists the row returns `UNGENERATED`.

What a model is conditioned on becomes part of the state once (`set_conditions`): the vector that is added to every
input, and the keys and values of cross-attention. With guidance every row has two halves, with and without its
conditions, and the arrays of the temporal transformer and of the conditions are `[B, 2, ...]`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from moshijax.errors import ConfigError
from moshijax.lm import conditioning
from moshijax.lm.conditioning import Conditions, default_length
from moshijax.lm.config import LMConfig
from moshijax.lm.guidance import guide, halves, joined, null_column
from moshijax.lm.model import LanguageModel, Params
from moshijax.lm.sampling import TOP_K_LIMIT, sample
from moshijax.nn.attention import advance, counted, ring_positions
from moshijax.nn.transformer import Transformer
from moshijax.tokens import UNGENERATED

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Int

State = dict[str, Any]


class StepOutput(NamedTuple):
    """What one step computed.

    Attributes:
      out_BK: see `generate_step`.
      text_logits_BV: of the text token just sampled or forced, float32.
      logits_BQV: of the codes just sampled or forced, float32.
      extra_logits: of the extra heads `[B, H, V]`; None without them.
    """

    out_BK: Array
    text_logits_BV: Array
    logits_BQV: Array
    extra_logits: Array | None


class TextHalf(NamedTuple):
    """A step between its text and its audio.

    Attributes:
      z_ND: temporal output of every row, or of both halves of it with guidance (N = 2 B).
      text_logits_BV: float32, guided where there is guidance.
      token_B: the text token sampled from them.
    """

    z_ND: Array
    text_logits_BV: Array
    token_B: Array


def init_generation(
    config: LMConfig,
    params: Params | None,
    batch_size: int,
    *,
    conditions: Conditions | None = None,
    guided: bool = False,
) -> State:
    """Return the state of `batch_size` rows at their start.

    Args:
      config: of the model.
      params: only a model with conditioners needs them; None leaves its conditions to `set_conditions`.
      batch_size: B.
      conditions: as `lm.forward` takes them.
      guided: rows have two halves, and every step takes `guidance`. The second halves have all conditions absent unless
        `set_conditions` gives them others.

    Raises:
      ConfigError: the model has no attention window, so its cache would have no bound; or the conditions are bad.
    """
    if config.temporal.context is None:
        raise ConfigError("temporal.context is None: generation needs an attention window; set context")
    slots = config.layout.max_delay + 2
    temporal = Transformer(config.temporal).init_state(2 * batch_size if guided else batch_size)
    state: State = {
        "tokens": jnp.full((batch_size, config.layout.num_streams, slots), UNGENERATED, jnp.int32),
        "offset": jnp.zeros((batch_size,), jnp.int32),
        "temporal": halves(temporal) if guided else temporal,
    }
    if config.conditioners and params is not None:
        return set_conditions(config, params, state, conditions)
    if config.conditioners:
        state["conditions"] = _no_conditions(config, (batch_size, 2) if guided else (batch_size,))
    return state


def is_guided(state: State) -> bool:
    """Return whether the rows of a state have two halves."""
    return state["temporal"]["offset"].ndim == 2


def _no_conditions(config: LMConfig, lead: tuple[int, ...]) -> dict[str, Any]:
    """Return zeros of the shapes that conditions have."""
    stack = config.temporal
    out: dict[str, Any] = {}
    if any(c.fuse == "sum" for c in config.conditioners):
        out["sum"] = jnp.zeros((*lead, stack.dim), stack.dtype)
    if stack.cross_attention:
        positions = sum(default_length(c) for c in config.conditioners if c.fuse == "cross")
        shape = (*lead, stack.num_heads, positions, stack.dim // stack.num_heads)
        out["cross"] = tuple({part: jnp.zeros(shape, stack.dtype) for part in "kv"} for _ in range(stack.num_layers))
    return out


def set_conditions(
    config: LMConfig,
    params: Params,
    state: State,
    conditions: Conditions | None = None,
    null: Conditions | None = None,
    rows: Bool[Array, " B"] | None = None,
) -> State:
    """Return the state with other conditions.

    Args:
      config: of the model.
      params: its parameters.
      state: of a generation.
      conditions: as `lm.forward` takes them; those that are missing are absent.
      null: those of the second halves, with guidance; those that are missing are absent.
      rows: rows to change; None changes all.

    Raises:
      ConfigError: the model does not have one of the conditions, or its shape is wrong.
    """
    batch = state["offset"].shape[0]
    module, variables = LanguageModel.streaming(config, params)

    def fused(conditions: Conditions | None) -> dict[str, Any]:
        out = module.apply(variables, conditions, batch, method="condition")
        if "cross" in out:
            out["cross"] = module.apply(variables, out["cross"], method="source_caches")
        return out

    given = conditioning.complete(config.conditioners, conditions, batch)
    new = fused(given)
    if is_guided(state):
        lacking = fused({**conditioning.absent(given), **(null or {})})
        new = jax.tree.map(lambda *halves: jnp.stack(halves, axis=1), new, lacking)
    if rows is not None:
        new = jax.tree.map(
            lambda new, old: jnp.where(rows.reshape(-1, *(1,) * (new.ndim - 1)), new, old), new, state["conditions"]
        )
    return {**state, "conditions": new}


def reset_generation(config: LMConfig, state: State, rows: Bool[Array, " B"]) -> State:
    """Return the state with the rows that are true at their start again; their conditions stay."""
    temporal = Transformer(config.temporal)
    if is_guided(state):
        reset = halves(temporal.reset(joined(state["temporal"]), jnp.repeat(rows, 2)))
    else:
        reset = temporal.reset(state["temporal"], rows)
    return {
        **state,
        "tokens": jnp.where(rows[:, None, None], UNGENERATED, state["tokens"]),
        "offset": jnp.where(rows, 0, state["offset"]),
        "temporal": reset,
    }


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
    offset = advance(state["offset"], 1, counted(1, active_B))
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
    """Read the tokens of the given rows in the frame that the last step returned.

    With a `max_delay` of 0 they are not known yet.
    """
    layout = config.layout
    delays = jnp.asarray([layout.delays[row] for row in layout.given_rows], jnp.int32)
    tokens = state["tokens"][:, layout.given_rows[0] :]
    return _read(tokens, (state["offset"][:, None] - layout.max_delay + delays) % tokens.shape[2])


def _check_guidance(state: State, guidance: dict[str, Array] | None) -> None:
    if is_guided(state) != (guidance is not None):
        raise ConfigError("guidance goes with a state of two halves, and only with one: init_generation(guided=True)")


def sample_text(
    config: LMConfig,
    params: Params,
    state: State,
    given_BK: Int[Array, "B G"] | None,
    sampling: dict[str, Array],
    guidance: dict[str, Array] | None = None,
    active_B: Bool[Array, " B"] | None = None,
    *,
    top_k_limit: int = TOP_K_LIMIT,
) -> tuple[State, TextHalf]:
    """Run the first half of a step: take in the given tokens, run the temporal transformer, sample the text token.

    `sample_audio` must follow, with the token to use. Arguments as in `generate_step`.

    Raises:
      ConfigError: tokens have the wrong shape, or guidance does not fit the state.
    """
    B, given = state["offset"].shape[0], len(config.layout.given_rows)
    if given_BK is None:
        given_BK = jnp.zeros((B, 0), jnp.int32)
    if given_BK.shape != (B, given):
        raise ConfigError(f"given tokens of shape {given_BK.shape}: must be [{B}, {given}], one per given row")
    _check_guidance(state, guidance)
    offset, delays = state["offset"][:, None], jnp.asarray(config.layout.delays, jnp.int32)
    state, column = input_column(config, state, given_BK, active_B)
    temporal, conditions, active_N = state["temporal"], state.get("conditions"), active_B
    if guidance is not None:
        null = null_column(guidance, column, offset - delays, offset > delays)
        column = jnp.stack([column, null], axis=1).reshape(2 * B, -1)
        temporal, conditions = joined(temporal), joined(conditions)
        active_N = None if active_B is None else jnp.repeat(active_B, 2)
    module, variables = LanguageModel.streaming(config, params)
    temporal, z_ND, logits = module.apply(variables, temporal, column, active_N, conditions, method="temporal_step")
    logits = logits.astype(jnp.float32)
    if guidance is not None:
        temporal = halves(temporal)
        logits = jnp.where(guidance["text"][:, None], guide(guidance, logits), halves(logits)[:, 0])
    logits = logits.at[:, config.pad_id].add(sampling["pad_bonus"])
    temperature, top_k = sampling["text_temperature"], sampling["text_top_k"]
    token = sample(logits, temperature, top_k, sampling["seed"], state["offset"], 0, top_k_limit)
    return {**state, "temporal": temporal}, TextHalf(z_ND, logits, token)


def sample_audio(
    config: LMConfig,
    params: Params,
    state: State,
    text_half: TextHalf,
    text_B: Int[Array, " B"],
    sampling: dict[str, Array],
    guidance: dict[str, Array] | None = None,
    force_BQ: Int[Array, "B Q"] | None = None,
    active_B: Bool[Array, " B"] | None = None,
    *,
    top_k_limit: int = TOP_K_LIMIT,
) -> tuple[State, StepOutput]:
    """Run the second half of a step: sample the audio rows that follow `text_B`, store the column, advance the rows.

    Args:
      config: of the model.
      params: its parameters, as in `generate_step`.
      state: after `sample_text`.
      text_half: what `sample_text` returned.
      text_B: the text token to use.
      sampling: as in `generate_step`.
      guidance: as in `generate_step`.
      force_BQ: codes that replace those sampled; `UNGENERATED` leaves a row free.
      active_B: as in `generate_step`.
      top_k_limit: as in `generate_step`.
    """
    module, variables = LanguageModel.streaming(config, params)
    token, sampled, past, audio_logits = text_B, [text_B], (), []
    temperature, top_k, seed = sampling["temperature"], sampling["top_k"], sampling["seed"]
    steps = range(len(config.layout.model_rows) - 1)
    inputs_KNE = module.apply(variables, text_half.z_ND, method="depth_inputs") if steps else None
    for k in steps:
        token_N = token if guidance is None else jnp.repeat(token, 2)
        past, logits = module.apply(variables, k, past, token_N, inputs_KNE[k], method="depth_step")
        logits = logits.astype(jnp.float32) if guidance is None else guide(guidance, logits)
        audio_logits.append(logits)
        token = sample(logits, temperature, top_k, seed, state["offset"], 1 + k, top_k_limit)
        if force_BQ is not None:
            token = jnp.where(force_BQ[:, k] == UNGENERATED, token, force_BQ[:, k])
        sampled.append(token)
    z_BD = text_half.z_ND if guidance is None else halves(text_half.z_ND)[:, 0]
    extra = module.apply(variables, z_BD, method="extra") if config.extra_heads else None
    none = jnp.zeros((text_B.shape[0], 0, config.card), jnp.float32)
    logits_BQV = jnp.stack(audio_logits, axis=1) if audio_logits else none
    state, out = commit(config, state, jnp.stack(sampled, axis=1), active_B)
    return state, StepOutput(out, text_half.text_logits_BV, logits_BQV, extra)


def prefill(
    config: LMConfig,
    params: Params,
    state: State,
    columns_BKT: Int[Array, "B K T"],
    lengths_B: Int[Array, " B"] | None = None,
    guidance: dict[str, Array] | None = None,
) -> State:
    """Run T steps whose tokens are all known, in one pass of the temporal transformer and without sampling.

    The state is that of T calls of `generate_step`, call t with `force_BK = columns[:, model_rows, t]` and
    `given_BK = columns[:, given_rows, t]`: tokens and offsets are equal, caches to rounding. Prompts may be cut into
    chunks anywhere, and steps and chunks may alternate.

    Args:
      config: of the model.
      params: its parameters, as in `generate_step`.
      state: of the rows.
      columns_BKT: what T steps take in, so a prompt has to be delayed first: for call n of a row (counted from 1 after
        its start) column n - 1 of the delayed prompt, whose text and codes have index `n - 1 - delay_k` and whose given
        tokens have index n - 2. Every token must be set, `ZERO` for none; where the index is negative any token will
        do, because the model sees initial tokens there.
      lengths_B: how many of the columns count, 0 to T, so that a program of fixed T serves remainders;
        None: all. A row of length 0 is frozen.
      guidance: as in `generate_step`.

    Raises:
      ConfigError: the columns have the wrong shape, or guidance does not fit the state.
    """
    layout, tokens, offset_B = config.layout, state["tokens"], state["offset"]
    B, K, slots = tokens.shape
    T = columns_BKT.shape[-1]
    if columns_BKT.shape != (B, K, T) or not T:
        raise ConfigError(f"prompt columns of shape {columns_BKT.shape}: must be [{B}, {K}, T] with T of 1 or more")
    _check_guidance(state, guidance)
    # A model token is seen in the position after its step, a given one `delay` positions after its step.
    ahead = [1 if stream.generated else stream.delay for stream in layout.streams]
    position_BT = offset_B[:, None] + jnp.arange(T)
    rows = []
    for k, delay in enumerate(layout.delays):
        stored_BA = jnp.take_along_axis(tokens[:, k], (offset_B[:, None] + jnp.arange(ahead[k])) % slots, axis=1)
        row_BT = jnp.concatenate([stored_BA, columns_BKT[:, k]], axis=1)[:, :T]
        rows.append(jnp.where(position_BT <= delay, config.initial_column[k], row_BT))
    inputs_BKT = jnp.stack(rows, axis=1)
    temporal, conditions, lengths_N = state["temporal"], state.get("conditions"), lengths_B
    if guidance is not None:
        index_BKT = position_BT[:, None] - jnp.asarray(layout.delays, jnp.int32)[:, None]
        nulls = jax.vmap(null_column, in_axes=(None, 2, 2, 2), out_axes=2)
        null_BKT = nulls(guidance, inputs_BKT, index_BKT, index_BKT > 0)
        inputs_BKT = jnp.stack([inputs_BKT, null_BKT], axis=1).reshape(2 * B, K, T)
        temporal, conditions = joined(temporal), joined(conditions)
        lengths_N = None if lengths_B is None else jnp.repeat(lengths_B, 2)
    module, variables = LanguageModel.streaming(config, params)
    temporal, _ = module.apply(variables, temporal, inputs_BKT, None, conditions, lengths_N, method="temporal_steps")
    # Slot s keeps the last token written to it, if that was one of these columns.
    first_BK = offset_B[:, None] + jnp.asarray(ahead, jnp.int32)
    offset_B = advance(offset_B, T, lengths_B)
    end_BK = offset_B[:, None] + jnp.asarray(ahead, jnp.int32)
    column_BKS = ring_positions(end_BK.reshape(-1), slots).reshape(B, K, slots) - first_BK[..., None]
    new = jnp.take_along_axis(columns_BKT, jnp.clip(column_BKS, 0, T - 1), axis=2)
    return {
        **state,
        "tokens": jnp.where(column_BKS >= 0, new.astype(tokens.dtype), tokens),
        "offset": offset_B,
        "temporal": temporal if guidance is None else halves(temporal),
    }


def step(
    config: LMConfig,
    params: Params,
    state: State,
    given_BK: Int[Array, "B G"] | None,
    sampling: dict[str, Array],
    guidance: dict[str, Array] | None = None,
    force_BK: Int[Array, "B M"] | None = None,
    active_B: Bool[Array, " B"] | None = None,
    *,
    top_k_limit: int = TOP_K_LIMIT,
) -> tuple[State, StepOutput]:
    """Run `generate_step` and return everything it computed.

    Raises:
      ConfigError: tokens have the wrong shape, or guidance does not fit the state.
    """
    state, text_half = sample_text(
        config, params, state, given_BK, sampling, guidance, active_B, top_k_limit=top_k_limit
    )
    text_B, force_BQ = text_half.token_B, None
    if force_BK is not None:
        expected = (text_B.shape[0], len(config.layout.model_rows))
        if force_BK.shape != expected:
            raise ConfigError(
                f"forced tokens of shape {force_BK.shape}: must be {list(expected)}, text then generated rows"
            )
        text_B, force_BQ = jnp.where(force_BK[:, 0] == UNGENERATED, text_B, force_BK[:, 0]), force_BK[:, 1:]
    return sample_audio(
        config, params, state, text_half, text_B, sampling, guidance, force_BQ, active_B, top_k_limit=top_k_limit
    )


def generate_step(
    config: LMConfig,
    params: Params,
    state: State,
    given_BK: Int[Array, "B G"] | None,
    sampling: dict[str, Array],
    guidance: dict[str, Array] | None = None,
    force_BK: Int[Array, "B M"] | None = None,
    active_B: Bool[Array, " B"] | None = None,
    *,
    top_k_limit: int = TOP_K_LIMIT,
) -> tuple[State, Int[Array, "B M"]]:
    """Generate one frame of every row.

    Args:
      config: of the model.
      params: in the inference layout for speed (`moshijax.nn.layout.unstack_layers`); the training layout works too.
      state: as `init_generation` returns it.
      given_BK: tokens of `layout.given_rows`, the newest frame of each (undelayed); None when there are none.
      sampling: parameters of every row, as `Sampling.rows` returns them.
      guidance: parameters of every row, as `Guidance.rows` returns them, where the state has two halves; else None.
      force_BK: tokens that replace the ones sampled in this call, text then the generated audio rows;
        `UNGENERATED` leaves a row free. Index `n - 1 - delay_k` in call n.
      active_B: rows that are false keep their state and return `UNGENERATED`.
      top_k_limit: largest top-k this compiled step can serve.

    Returns:
      The state and `out_BK`, tokens of `layout.model_rows` of the frame `max_delay` calls ago; `UNGENERATED` where a
      row is not ready.

    Raises:
      ConfigError: tokens have the wrong shape, or guidance does not fit the state.
    """
    state, output = step(
        config, params, state, given_BK, sampling, guidance, force_BK, active_B, top_k_limit=top_k_limit
    )
    return state, output.out_BK
