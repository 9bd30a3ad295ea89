"""Training of the language model: audio steps on dialogue grids, text steps on text alone."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from moshijax import lm
from moshijax.data.grids import GridData, grid_batches
from moshijax.data.packed_text import TextData, text_batches
from moshijax.data.text import Tokenizer
from moshijax.errors import ConfigError, DataError, require
from moshijax.lm import losses
from moshijax.lm.losses import LossConfig
from moshijax.train.optimizer import OptimizerConfig
from moshijax.train.task import Batch, Batches, LossParts, StepKind, Task, Update

if TYPE_CHECKING:
    from moshijax.data.grids import GridSource

log = logging.getLogger(__name__)

AUDIO, TEXT = "audio", "text"  # kinds of steps, and the update of each
_COUNTED = 256  # recordings of a data set whose words are counted at the start
_MOST_LOST = 0.05  # of their tokens may lack room: more is no fast speech, but a transcript of something longer
# Of held-out text every token counts the same, so that its loss is the logarithm of a perplexity.
EVEN = LossConfig("paper", text_padding_weight=1.0)
# What a text step trains; everything else has no gradient from text alone.
TEXT_OWNS = ("temporal/", "out_norm/", "text_embedding/", "text_head/")


@dataclass(frozen=True)
class AudioSteps:
    """Steps on token grids of recordings. They take the steps that the text steps leave.

    Attributes:
      eval_data: held-out grids; None: none.
      optimizer: None: the run's.
    """

    data: GridData
    eval_data: GridData | None = None
    optimizer: OptimizerConfig | None = None


@dataclass(frozen=True)
class TextSteps:
    """Steps on text alone. They train only what text can train, with an optimiser state of their own.

    Attributes:
      data: needed where `share` is above 0.
      share: r of the steps; step n is one of them if and only if floor((n+1) r) > floor(n r).
      eval_data: held-out text, whatever the share: a text model is measured by it, and what speech makes a model forget
        of its text too; None: none.
      optimizer: None: the run's.
    """

    data: TextData | None = None
    share: float = 0.0
    eval_data: TextData | None = None
    optimizer: OptimizerConfig | None = None

    def __post_init__(self) -> None:
        require(0 <= self.share <= 1, f"share is {self.share}; it is a share of the steps, from 0 to 1")
        require(
            self.share == 0 or self.data is not None,
            f"share is {self.share} but data is not set; set data, or share = 0",
        )


@dataclass(frozen=True)
class LMTask(Task):
    """Next-token training of `model` on token grids.

    Attributes:
      tokenizer: path of the SentencePiece model that places the words; it is copied into the run directory.
      audio: steps on recordings; None: none.
      text: steps on text alone; None: none.
      loss: weights and normalisation of the cross entropies.
      frame_rate: columns per second of the grid, for throughput in seconds of audio.
      separate_documents: in text steps a document sees nothing of those packed before it. Otherwise a row is one
        sequence, in which only EOS and BOS separate documents; the cuDNN attention of GPUs knows no other form.
      depth_share: share of the frames, drawn at random in every row, on which the depth transformer is trained; the
        audio loss is an unbiased estimate of that over all. Sesame trains the decoder of its CSM on 1/16 of the frames
        and reports no visible difference ("Crossing the uncanny valley of conversational voice", 2025); there codebook
        0 is predicted outside it and trained on all frames, here it is sampled with the rest. Evaluations use all
        frames.
    """

    model: lm.LMConfig
    tokenizer: str
    audio: AudioSteps | None = None
    text: TextSteps | None = None
    loss: LossConfig = LossConfig()
    frame_rate: float = 12.5
    separate_documents: bool = False
    depth_share: float = 1.0

    kind: ClassVar[str] = "lm"
    parts: ClassVar[tuple[str, ...]] = ("temporal", "depth", "text_head")

    def __post_init__(self) -> None:
        if not 0 < self.depth_share <= 1:
            raise ConfigError(f"depth_share is {self.depth_share}; it is a share of the frames, above 0 and up to 1")
        text_share = self.text.share if self.text is not None else 0
        require(
            self.audio is not None or text_share == 1,
            f"text.share is {text_share}, but there are no audio steps to take the rest; set audio, or text.share = 1",
        )
        if self.separate_documents and self.model.temporal.attention_implementation == "cudnn":
            raise ConfigError(
                "separate_documents with attention_implementation='cudnn': it knows no document masks; use 'auto' or "
                "'xla', or separate_documents=False"
            )

    def model_config(self) -> lm.LMConfig:
        return self.model

    def step_kinds(self) -> tuple[StepKind, ...]:
        audio, text = self.audio, self.text
        share = Fraction(0) if text is None else Fraction(str(text.share))
        kinds = []
        if audio is not None:
            kinds.append(
                StepKind(AUDIO, (Update(AUDIO, audio.optimizer),), audio.data, 1 - share, eval_data=audio.eval_data)
            )
        if text is not None:
            updates = (Update(TEXT, text.optimizer),)
            kinds.append(
                StepKind(TEXT, updates, text.data, share, eval_data=text.eval_data, suffix="_text", perplexity=True)
            )
        return tuple(kinds)

    def _tokenizer(self) -> Tokenizer:
        tokenizer = Tokenizer.load(self.tokenizer)
        if tokenizer.vocab_size > self.model.text_card:
            raise ConfigError(
                f"the tokenizer {self.tokenizer} has {tokenizer.vocab_size} pieces, but text_card is "
                f"{self.model.text_card}; raise text_card or train a smaller tokenizer"
            )
        return tokenizer

    def batches(self, kind: StepKind, data_config: GridData | TextData, seed: int) -> Batches:
        open_batches = text_batches if kind.name == TEXT else grid_batches
        found = open_batches(data_config, self.model.layout, self._tokenizer(), seed)
        check_batch(self.model, found.batch(0))
        if kind.name == AUDIO and data_config is kind.data:
            log_placement(found)
        return found

    def batch_shapes(self, kind: StepKind, data_config: GridData | TextData) -> dict[str, jax.ShapeDtypeStruct]:
        shape = (data_config.batch_size, self.model.layout.num_streams, data_config.num_frames)
        return {"codes": jax.ShapeDtypeStruct(shape, np.dtype("int32"))}

    def memory_savings(self) -> list[tuple[str, str, LMTask]]:
        model, found = self.model, []
        cost = "layers are computed again in the backward pass, about a third more arithmetic"
        temporal, depth = dataclasses.replace(model.temporal, remat_policy="full"), model.depth
        if model.temporal != temporal:
            lighter = dataclasses.replace(self, model=dataclasses.replace(model, temporal=temporal))
            found.append(("model.temporal.remat_policy='full'", cost, lighter))
        if depth is not None and depth.transformer.remat_policy != "full":
            depth = dataclasses.replace(depth, transformer=dataclasses.replace(depth.transformer, remat_policy="full"))
            lighter = dataclasses.replace(self, model=dataclasses.replace(model, depth=depth))
            found.append(("model.depth.transformer.remat_policy='full'", cost, lighter))
        return found

    def save_assets(self, run_dir: Path) -> None:
        tokenizer = self._tokenizer()
        tokenizer.save(run_dir / tokenizer.file_name)

    def amounts(self, kind: StepKind, batch: Batch) -> dict[str, float]:
        rows, _, frames = batch["codes"].shape
        if kind.name == TEXT:
            return {"text_tokens": float(rows * frames)}
        return {"frames": float(rows * frames), "audio_seconds": rows * frames / self.frame_rate}

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        return lm.init_boxed(self.model, key), {}

    def owns(self, update: str, path: str) -> bool:
        return update != TEXT or path.startswith(TEXT_OWNS)

    def denominators(self, update: str, batch: Batch) -> dict[str, jax.Array]:
        return losses.denominators(self.model, self.loss, batch["codes"], text_only=update == TEXT)

    def loss_parts(
        self,
        update: str,
        params: Any,
        model_state: Any,
        batch: Batch,
        denominators: Mapping[str, jax.Array],
        key: jax.Array,
    ) -> LossParts:
        chosen = None
        if update == AUDIO and self.depth_share < 1:
            chosen = draw_frames(key, batch["row"], batch["codes"].shape[2], self.depth_share)
        return self._loss_parts(update == TEXT, self.loss, params, batch["codes"], denominators, chosen)

    def held_out_parts(self, kind: StepKind, params: Any, model_state: Any, batch: Batch, key: jax.Array) -> LossParts:
        text_only, codes = kind.name == TEXT, batch["codes"]
        loss = EVEN if text_only else self.loss
        denominators = losses.denominators(self.model, loss, codes, text_only)
        parts = self._loss_parts(text_only, loss, params, codes, denominators)
        # The mean over batches is weighted by the tokens of each.
        return parts._replace(sums={"loss": parts.sums["text/loss"]}) if text_only else parts

    def _loss_parts(
        self,
        text_only: bool,
        loss: LossConfig,
        params: Any,
        codes: jax.Array,
        denominators: Mapping[str, jax.Array],
        depth_frames: jax.Array | None = None,
    ) -> LossParts:
        scores = lm.score(
            self.model,
            params,
            codes,
            text_only=text_only,
            separate_documents=text_only and self.separate_documents,
            frames=self.loss.frames_at_once,
            depth_frames_BF=depth_frames,
        )
        numerators = losses.numerators(self.model, loss, scores, codes, text_only)
        streams = {} if text_only else losses.stream_statistics(self.model, scores, codes)
        own = losses.denominators(self.model, loss, codes, text_only)
        sums = {f"{group}/loss": (numerator, own[group]) for group, numerator in numerators.items()}
        for stream, found in streams.items():
            sums[f"{stream}/loss"] = (found["nll"], found["count"])
            sums[f"{stream}/accuracy"] = (found["correct"], found["count"])
        return LossParts(losses.total(loss, numerators, denominators), sums, {})


def log_placement(grids: GridSource) -> None:
    """Log what became of the words: none is dropped silently.

    Raises:
      DataError: the tokenizer lacks characters of most of them, or recordings are too short for them.
    """
    number, counts = grids.placement_counts(_COUNTED)
    unknown = counts.unknown.total()
    if unknown > counts.words:
        raise DataError(
            f"the tokenizer lacks characters of {unknown} of {unknown + counts.words} words, such as "
            f"{counts.unknown.most_common(1)[0][0]!r}: use the one that belongs to the model, or train another"
        )
    if counts.lost_tokens > _MOST_LOST * counts.tokens:
        (name, lost), *_ = counts.crowded.most_common(1)
        raise DataError(
            f"{counts.lost_tokens} of {counts.tokens} tokens have no room in the {number} recordings that were looked "
            f"at, {lost} of them in {name}: at most {_MOST_LOST:.0%} may, so the words are not of these recordings; "
            "transcribe them again, or leave those recordings out"
        )
    mostly_silent = 2 * counts.wordless > number
    write = log.warning if counts.lost_tokens or unknown or mostly_silent else log.info
    write(
        "words of %d recordings: %d placed, %d shifted later, %d pulled earlier, %d tokens without room, %d left out; "
        "%d recordings have no words",
        *(number, counts.words, counts.shifted, counts.pulled, counts.lost_tokens, unknown, counts.wordless),
    )
    if grids.config.swap_speakers or grids.config.interruption:
        rows = [row for n in range(-(-_COUNTED // grids.batch_size)) for row in grids.drawn(n)]
        cuts = [cut for row in rows for cut in row.cuts]
        log.info(
            "in the first %d rows, %d with speakers exchanged; %d turns of the model are cut short; %d words dropped",
            *(len(rows), sum(row.swap for row in rows), len(cuts), sum(cut.words for cut in cuts)),
        )


def draw_frames(key: jax.Array, rows_B: jax.Array, frames: int, share: float) -> jax.Array:
    """Draw `share` of the frames, at least one, for every row of the batch: their numbers [B, F] int32, ascending.

    A function of the key and the number of the row, so that microbatches and devices draw the same.
    """
    count = max(1, round(share * frames))
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(rows_B)
    return jax.vmap(lambda k: jnp.sort(jax.random.permutation(k, frames)[:count]))(keys).astype(jnp.int32)


def check_batch(config: lm.LMConfig, batch: Mapping[str, np.ndarray]) -> None:
    """Check that the model has every token of a batch.

    Raises:
      ConfigError: a token is out of range; names row, token and size.
    """
    sizes = (config.text_card, *(config.card,) * config.layout.n_q)
    for row, size in enumerate(sizes):
        largest = int(batch["codes"][:, row].max())
        if largest >= size:
            what = "text_card" if row == 0 else "card"
            raise ConfigError(f"grid row {row} holds token {largest}, but {what} is {size}; raise it or prepare again")
