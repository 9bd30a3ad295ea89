"""Streaming generation: one frame in, one frame out, every row of the batch on its own clock.

Follows `LMGen` of `moshi` (`models/lm.py`) with `support_out_of_sync`. The state is a dict of arrays with leading axis
B: a row can be taken out and put into another slot. In call n of a row (counted from 1 after its start or reset)

- position n - 1 is fed; the first call feeds initial tokens only, whatever is given;
- the text token and the codes sampled for row k have index `n - 1 - delay_k`;
- the frame returned has index `n - 1 - max_delay`; before it exists the row returns `UNGENERATED`.

What a model is conditioned on becomes part of the state once (`set_conditions`): the vector that is added to every
input, and the keys and values of cross-attention. With guidance every row has two halves, with and without its
conditions, and the arrays of the temporal transformer and of the conditions are `[B, 2, ...]`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moshijax.errors import ConfigError
from moshijax.lm import conditioning
from moshijax.lm.conditioning import Conditions, default_length
from moshijax.lm.config import LMConfig
from moshijax.lm.model import LanguageModel, Params
from moshijax.lm.sampling import TOP_K_LIMIT, Sampling, sample
from moshijax.lm.tokens import UNGENERATED, ZERO
from moshijax.nn.attention import advance
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


class Draft(NamedTuple):
    """A step between its text and its audio: the temporal output, the text logits and the token sampled from them."""

    z_ND: Array
    text_logits_BV: Array
    token_B: Array


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: logits move away from those of a second half of the row that lacks the conditions.

    Numbers, or arrays `[B]`. `coefficient` c: `null + c (logits - null)`, 1 is off. `masked_until`: the second half
    sees `ZERO` in the first so many columns, such as those of a voice prefix. `text`: whether the text logits are
    guided; if not, the second half sees no text either (`cfg_coef`, `cfg_is_masked_until` and `cfg_is_no_text` of
    `models/lm.py` of `moshi`).
    """

    coefficient: Any = 1.0
    masked_until: Any = 0
    text: Any = True

    def rows(self, batch_size: int) -> dict[str, Array]:
        """One value per row, as arrays: the part of a generation state."""
        out = {}
        for name, dtype in (("coefficient", np.float32), ("masked_until", np.int32), ("text", np.bool_)):
            value = np.asarray(getattr(self, name), dtype)
            if value.shape not in ((), (batch_size,)):
                raise ConfigError(
                    f"{name} of shape {value.shape}: must be a number or have one value per row, {batch_size}"
                )
            out[name] = jnp.asarray(np.broadcast_to(value, (batch_size,)))
        return out


def _halves(tree: Any) -> Any:
    """Arrays of rows with two halves, `[2 B, ...]` to `[B, 2, ...]`."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, 2, *leaf.shape[1:]), tree)


def _joined(tree: Any) -> Any:
    """The inverse of `_halves`; neither moves anything in memory."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)


def init_generation(
    config: LMConfig,
    params: Params | None,
    batch_size: int,
    sampling: Sampling | None = None,
    *,
    top_k_limit: int = TOP_K_LIMIT,
    conditions: Conditions | None = None,
    guidance: Guidance | None = None,
) -> State:
    """State of `batch_size` rows at their start.

    `params` matters only to a model with conditioners: None leaves its conditions to `set_conditions`.
    `conditions`: as `lm.forward` takes them. `guidance`: None compiles the step without it; the second halves have all
    conditions absent unless `set_conditions` gives them others.

    Raises:
        ConfigError: the model has no attention window, so its cache would have no bound; bad conditions.
    """
    if config.temporal.context is None:
        raise ConfigError("temporal.context is None: generation needs an attention window; set context")
    slots = config.layout.max_delay + 2
    state: State = {
        "tokens": jnp.full((batch_size, config.layout.num_streams, slots), UNGENERATED, jnp.int32),
        "offset": jnp.zeros((batch_size,), jnp.int32),
        "temporal": Transformer(config.temporal).init_state(batch_size * (1 if guidance is None else 2)),
        "sampling": (sampling or Sampling()).rows(batch_size, top_k_limit),
    }
    if guidance is not None:
        state["guidance"] = guidance.rows(batch_size)
        state["temporal"] = _halves(state["temporal"])
    if config.conditioners and params is not None:
        return set_conditions(config, params, state, conditions)
    if config.conditioners:
        lead = (batch_size,) if guidance is None else (batch_size, 2)
        state["conditions"] = _no_conditions(config, lead)
    return state


