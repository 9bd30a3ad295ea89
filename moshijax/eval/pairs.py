"""Pairs of recordings of which one is right: how often a language model of audio finds it the more likely one.

Scored as Moshi is (arXiv 2410.00037, table 7): the negative log likelihood of the audio tokens, those of one frame
averaged with the weights of training (100 for codebook 0, 1 for the others), then over frames. Text is not scored. A
model of two streams is scored on its user's.

What the paper leaves open is ours: a model of one stream sees no text (`ZERO`, as where pre-training masks it), one of
two sees a model's stream of digital silence and text of padding. Frames that the delays leave without some prediction,
at the end, count with what they have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from moshijax import lm
from moshijax.errors import ConfigError
from moshijax.lm import LMConfig
from moshijax.lm.layouts import MODEL, USER
from moshijax.tokens import ZERO

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

SEMANTIC_WEIGHT = 100.0
_ROWS = 8
_FRAMES = 32  # recordings are filled up to a multiple, so that few lengths are compiled
_LOGIT_FRAMES = 64


def stream_of(config: LMConfig, wanted: str | None = None) -> str:
    """Return whose audio is scored: the user's where the model has any, else the model's.

    Raises:
      ConfigError: the model has no such stream, or does not predict it.
    """
    speakers = [who for who in (MODEL, USER) if config.layout.rows(who)]
    if wanted is not None and wanted not in speakers:
        raise ConfigError(f"stream {wanted!r}: this model has audio of {' and '.join(speakers) or 'nobody'}")
    chosen = wanted or (USER if USER in speakers else MODEL)
    rows = config.layout.rows(chosen)
    if not rows or max(rows) > config.layout.dep_q:
        raise ConfigError(
            f"the model hears the audio of the {chosen} and does not predict it, so it has no likelihood: give a model "
            "that was trained on it (score_user of the layout), or stream='model'"
        )
    return chosen


def grid(config: LMConfig, stream: str, codes_QT: Int[np.ndarray, "Q T"], silence: Sequence[int]) -> np.ndarray:
    """Return the grid [K, T] of one recording in a stream, with what the other rows hold beside it.

    Args:
      config: of the model.
      stream: "model" or "user".
      codes_QT: of the recording, at least as many codebooks as the stream has.
      silence: the code of digital silence in every codebook.
    """
    layout = config.layout
    found = np.full((layout.num_streams, codes_QT.shape[1]), ZERO, np.int32)
    for speaker in (MODEL, USER):
        for level, row in enumerate(layout.rows(speaker)):
            found[row] = codes_QT[level] if speaker == stream else silence[level]
    if stream == USER:
        found[0] = config.pad_id
    return found


def score_grids(
    config: LMConfig, params: Any, stream: str, grids: Sequence[Int[np.ndarray, "K T"]], semantic_weight: float
) -> Iterator[float]:
    """Yield the score of every grid, nats per token: less is more likely. It does not depend on the other grids.

    Args:
      config, params: of the model.
      stream: whose audio is scored.
      grids: of any lengths.
      semantic_weight: of codebook 0; the others have 1.
    """
    for first in range(0, len(grids), _ROWS):
        batch = grids[first : first + _ROWS]
        lengths = np.array([grid.shape[1] for grid in batch] + [0] * (_ROWS - len(batch)), np.int32)
        frames = -(-lengths.max() // _FRAMES) * _FRAMES
        codes = np.full((_ROWS, config.layout.num_streams, frames), ZERO, np.int32)
        for row, one in enumerate(batch):
            codes[row, :, : one.shape[1]] = one
        scores = _scores(config, stream, np.float32(semantic_weight), params, codes, lengths)
        yield from np.asarray(scores)[: len(batch)].tolist()


@partial(jax.jit, static_argnums=(0, 1))
def _scores(
    config: LMConfig, stream: str, semantic_weight: Array, params: Any, codes: Array, lengths: Array
) -> Float[Array, " B"]:
    nll = lm.score(config, params, codes, frames=_LOGIT_FRAMES).nll[:, 1:]
    rows = config.layout.streams[1 : 1 + config.layout.dep_q]
    weights = jnp.array([(semantic_weight if r.codebook == 0 else 1.0) * (r.speaker == stream) for r in rows])
    delays = jnp.array([r.delay for r in rows])
    # Later tokens would be predicted from what fills the grid up.
    there = jnp.arange(codes.shape[2]) < lengths[:, None, None] - delays[:, None]
    return mean_of_frames(nll, weights[:, None] * there)


def mean_of_frames(nll_BQT: Float[Array, "B Q T"], weights_BQT: Float[Array, "B Q T"]) -> Float[Array, " B"]:
    """Return the mean over frames of the weighted mean of each frame's tokens; frames without weight do not count."""
    total_BT = weights_BQT.sum(axis=1)
    there_BT = total_BT > 0
    frames_BT = jnp.where(there_BT, (nll_BQT * weights_BQT).sum(axis=1) / jnp.where(there_BT, total_BT, 1.0), 0.0)
    return frames_BT.sum(axis=1) / jnp.maximum(there_BT.sum(axis=1), 1)
