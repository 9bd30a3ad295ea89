"""Cross entropies of the grid: weights and denominators come from the targets alone, so that microbatches and devices
add up to the loss of the whole batch.

A loss is a sum of terms `coefficient * numerator / denominator`. Numerators are summed per microbatch; denominators are
computed once for the global batch, before any forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp

from moshijax.errors import ConfigError
from moshijax.lm.config import LMConfig
from moshijax.lm.model import target_mask
from moshijax.lm.scoring import LMScores

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

NORMALISATIONS = ("paper", "finetune", "split_padding")


@dataclass(frozen=True)
class LossConfig:
    """How the cross entropies are weighted and averaged.

    Attributes:
      normalisation: one of

        - "paper" (arXiv 2410.00037, 4.4): per frame, the audio losses are averaged with `semantic_weight` for codebook
        0
          of each speaker and 1 for the others; text and audio are then averaged over frames. PAD counts
          `text_padding_weight`.
        - "finetune" (the code of moshi-finetune): text and audio losses are weighted means over all their targets; PAD
          and EPAD count `text_padding_weight`.
        - "split_padding" (the code of nu-dialogue): audio as "finetune"; text is the mean over targets that are not PAD
          plus `text_padding_weight` times the mean over PAD.
      text_padding_weight: see `normalisation`.
      semantic_weight: of codebook 0 of each speaker; the others have 1.
      text_weight: coefficient of the text.
      audio_weight: coefficient of the audio.
      epad_weight: weight of EPAD, which tells when a word begins; None: as published, 1 in "paper" and "split_padding"
        (there EPAD counts as a word) and `text_padding_weight` in "finetune".
      frames_at_once: logits of this many frames exist at a time; they are computed again in the backward pass, so that
        long sequences with a large vocabulary fit. None: all frames, once.
    """

    normalisation: str = "paper"
    text_padding_weight: float = 0.5
    semantic_weight: float = 100.0
    text_weight: float = 1.0
    audio_weight: float = 1.0
    epad_weight: float | None = None
    frames_at_once: int | None = None

    def __post_init__(self) -> None:
        if self.normalisation not in NORMALISATIONS:
            raise ConfigError(f"normalisation={self.normalisation!r}: must be one of {', '.join(NORMALISATIONS)}")
        for name in ("text_padding_weight", "semantic_weight", "text_weight", "audio_weight"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}={getattr(self, name)!r}: must be 0 or more")
        if self.epad_weight is not None and not self.epad_weight >= 0:
            raise ConfigError(f"epad_weight={self.epad_weight!r}: must be 0 or more, or None for the published one")
        if self.frames_at_once is not None and self.frames_at_once < 1:
            raise ConfigError(f"frames_at_once={self.frames_at_once!r}: must be 1 or more, or None for all")

    @property
    def weight_of_epad(self) -> float:
        """What EPAD counts."""
        if self.epad_weight is not None:
            return self.epad_weight
        return self.text_padding_weight if self.normalisation == "finetune" else 1.0


class Term(NamedTuple):
    """One term of the loss.

    Attributes:
      weights: of the cross entropies of the text row, or of the audio rows.
      denominator: what divides the weighted sum.
    """

    weights: Float[Array, "B R T"]
    denominator: Float[Array, ""]


def terms(
    config: LMConfig, loss: LossConfig, codes_BKT: Int[Array, "B K T"], text_only: bool = False
) -> dict[str, Term]:
    """Return the terms of the loss of a batch, from its targets alone: "text" (and "text_padding"), "audio".

    Args:
      config: of the model.
      loss: weights and normalisation.
      codes_BKT: the grid, not delayed.
      text_only: leave the audio out.
    """
    mask = target_mask(config, codes_BKT)
    streams = config.layout.streams
    text, valid = codes_BKT[:, :1], mask[:, :1].astype(jnp.float32)
    pad = text == config.pad_id
    epad = (text == config.epad_id) & ~pad  # a vocabulary may have one piece for both
    out: dict[str, Term] = {}
    if not streams[0].scored:
        valid = jnp.zeros_like(valid)
    if loss.normalisation == "split_padding":
        words, padding = valid * ~pad * jnp.where(epad, loss.weight_of_epad, 1.0), valid * pad
        out["text"] = Term(words, jnp.sum(words))
        out["text_padding"] = Term(padding, jnp.sum(padding))
    else:
        weights = valid * jnp.where(pad, loss.text_padding_weight, jnp.where(epad, loss.weight_of_epad, 1.0))
        out["text"] = Term(weights, jnp.sum(valid if loss.normalisation == "paper" else weights))
    dep_q = config.layout.dep_q
    if text_only or dep_q == 0:
        return out
    alpha = [(loss.semantic_weight if s.codebook == 0 else 1.0) if s.scored else 0.0 for s in streams[1 : 1 + dep_q]]
    weights = mask[:, 1:] * jnp.asarray(alpha, jnp.float32)[:, None]
    if loss.normalisation == "paper":
        frame = jnp.sum(weights, axis=1, keepdims=True)
        weights = weights / jnp.where(frame > 0, frame, 1.0)
        out["audio"] = Term(weights, jnp.sum(frame > 0).astype(jnp.float32))
    else:
        out["audio"] = Term(weights, jnp.sum(weights))
    return out


def denominators(
    config: LMConfig, loss: LossConfig, codes_BKT: Int[Array, "B K T"], text_only: bool = False
) -> dict[str, Array]:
    """Return what divides each term, from the targets of the whole (global) batch; arguments as in `terms`."""
    return {name: term.denominator for name, term in terms(config, loss, codes_BKT, text_only).items()}


def numerators(
    config: LMConfig, loss: LossConfig, scores: LMScores, codes_BKT: Int[Array, "B K T"], text_only: bool = False
) -> dict[str, Float[Array, ""]]:
    """Return the weighted sums of cross entropies of a (micro)batch, by term.

    Where only some targets were scored (`LMScores.counts`) they are estimates of the sums over all.
    """
    nll = scores.nll if scores.counts is None else scores.nll * scores.counts
    rows = {"text": nll[:, :1], "text_padding": nll[:, :1], "audio": nll[:, 1:]}
    parts = terms(config, loss, codes_BKT, text_only)
    return {name: jnp.sum(term.weights * rows[name]) for name, term in parts.items()}


def total(loss: LossConfig, sums: dict[str, Array], divisors: dict[str, Array]) -> Float[Array, ""]:
    """Return the loss, from the numerators and denominators of its terms; a term without any target counts 0."""
    coefficient = {
        "text": loss.text_weight,
        "text_padding": loss.text_weight * loss.text_padding_weight,
        "audio": loss.audio_weight,
    }
    value = jnp.zeros((), jnp.float32)
    for name, numerator in sums.items():
        divisor = divisors[name]
        value += coefficient[name] * numerator / jnp.where(divisor > 0, divisor, 1.0)
    return value


def loss_fn(config: LMConfig, loss: LossConfig, scores: LMScores, codes_BKT: Int[Array, "B K T"]) -> Float[Array, ""]:
    """Return the loss of one batch that is the global batch."""
    return total(loss, numerators(config, loss, scores, codes_BKT), denominators(config, loss, codes_BKT))


def stream_statistics(
    config: LMConfig, scores: LMScores, codes_BKT: Int[Array, "B K T"]
) -> dict[str, dict[str, Float[Array, ""]]]:
    """Return unweighted sums per stream for the log, to be added up and divided.

    Returns:
      `{stream: {"nll", "correct", "count"}}`. Streams are "text_words", "text_padding" (PAD alone), and
      "<speaker>_<codebook>" for each scored audio row.
    """
    mask = target_mask(config, codes_BKT)
    if scores.counts is not None:
        mask = mask & (scores.counts > 0)
    out: dict[str, dict[str, Array]] = {}

    def add(name: str, row: int, valid: Array) -> None:
        out[name] = {
            "nll": jnp.sum(jnp.where(valid, scores.nll[:, row], 0.0)),
            "correct": jnp.sum(valid & scores.correct[:, row]).astype(jnp.float32),
            "count": jnp.sum(valid).astype(jnp.float32),
        }

    pad = codes_BKT[:, 0] == config.pad_id
    add("text_words", 0, mask[:, 0] & ~pad)
    add("text_padding", 0, mask[:, 0] & pad)
    for q in range(config.layout.dep_q):
        stream = config.layout.streams[1 + q]
        if stream.scored:
            add(f"{stream.speaker}_{stream.codebook}", 1 + q, mask[:, 1 + q])
    return out