def _no_conditions(config: LMConfig, lead: tuple[int, ...]) -> dict[str, Any]:
    """Zeros in the place of the conditions."""
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
    """The state with other conditions, in the rows that are true or in all.

    `conditions`: as `lm.forward` takes them; those that are missing are absent. `null`: those of the second halves,
    with guidance.

    Raises:
        ConfigError: conditions that the model does not have, or of the wrong shape.
    """
    batch = state["offset"].shape[0]
    module = LanguageModel.of(config, params)

    def fused(conditions: Conditions | None) -> dict[str, Any]:
        out = module.apply({"params": params}, conditions, batch, method="condition")
        if "cross" in out:
            out["cross"] = module.apply({"params": params}, out["cross"], method="source_caches")
        return out

    given = conditioning.complete(config.conditioners, conditions, batch)
    new = fused(given)
    if "guidance" in state:
        lacking = fused({**conditioning.absent(given), **(null or {})})
        new = jax.tree.map(lambda *halves: jnp.stack(halves, axis=1), new, lacking)
    if rows is not None:
        new = jax.tree.map(
            lambda new, old: jnp.where(rows.reshape(-1, *(1,) * (new.ndim - 1)), new, old), new, state["conditions"]
        )
    return {**state, "conditions": new}


def reset_generation(
    config: LMConfig, state: State, rows: Bool[Array, " B"], sampling: dict[str, Array] | None = None
) -> State:
    """The rows that are true start afresh, with new sampling parameters (`Sampling.rows`) where given.

    Their conditions stay.
    """
    temporal = Transformer(config.temporal)
    if "guidance" in state:
        reset = _halves(temporal.reset(_joined(state["temporal"]), jnp.repeat(rows, 2)))
    else:
        reset = temporal.reset(state["temporal"], rows)
    state = {
        **state,
        "tokens": jnp.where(rows[:, None, None], UNGENERATED, state["tokens"]),
        "offset": jnp.where(rows, 0, state["offset"]),
        "temporal": reset,
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


def sample_text(
    config: LMConfig,
    params: Params,
    state: State,
    given_BK: Int[Array, "B G"] | None,
    active_B: Bool[Array, " B"] | None = None,
    *,
    top_k_limit: int = TOP_K_LIMIT,
) -> tuple[State, Draft]:
    """The first half of a step: take in the given tokens, run the temporal transformer, sample the text token.

    `sample_audio` must follow, with the token to use. Arguments as in `generate_step`.
    """
    B, given = state["offset"].shape[0], len(config.layout.given_rows)
    if given_BK is None:
        given_BK = jnp.zeros((B, 0), jnp.int32)
    if given_BK.shape != (B, given):
        raise ConfigError(f"given tokens of shape {given_BK.shape}: must be [{B}, {given}], one per given row")
    started = state["offset"][:, None] > jnp.asarray(config.layout.delays, jnp.int32)
    state, column = input_column(config, state, given_BK, active_B)
    temporal, conditions, active_N = state["temporal"], state.get("conditions"), active_B
    if "guidance" in state:
        column = jnp.stack([column, _null_column(config, state, column, started)], axis=1).reshape(2 * B, -1)
        temporal, conditions = _joined(temporal), _joined(conditions)
        active_N = None if active_B is None else jnp.repeat(active_B, 2)
    module, variables = LanguageModel.of(config, params), {"params": params}
    temporal, z_ND, logits = module.apply(variables, temporal, column, active_N, conditions, method="temporal_step")
    logits = logits.astype(jnp.float32)
    if "guidance" in state:
        temporal, with_text = _halves(temporal), state["guidance"]["text"][:, None]
        logits = jnp.where(with_text, _guided(state, logits), _halves(logits)[:, 0])
    choice = state["sampling"]
    logits = logits.at[:, config.pad_id].add(choice["pad_bonus"])
    token = sample(
        logits, choice["text_temperature"], choice["text_top_k"], choice["seed"], state["offset"], 0, top_k_limit
    )
    return {**state, "temporal": temporal}, Draft(z_ND, logits, token)


def _null_column(config: LMConfig, state: State, column_BK: Array, started_BK: Array) -> Array:
    """What the second half of a row sees: less of the past, and perhaps no text."""
    masked = (
        state["offset"][:, None]
        <= jnp.asarray(config.layout.delays, jnp.int32) + state["guidance"]["masked_until"][:, None]
    )
    no_text = jnp.arange(column_BK.shape[1]) == 0
    return jnp.where(started_BK & (masked | (no_text & ~state["guidance"]["text"][:, None])), ZERO, column_BK)


def _guided(state: State, logits_NV: Array) -> Array:
    """`null + c (logits - null)`, exactly the logits where c is 1."""
    halves = _halves(logits_NV.astype(jnp.float32))
    return halves[:, 0] + (state["guidance"]["coefficient"][:, None] - 1.0) * (halves[:, 0] - halves[:, 1])


def sample_audio(
    config: LMConfig,
    params: Params,
    state: State,
    draft: Draft,
    text_B: Int[Array, " B"],
    force_BQ: Int[Array, "B Q"] | None = None,
    active_B: Bool[Array, " B"] | None = None,
    *,
    top_k_limit: int = TOP_K_LIMIT,
) -> tuple[State, StepOutput]:
    """The second half of a step: sample the audio rows that follow `text_B`, store the column, advance the rows.

    `force_BQ`: codes that replace those sampled, `UNGENERATED` = free.
    """
    module, variables = LanguageModel.of(config, params), {"params": params}
    choice, position, guided = state["sampling"], state["offset"], "guidance" in state
    token, sampled, past, audio_logits = text_B, [text_B], (), []
    for k in range(len(config.layout.model_rows) - 1):
        token_N = jnp.repeat(token, 2) if guided else token
        past, logits = module.apply(variables, k, past, token_N, draft.z_ND, method="depth_step")
        logits = _guided(state, logits) if guided else logits.astype(jnp.float32)
        audio_logits.append(logits)
        token = sample(logits, choice["temperature"], choice["top_k"], choice["seed"], position, 1 + k, top_k_limit)
        if force_BQ is not None:
            token = jnp.where(force_BQ[:, k] == UNGENERATED, token, force_BQ[:, k])
        sampled.append(token)
    z_BD = _halves(draft.z_ND)[:, 0] if guided else draft.z_ND
    extra = module.apply(variables, z_BD, method="extra") if config.extra_heads else None
    sampled_BK = jnp.stack(sampled, axis=1)
    none = jnp.zeros((text_B.shape[0], 0, config.card), jnp.float32)
    logits_BQV = jnp.stack(audio_logits, axis=1) if audio_logits else none
    state, out = commit(config, state, sampled_BK, active_B)
    return state, StepOutput(out, sampled_BK, draft.text_logits_BV, logits_BQV, extra)


def step(
    config: LMConfig,
    params: Params,
    state: State,
    given_BK: Int[Array, "B G"] | None,
    force_BK: Int[Array, "B M"] | None = None,
    active_B: Bool[Array, " B"] | None = None,
    *,
    top_k_limit: int = TOP_K_LIMIT,
) -> tuple[State, StepOutput]:
    """`generate_step` with everything it computed."""
    state, draft = sample_text(config, params, state, given_BK, active_B, top_k_limit=top_k_limit)
    text_B, force_BQ = draft.token_B, None
    if force_BK is not None:
        expected = (text_B.shape[0], len(config.layout.model_rows))
        if force_BK.shape != expected:
            raise ConfigError(
                f"forced tokens of shape {force_BK.shape}: must be {list(expected)}, text then generated rows"
            )
        text_B, force_BQ = jnp.where(force_BK[:, 0] == UNGENERATED, text_B, force_BK[:, 0]), force_BK[:, 1:]
    return sample_audio(config, params, state, draft, text_B, force_BQ, active_B, top_k_limit=top_k_limit)


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
