"""What is computed in training: the likelihood of an answer's text, and that of its units by CTC.

LLaMA-Omni (arXiv 2409.06666, 2.4 and 2.5; `model/speech_generator/speech_generator.py` of its code). A batch has

- `mel [B, 2 P, M]`, log-mel frames of the question;
- `ids [B, T]` int32, the whole sequence of the text model: the prompt with `SPEECH` in every row that the speech takes,
  the answer with the id that ends it, and `NONE` behind it;
- `answer [B, A]` int32, the positions of the ids of the answer, `NONE` behind them;
- `units [B, U]` int32, merged units of the spoken answer, `NONE` behind them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from moshijax.omni import adapter, speech_decoder, text_model, whisper
from moshijax.omni.config import OmniConfig
from moshijax.omni.prompt import SPEECH
from moshijax.omni.speech_decoder import SpeechDecoderConfig

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

#: Stands where there is no id and no unit.
NONE = -1
#: Which states of the text model are spoken: those that predict the ids of the answer, as at inference, or those of
#: reading them, as the published training code has it.
States = Literal["predicting", "reading"]


def embed(
    config: OmniConfig, params: Mapping[str, Any], ids_BT: Int[Array, "B T"], mel: Float[Array, "B 2P M"]
) -> Float[Array, "B T D"]:
    """Return the embeddings of sequences with the speech in the rows that it takes, from its first embedding on.

    Args:
      config: Of the model.
      params: Its parameters, by part.
      ids_BT: As in a batch.
      mel: As in a batch.
    """
    with jax.named_scope("encoder"):
        features = whisper.encode(config.encoder, params["encoder"], mel)
    with jax.named_scope("adapter"):
        speech_BRD = adapter.adapt(config.adapter, params["adapter"], features)
    with jax.named_scope("text"):
        x = text_model.embed(config.text, params["text"], jnp.maximum(ids_BT, 0))
    is_speech = ids_BT == SPEECH
    row = jnp.clip(jnp.cumsum(is_speech, axis=1) - 1, 0, speech_BRD.shape[1] - 1)
    placed = jnp.take_along_axis(speech_BRD.astype(x.dtype), row[..., None], axis=1)
    return jnp.where(is_speech[..., None], placed, x)


class Answers(NamedTuple):
    """What the text model makes of the answers of a batch, A ids at most.

    Attributes:
      ids_BA: The ids, `NONE` behind them.
      predicting_BAD: States that predict them.
      reading_BAD: States of reading them.
    """

    ids_BA: Int[Array, "B A"]
    predicting_BAD: Float[Array, "B A D"]
    reading_BAD: Float[Array, "B A D"]

    def spoken(self, states: States) -> Float[Array, "B A D"]:
        """Return the states that the speech decoder is given."""
        return self.predicting_BAD if states == "predicting" else self.reading_BAD


def read(config: OmniConfig, params: Mapping[str, Any], batch: Mapping[str, Array]) -> Answers:
    """Let the text model hear the questions and read the answers.

    Args:
      config: Of the model.
      params: Its parameters, by part.
      batch: See the head of this module.
    """
    ids_BT, answer_BA = batch["ids"], batch["answer"]
    x = embed(config, params, ids_BT, batch["mel"])
    with jax.named_scope("text"):
        hidden = text_model.hidden(config.text, params["text"], x)
    where = jnp.maximum(answer_BA, 1)

    def states(where: Int[Array, "B A"]) -> Float[Array, "B A D"]:
        return jnp.take_along_axis(hidden, where[..., None], axis=1)

    ids_BA = jnp.where(answer_BA == NONE, NONE, jnp.take_along_axis(ids_BT, where, axis=1))
    return Answers(ids_BA, states(where - 1), states(where))


class TextScores(NamedTuple):
    """How likely the ids of the answers are.

    Attributes:
      nll_BA: Negative log likelihood in nats, float32; 0 where there is no id.
      correct_BA: Whether the most likely id is the right one.
      mask_BA: Where there is an id.
    """

    nll_BA: Float[Array, "B A"]
    correct_BA: Bool[Array, "B A"]
    mask_BA: Bool[Array, "B A"]


def score_text(config: OmniConfig, params: Mapping[str, Any], answers: Answers) -> TextScores:
    """Score the ids of the answers; logits are computed for these positions alone."""
    with jax.named_scope("text"):
        logits = text_model.logits(config.text, params["text"], answers.predicting_BAD).astype(jnp.float32)
    mask, targets = answers.ids_BA != NONE, jnp.maximum(answers.ids_BA, 0)
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return TextScores(jnp.where(mask, nll, 0.0), mask & (logits.argmax(-1) == targets), mask)


class SpeechScores(NamedTuple):
    """How likely the units of the answers are.

    Attributes:
      nll_B: Negative log likelihood of all units of an answer in nats, float32.
      blank_B: Positions of the alignment whose most likely class is the blank.
      positions_B: Positions of the alignment.
    """

    nll_B: Float[Array, " B"]
    blank_B: Int[Array, " B"]
    positions_B: Int[Array, " B"]


def score_speech(
    config: SpeechDecoderConfig,
    params: Mapping[str, Any],
    states_BAD: Float[Array, "B A D"],
    ids_BA: Int[Array, "B A"],
    units_BU: Int[Array, "B U"],
) -> SpeechScores:
    """Score the units of the answers, given the states that are spoken.

    Args:
      config: Of the speech decoder.
      params: Its parameters.
      states_BAD: Of the text model, one per id.
      ids_BA: `NONE` where there is no state.
      units_BU: `NONE` behind them.
    """
    ids, units = (ids_BA != NONE).sum(1), (units_BU != NONE).sum(1)
    source_BL, positions_B = stretched(ids, units, config.upsample, ids_BA.shape[1], units_BU.shape[1])
    with jax.named_scope("decoder"):
        logits = speech_decoder.logits(config, params, states_BAD, source_BL)
        nll = ctc(logits, positions_B, units_BU, config.blank)
    live = jnp.arange(logits.shape[1]) < positions_B[:, None]
    blank = (live & (logits.argmax(-1) == config.blank)).sum(1)
    return SpeechScores(nll, blank, positions_B)


def stretched(
    ids_B: Int[Array, " B"], units_B: Int[Array, " B"], upsample: int, most_ids: int, most_units: int
) -> tuple[Int[Array, "B L"], Int[Array, " B"]]:
    """Spread states over an alignment that is long enough for all units, as the published code does.

    An alignment has `upsample` positions per state, or as many as there are units where these are more; the ratio and
    the division are computed in float32.

    Args:
      ids_B: States of every row.
      units_B: Units of every row.
      upsample: Positions per state.
      most_ids: A, most states of a row.
      most_units: U, most units of a row.

    Returns:
      The number of the state of every position, and how many positions count; L is the larger of `upsample` A and U.
    """
    lengths = jnp.maximum(upsample * ids_B, units_B)
    ratio = lengths.astype(jnp.float32) / jnp.maximum(ids_B, 1).astype(jnp.float32)
    position = jnp.arange(max(upsample * most_ids, most_units), dtype=jnp.float32)
    source = jnp.floor(position / jnp.maximum(ratio, 1.0)[:, None]).astype(jnp.int32)
    return jnp.minimum(source, jnp.maximum(ids_B - 1, 0)[:, None]), lengths


def ctc(
    logits: Float[Array, "B L C"], positions_B: Int[Array, " B"], units_BU: Int[Array, "B U"], blank: int
) -> Float[Array, " B"]:
    """Return the negative log likelihood of units over all alignments that collapse to them, in nats, float32.

    As `ctc_loss` of PyTorch with `zero_infinity`: rows whose alignment has no room for their units give 0.

    Args:
      logits: Of every position.
      positions_B: How many of them count.
      units_BU: `NONE` behind them.
      blank: The class of no unit.
    """
    none = units_BU == NONE
    behind = jnp.arange(logits.shape[1]) >= positions_B[:, None]
    found = optax.ctc_loss(
        *(logits.astype(jnp.float32), behind.astype(jnp.float32)),
        *(jnp.maximum(units_BU, 0), none.astype(jnp.float32)),
        blank_id=blank,
    )
    # Between two equal units an alignment needs a blank.
    twice = ((units_BU[:, 1:] == units_BU[:, :-1]) & ~none[:, 1:]).sum(1)
    return jnp.where((~none).sum(1) + twice <= positions_B, found, 0.0)
