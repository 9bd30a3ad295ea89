"""Training of LLaMA-Omni: answers in text, answers in units of speech, or both at once."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from moshijax.data.batches import BatchSource
from moshijax.data.exchange_batches import ExchangeData, Hearing, exchange_batches
from moshijax.errors import ConfigError, require
from moshijax.omni import config as omni
from moshijax.omni import prompt, training
from moshijax.omni.config import OmniConfig
from moshijax.omni.training import NONE, States
from moshijax.train.optimizer import OptimizerConfig
from moshijax.train.task import Batch, LossParts, StepKind, Sums, Task, Update

EXCHANGES = "exchanges"  # the kind of steps
#: Stages, and the update of each.
TEXT, SPEECH, JOINT = "text", "speech", "joint"
#: Parts that each stage trains.
TRAINED = {TEXT: ("adapter", "text"), SPEECH: ("decoder",), JOINT: ("adapter", "text", "decoder")}


@dataclass(frozen=True)
class ExchangeSteps:
    """Steps on questions and answers.

    Attributes:
      eval_data: Held-out ones; None: none.
      optimizer: None: the run's.
    """

    data: ExchangeData
    eval_data: ExchangeData | None = None
    optimizer: OptimizerConfig | None = None


@dataclass(frozen=True)
class OmniTask(Task):
    """Training of `model` on questions and answers.

    Attributes:
      model: Its parts.
      tokenizer: `tokenizer.json` of the text model, or its folder; it is copied into the run directory.
      exchanges: The steps.
      stage: "text": adapter and text model, on the text of the answers; "speech": the speech decoder, on their units;
        "joint": all three, on the sum of both losses. What stays as it is of these parts, the weights beside low-rank
        updates say, is frozen by groups of the optimiser.
      speech_weight: Of the loss of the units in the joint stage.
      states: Which states of the text model are spoken. At inference it is those that predict an id; published training
        code has those of reading it.
      train_encoder: Train the encoder with the adapter; for small ones that have heard nothing yet.
      system: What the text model is told about itself.
      question: What follows the speech in the prompt.
    """

    model: OmniConfig
    tokenizer: str
    exchanges: ExchangeSteps
    stage: Literal["text", "speech", "joint"] = TEXT
    speech_weight: float = 1.0
    states: States = "predicting"
    train_encoder: bool = False
    system: str = prompt.SYSTEM
    question: str = prompt.QUESTION

    kind: ClassVar[str] = "omni"
    parts: ClassVar[tuple[str, ...]] = ("encoder", "adapter", "text", "decoder")

    def __post_init__(self) -> None:
        require(self.speech_weight > 0, f"speech_weight is {self.speech_weight}; it must be more than 0")
        require(
            self.stage != SPEECH or not self.train_encoder,
            "train_encoder in the stage 'speech', in which all but the speech decoder stays as it is: use another",
        )

    def model_config(self) -> OmniConfig:
        return self.model

    def step_kinds(self) -> tuple[StepKind, ...]:
        steps = self.exchanges
        return (StepKind(EXCHANGES, (Update(self.stage, steps.optimizer),), steps.data, eval_data=steps.eval_data),)

    def owns(self, update: str, path: str) -> bool:
        part = path.partition("/")[0]
        return part in TRAINED[update] or part == "encoder" and self.train_encoder

    @property
    def _hearing(self) -> Hearing:
        encoder = self.model.encoder
        return Hearing(encoder.mels, 2 * encoder.positions, self.model.adapter.stacked)

    def batches(self, kind: StepKind, data: ExchangeData, seed: int) -> BatchSource:
        tokenizer = prompt.load_tokenizer(self.tokenizer, self.model.text.vocab)
        around = prompt.make_prompt(tokenizer, self.system, self.question)
        sha256 = hashlib.sha256(prompt.tokenizer_file(self.tokenizer).read_bytes()).hexdigest()
        units = self.model.decoder.units
        return exchange_batches(data, self._hearing, units, around, tokenizer, sha256, seed)

    def batch_shapes(self, kind: StepKind, data: ExchangeData) -> dict[str, jax.ShapeDtypeStruct]:
        rows, hearing = data.batch_size, self._hearing
        least = hearing.rows if not data.trim else 1
        if data.num_tokens <= least + data.answer_tokens and not data.trim:
            raise ConfigError(
                f"num_tokens {data.num_tokens} has no room for {least} rows of speech, the prompt and answers of up to "
                f"{data.answer_tokens} ids: raise it"
            )
        shapes = {
            "mel": ((rows, hearing.frames, hearing.bands), "float16"),
            "ids": ((rows, data.num_tokens), "int32"),
            "answer": ((rows, data.answer_tokens), "int32"),
            "units": ((rows, data.num_units), "int32"),
        }
        return {name: jax.ShapeDtypeStruct(shape, np.dtype(dtype)) for name, (shape, dtype) in shapes.items()}

    def memory_savings(self) -> list[tuple[str, str, OmniTask]]:
        found, cost = [], "layers are computed again in the backward pass, about a third more arithmetic"
        for part in ("text", "decoder"):
            config = getattr(self.model, part)
            if part in TRAINED[self.stage] and config.stack.remat_policy != "full":
                lighter = dataclasses.replace(config, stack=dataclasses.replace(config.stack, remat_policy="full"))
                model = dataclasses.replace(self.model, **{part: lighter})
                found.append((f"model.{part}.stack.remat_policy='full'", cost, dataclasses.replace(self, model=model)))
        return found

    def save_assets(self, run_dir: Path) -> None:
        shutil.copyfile(prompt.tokenizer_file(self.tokenizer), run_dir / prompt.TOKENIZER)

    def amounts(self, kind: StepKind, batch: Batch) -> dict[str, float]:
        rows, tokens = batch["ids"].shape
        return {"answers": float(rows), "tokens": float(rows * tokens)}

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        return omni.init_boxed(self.model, key), {}

    def denominators(self, update: str, batch: Batch) -> dict[str, jax.Array]:
        counted = {TEXT: batch["answer"], SPEECH: batch["units"]}
        wanted = (TEXT, SPEECH) if update == JOINT else (update,)
        return {name: jnp.maximum(_total(counted[name] != NONE), 1) for name in wanted}

    def loss_parts(
        self,
        update: str,
        params: Any,
        model_state: Any,
        batch: Batch,
        denominators: Mapping[str, jax.Array],
        key: jax.Array,
    ) -> LossParts:
        answers = training.read(self.model, params, batch)
        loss, sums = jnp.float32(0), {}
        if update in (TEXT, JOINT):
            text = training.score_text(self.model, params, answers)
            loss += text.nll_BA.sum() / denominators[TEXT]
            sums |= _text_sums(text)
        if update in (SPEECH, JOINT):
            states = answers.spoken(self.states)
            config, own = self.model.decoder, params["decoder"]
            speech = training.score_speech(config, own, states, answers.ids_BA, batch["units"])
            weight = self.speech_weight if update == JOINT else 1.0
            loss += weight * speech.nll_B.sum() / denominators[SPEECH]
            sums["speech/loss"] = (speech.nll_B.sum(), _total(batch["units"] != NONE))
            sums["speech/blank"] = (_total(speech.blank_B), _total(speech.positions_B))
        return LossParts(loss, sums, {})


def _total(counts: jax.Array) -> jax.Array:
    return counts.sum().astype(jnp.float32)


def _text_sums(text: training.TextScores) -> Sums:
    """Return loss and accuracy per id, and the share of the answers that are right to the last id."""
    count = _total(text.mask_BA)
    whole = (text.correct_BA == text.mask_BA).all(1)
    rows = jnp.float32(whole.shape[0])
    return {
        "text/loss": (text.nll_BA.sum(), count),
        "text/accuracy": (_total(text.correct_BA), count),
        "text/whole_answers": (_total(whole), rows),
    }
