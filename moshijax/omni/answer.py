"""A spoken answer as pure steps over one state: the question, the prompt, then token by token text and units.

The order of LLaMA-Omni (arXiv 2409.06666, algorithm 1), with caches in place of its repeated prefixes: the state that
predicts a token also becomes units of speech (`units`), the one that predicts the end of the text included. Every
array of the state has a leading batch axis; rows are independent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from moshijax.omni import adapter, prompt, speech_decoder, text_model, whisper
from moshijax.omni.config import OmniConfig
from moshijax.omni.spectrogram import HOP, log_mel

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

Params = dict[str, Any]
State = dict[str, Any]
#: In what `units` returns: a repetition that is no new unit.
NOTHING = -1


def clip_samples(config: OmniConfig) -> int:
    """Return the samples of a question, at 16 kHz: shorter ones are padded with zeros."""
    return 2 * config.encoder.positions * HOP


def speech_rows(config: OmniConfig) -> int:
    """Return R, the embeddings of a whole question."""
    return config.encoder.positions // config.adapter.stacked


def init_state(config: OmniConfig, batch_size: int) -> State:
    """Return the state before a question.

    `text` and `decoder` are the caches, `speech` the question's embeddings, of which `read` were read; `hidden` is the
    state that predicts the next token, `label` the last class of the alignment.

    Raises:
      ConfigError: a stack of the text model or the decoder has no `context`.
    """
    width, dtype = config.text.stack.dim, jnp.dtype(config.text.stack.dtype)
    return {
        "text": text_model.init_state(config.text, batch_size),
        "decoder": speech_decoder.init_state(config.decoder, batch_size),
        "speech": jnp.zeros((batch_size, speech_rows(config), width), dtype),
        "read": jnp.zeros((batch_size,), jnp.int32),
        "hidden": jnp.zeros((batch_size, width), dtype),
        "label": jnp.full((batch_size,), -1, jnp.int32),
    }


def encode_speech(config: OmniConfig, params: Params, state: State, pcm_BN: Float[Array, "B N"]) -> State:
    """Begin an answer: forget everything that was said, and hear a question.

    Args:
      config: Of the model.
      params: By part, as `moshijax.omni.config.abstract` has them.
      state: As any of these functions returned it.
      pcm_BN: Float32 in [-1, 1] at 16 kHz; cut, or padded with zeros, to `clip_samples`.

    Returns:
      The new state.
    """
    mel = log_mel(pcm_BN, config.encoder.mels, clip_samples(config))
    speech = adapter.adapt(config.adapter, params["adapter"], whisper.encode(config.encoder, params["encoder"], mel))
    rows = jnp.ones((pcm_BN.shape[0],), bool)
    return {
        **state,
        "text": text_model.reset(config.text, state["text"], rows),
        "decoder": speech_decoder.reset(config.decoder, state["decoder"], rows),
        "speech": speech.astype(state["speech"].dtype),
        "read": jnp.zeros_like(state["read"]),
        "label": jnp.full_like(state["label"], -1),
    }


def prefill(
    config: OmniConfig, params: Params, state: State, ids_BT: Int[Array, "B T"], lengths_B: Int[Array, " B"]
) -> tuple[State, Float[Array, "B V"]]:
    """Read a piece of the prompt.

    Args:
      config: Of the model.
      params: As in `encode_speech`.
      state: As the last function returned it.
      ids_BT: Ids of the text model, and `prompt.SPEECH` for every embedding of the question.
      lengths_B: Only the first so many ids of a row count; 1 or more.

    Returns:
      The new state, and the logits of what follows the piece.
    """
    there = jnp.arange(ids_BT.shape[1]) < lengths_B[:, None]
    spoken = (ids_BT == prompt.SPEECH) & there
    place = jnp.clip(state["read"][:, None] + jnp.cumsum(spoken, axis=1) - 1, 0, state["speech"].shape[1] - 1)
    speech = jnp.take_along_axis(state["speech"], place[..., None], axis=1)
    written = text_model.embed(config.text, params["text"], jnp.maximum(ids_BT, 0))
    x = jnp.where(spoken[..., None], speech, written)
    text, hidden = text_model.step(config.text, params["text"], state["text"], x, None, lengths_B)
    last = jnp.take_along_axis(hidden, (lengths_B - 1)[:, None, None], axis=1)[:, 0]
    state = {**state, "text": text, "hidden": last, "read": state["read"] + jnp.sum(spoken, axis=1)}
    return state, text_model.logits(config.text, params["text"], last)


def decode_token(
    config: OmniConfig, params: Params, state: State, token_B: Int[Array, " B"]
) -> tuple[State, Float[Array, "B V"]]:
    """Read the token that was chosen; return the new state, and the logits of the next one."""
    x = text_model.embed(config.text, params["text"], token_B[:, None])
    text, hidden = text_model.step(config.text, params["text"], state["text"], x)
    state = {**state, "text": text, "hidden": hidden[:, 0]}
    return state, text_model.logits(config.text, params["text"], hidden[:, 0])


def decode_units(config: OmniConfig, params: Params, state: State) -> tuple[State, Int[Array, "B L"]]:
    """Turn the state that predicts the next token into units of speech; once per token.

    Returns:
      The new state, and merged units in order, `NOTHING` in between; L is `decoder.upsample`.
    """
    decoder, logits = speech_decoder.step(config.decoder, params["decoder"], state["decoder"], state["hidden"][:, None])
    labels = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    kept, label = speech_decoder.collapse(labels, config.decoder.blank, state["label"])
    return {**state, "decoder": decoder, "label": label}, jnp.where(kept, labels, NOTHING)
