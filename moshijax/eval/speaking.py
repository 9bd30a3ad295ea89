"""How a language model answers calls while it trains: an evaluator that a training run calls."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather

from moshijax import lm
from moshijax.data.encoder import CodecEncoder
from moshijax.data.text import Tokenizer
from moshijax.errors import ConfigError, DataError
from moshijax.eval import calls as scores
from moshijax.eval.calls import HeldOutCall
from moshijax.eval.spoken_qa import read_questions, result
from moshijax.lm import transforms
from moshijax.runtime import audio
from moshijax.runtime.checks import split_seed
from moshijax.runtime.hosting import Call
from moshijax.tokens import BOS, EOS
from moshijax.train.evaluate import Snapshot
from moshijax.train.experiment import ExperimentConfig
from moshijax.train.run.init_from import meanings_at
from moshijax.weights.families import FAMILIES

if TYPE_CHECKING:
    from jaxtyping import Array, Int


class Text(NamedTuple):
    """What `moshijax.runtime.text` reads of an artifact."""

    pieces: Sequence[str]
    frame_seconds: float
    manifest: Mapping[str, Any]


class SpeakingEvaluator:
    """Evaluator of a training run: the model answers calls freely, and its words are scored.

    The users are encoded once. Then every evaluation runs `lm.generate_step` frame by frame, with the default sampling
    and the seeds 0, 1, ..., as an artifact does (`moshijax.runtime.play`); its own codes are not decoded.

    Args:
      experiment: of a language model, with `speaking` set.
      run_dir: of the run.

    Raises:
      ConfigError: the model does not converse, or the codec has fewer codebooks than it hears.
      DataError: codec or calls cannot be used.
    """

    def __init__(self, experiment: ExperimentConfig, run_dir: Path) -> None:
        task, settings = experiment.task, experiment.speaking
        config: lm.LMConfig = task.model_config()
        layout = config.layout
        if not layout.given_rows or len(layout.model_rows) < 2:
            raise ConfigError("speaking is set, but the model does not both listen and speak; set speaking = None")
        self._run_dir, self._settings = run_dir, settings
        self._encoder = CodecEncoder.load(settings.codec)
        heard = len(layout.given_rows)
        if self._encoder.num_codebooks < heard:
            raise ConfigError(
                f"speaking.codec {settings.codec} has {self._encoder.num_codebooks} codebooks, the model hears "
                f"{heard}; give the codec of the data"
            )
        self._questions = read_questions(settings.calls)
        rate, size = self._encoder.sample_rate, self._encoder.frame_size
        users = [audio.read_channel(question.item.audio, rate, "right") for question in self._questions]
        self._frames = [-(-len(user) // size) for user in users]
        longest = (max(self._frames) + layout.max_delay) * size
        codes = self._encoder.encode([np.pad(user, (0, longest - len(user))) for user in users])
        self._codes_NQT = np.stack(codes)[:, :heard]
        special = {"pad": config.pad_id, "epad": config.epad_id, "bos": BOS, "eos": EOS}
        pieces = Tokenizer.load(task.tokenizer).pieces
        self._text = Text(pieces, size / rate, {"text": {"special": special}})
        self._play: Any = None

    def __call__(self, snapshot: Snapshot) -> dict[str, float]:
        """Return the figures of `figures`.

        Raises:
          DataError: the data of the run was encoded with another codec.
        """
        self._check_codec()
        # On one device, whatever the mesh: every process measures the same.
        params, model_state = process_allgather((snapshot.params, snapshot.model_state), tiled=True)
        params = FAMILIES["lm"].from_training(params, model_state)
        config, params = transforms.for_calls(snapshot.model_config, params)
        if self._play is None:  # the same program for every evaluation
            self._play = jax.jit(partial(answer, config))
        return figures(self._results(config, params))

    def _results(self, config: lm.LMConfig, params: Any) -> list[HeldOutCall]:
        found = []
        silent = np.zeros((0, 0), np.int32)
        for numbers, codes_BQT, seeds_B2 in self._batches():
            tokens_BT = np.asarray(self._play(params, codes_BQT, seeds_B2))
            for number, tokens_T in zip(numbers, tokens_BT):  # (the last batch repeats a call)
                call = Call(text_tokens=tokens_T[: self._frames[number]], codes=silent, pcm=None, user=None)
                found.append(result(self._text, self._questions[number], call))
        return found

    def _batches(self) -> Iterator[tuple[range, np.ndarray, np.ndarray]]:
        """Numbers of calls, the codes of their users `[B, Q, T]` and their seeds `[B, 2]`, always as many rows."""
        count = len(self._questions)
        rows = min(self._settings.batch, count)
        for first in range(0, count, rows):
            own = [min(number, count - 1) for number in range(first, first + rows)]
            yield range(first, min(first + rows, count)), self._codes_NQT[own], np.stack([split_seed(n) for n in own])

    def _check_codec(self) -> None:
        there = meanings_at(self._run_dir).get("codec", self._encoder.sha256)
        if there != self._encoder.sha256:
            raise DataError(
                f"speaking.codec {self._settings.codec} has the sha256 {self._encoder.sha256[:12]}..., the data of the "
                f"run was encoded with {there[:12]}...; give that one"
            )


def answer(
    config: lm.LMConfig, params: Any, codes_BQT: Int[Array, "B Q T"], seeds_B2: Int[Array, "B 2"]
) -> Int[Array, "B T_out"]:
    """Return the text tokens that a model says freely to users, in grid time.

    Args:
      config, params: of the model, in the inference layout.
      codes_BQT: of the users; the last `max_delay` frames are heard while the last delayed columns come out.
      seeds_B2: uint32.

    Returns:
      One token for each of the first T - max_delay frames.
    """
    delay = config.layout.max_delay
    sampling = {**lm.Sampling().rows(codes_BQT.shape[0]), "seed": seeds_B2}
    state = lm.init_generation(config, params, codes_BQT.shape[0])
    # The first step of a call only primes position 0, whatever it is given.
    given_TBQ = jnp.moveaxis(jnp.concatenate([codes_BQT[..., :1], codes_BQT[..., :-1]], axis=-1), -1, 0)

    def step(state: Any, given_BQ: Array) -> tuple[Any, Array]:
        state, out_BM = lm.generate_step(config, params, state, given_BQ, sampling)
        return state, out_BM[:, 0]

    _, tokens_TB = jax.lax.scan(step, state, given_TBQ)
    return tokens_TB[delay:].T


def figures(results: Sequence[HeldOutCall]) -> dict[str, float]:
    """Return the shares of calls, those that have something to count.

    `calls/right`: answered as they should be, none for what is no question; `calls/exact`: questions answered with
    exactly the right words; `calls/unrelated_answered` and `calls/silence_answered`: the others that got words.
    """
    found = {
        "right": scores.Rate(sum(call.right for call in results), len(results)),
        "exact": scores.exact(results),
        "unrelated_answered": scores.answered(results, "unrelated"),
        "silence_answered": scores.answered(results, "silence"),
    }
    return {f"calls/{name}": rate.value for name, rate in found.items() if math.isfinite(rate.value)}
