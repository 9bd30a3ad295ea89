"""Training of the language model: audio steps on dialogue grids, text steps on text alone."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from moshijax import data, lm
from moshijax.errors import ConfigError
from moshijax.lm import losses
from moshijax.lm.losses import LossConfig
from moshijax.train.task import LossParts, Source

if TYPE_CHECKING:
    from moshijax.data.grids import GridSource
    from moshijax.train.experiment import ExperimentConfig

log = logging.getLogger(__name__)

_COUNTED = 256  # recordings of a data set whose words are counted at the start
TEXT_ONLY = ("text", "eval_text")  # updates that run on the text row alone
# Of held-out text every token counts the same, so that its loss is the logarithm of a perplexity.
EVEN = LossConfig("paper", text_padding_weight=1.0)
# What a text step trains; everything else has no gradient from text alone.
TEXT_OWNS = ("temporal/", "out_norm/", "text_embedding/", "text_head/")


@dataclass(frozen=True)
class LMTask:
    """Next-token training of `model` on token grids.

    Attributes:
      tokenizer: path of the SentencePiece model that places the words; it is copied into the run directory.
      loss: weights and normalisation of the cross entropies.
      frame_rate: columns per second of the grid, for throughput in seconds of audio.
      separate_documents: in text steps a document sees nothing of those packed before it. Left to itself a row is one
        sequence, in which documents are set apart by EOS and BOS alone; the cuDNN attention of GPUs knows no other.
      depth_share: share of the frames, drawn at random in every row, on which the depth transformer is trained; the
        audio loss is an unbiased estimate of that over all. Sesame trains the decoder of its CSM on 1/16 of the frames
        and reports no visible difference ("Crossing the uncanny valley of conversational voice", 2025); there codebook
        0 is predicted outside it and trained on all, here it is left out with the rest. Evaluations use all frames.
    """

    model: lm.LMConfig
    tokenizer: str
    loss: LossConfig = LossConfig()
    frame_rate: float = 12.5
    separate_documents: bool = False
    depth_share: float = 1.0

    kind: ClassVar[str] = "lm"
    parts: ClassVar[tuple[str, ...]] = ("temporal", "depth", "text_head")

    def __post_init__(self) -> None:
        if not 0 < self.depth_share <= 1:
            raise ConfigError(f"depth_share is {self.depth_share}; it is a share of the frames, above 0 and up to 1")
        if self.separate_documents and self.model.temporal.attention_implementation == "cudnn":
            raise ConfigError(
                "separate_documents with attention_implementation='cudnn': it knows no document masks; use 'auto' or "
                "'xla', or separate_documents=False"
            )

    def model_config(self) -> lm.LMConfig:
        return self.model

    def _tokenizer(self) -> Any:
        tokenizer = data.Tokenizer.load(self.tokenizer)
        if tokenizer.vocab_size > self.model.text_card:
            raise ConfigError(
                f"the tokenizer {self.tokenizer} has {tokenizer.vocab_size} pieces, but text_card is "
                f"{self.model.text_card}; raise text_card or train a smaller tokenizer"
            )
        return tokenizer

    def sources(self, experiment: ExperimentConfig) -> dict[str, Source]:
        tokenizer, layout, seed = self._tokenizer(), self.model.layout, experiment.seed
        found: dict[str, Source] = {}
        if experiment.text_ratio < 1:
            found["audio"] = data.grid_batches(experiment.data, layout, tokenizer, seed)
        if experiment.text_ratio > 0:
            found["text"] = data.text_batches(experiment.text_data, layout, tokenizer, seed)
        if experiment.eval_data is not None:
            found["eval"] = data.grid_batches(experiment.eval_data, layout, tokenizer, seed)
        if experiment.eval_text_data is not None:
            found["eval_text"] = data.text_batches(experiment.eval_text_data, layout, tokenizer, seed)
        for source in found.values():
            check_batch(self.model, source.batch(0))
        if "audio" in found:
            _tell_placement(found["audio"])
        return found

    def batch_shapes(self, experiment: ExperimentConfig) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
        trained = {"audio": experiment.data, "text": experiment.text_data}
        configs = {name: trained[name] for name in experiment.programs}
        configs |= {"eval": experiment.eval_data, "eval_text": experiment.eval_text_data}
        streams = self.model.layout.num_streams
        return {
            name: {"codes": jax.ShapeDtypeStruct((c.batch_size, streams, c.num_frames), np.dtype("int32"))}
            for name, c in configs.items()
            if c is not None
        }

    def lighter(self) -> list[tuple[str, str, LMTask]]:
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

    def save_assets(self, experiment: ExperimentConfig, run_dir: Path) -> None:
        self._tokenizer().save(run_dir / "tokenizer.model")

    def amounts(self, program: str, batch: Mapping[str, Any]) -> dict[str, float]:
        rows, _, frames = batch["codes"].shape
        if program == "text":
            return {"text_tokens": float(rows * frames)}
        return {"frames": float(rows * frames), "audio_seconds": rows * frames / self.frame_rate}

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        return lm.init_boxed(self.model, key), {}

    def training_form(self, params: Any) -> Any:
        return params

    def updates(self, program: str) -> tuple[str, ...]:
        return (program,)

    def owns(self, update: str, path: str) -> bool:
        return update != "text" or path.startswith(TEXT_OWNS)

    def auxiliary(self, path: str) -> bool:
        return False

    def denominators(self, update: str, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return losses.denominators(self.model, self._loss(update), batch["codes"], text_only=update in TEXT_ONLY)

    def _loss(self, update: str) -> LossConfig:
        return EVEN if update == "eval_text" else self.loss

    def loss_parts(
        self, update: str, params: Any, model_state: Any, batch: Mapping[str, jax.Array], denominators: Any, key: Any
    ) -> LossParts:
        codes, text_only, loss = batch["codes"], update in TEXT_ONLY, self._loss(update)
        sampled = self.depth_share < 1 and update == "audio"
        scores = lm.score(
            self.model,
            params,
            codes,
            text_only=text_only,
            separate_documents=text_only and self.separate_documents,
            frames=self.loss.frames_at_once,
            depth_frames_BF=draw_frames(key, batch["row"], codes.shape[2], self.depth_share) if sampled else None,
        )
        numerators = losses.numerators(self.model, loss, scores, codes, text_only)
        streams = {} if text_only else losses.stream_statistics(self.model, scores, codes)
        own = losses.denominators(self.model, loss, codes, text_only)
        sums = {f"{group}/loss": (numerator, own[group]) for group, numerator in numerators.items()}
        if update == "eval_text":
            sums = {"loss": sums["text/loss"]}  # weighted by the tokens of each batch
        for stream, found in streams.items():
            sums[f"{stream}/loss"] = (found["nll"], found["count"])
            sums[f"{stream}/accuracy"] = (found["correct"], found["count"])
        return LossParts(losses.total(loss, numerators, denominators), sums, {})

    def update_model_state(self, model_state: Any, statistics: Any, key: Any, step: Any) -> tuple[Any, dict[str, Any]]:
        return model_state, {}


def _tell_placement(source: GridSource) -> None:
    """Say what became of the words: none is dropped silently."""
    number, counts = source.placement_counts(_COUNTED)
    lost = log.warning if counts.lost_tokens else log.info
    lost(
        "words of %d recordings: %d placed, %d shifted later, %d pulled earlier, %d tokens without room",
        *(number, counts.words, counts.shifted, counts.pulled, counts.lost_tokens),
    )


def draw_frames(key: jax.Array, rows_B: jax.Array, frames: int, share: float) -> jax.Array:
    """Numbers of `share` of the frames, at least one, for every row of the batch: [B, F] int32, ascending.

    A function of the key and the number of the row, so that microbatches and devices draw the same.
    """
    count = max(1, round(share * frames))
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(rows_B)
    return jax.vmap(lambda k: jnp.sort(jax.random.permutation(k, frames)[:count]))(keys).astype(jnp.int32)


def check_batch(config: lm.LMConfig, batch: Mapping[str, np.ndarray]) -> None:
    """Every token must be one that the model has.

    Raises:
      ConfigError: a token is out of range; names row, token and size.
    """
    sizes = (config.text_card, *(config.card,) * config.layout.n_q)
    for row, size in enumerate(sizes):
        largest = int(batch["codes"][:, row].max())
        if largest >= size:
            what = "text_card" if row == 0 else "card"
            raise ConfigError(f"grid row {row} holds token {largest}, but {what} is {size}; raise it or prepare again")
