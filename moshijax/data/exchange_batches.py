"""Batches of questions and answers for the training of LLaMA-Omni, and of answers for its vocoder."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from moshijax.data import records
from moshijax.data.batches import BatchSource, amount, check_sets, check_size, fold_seed, mixed, shuffled
from moshijax.data.records import RecordSource
from moshijax.data.speech_units import merged
from moshijax.data.teacher import RATE
from moshijax.errors import ConfigError, DataError
from moshijax.omni.prompt import SPEECH, TURN_END, Prompt, speech_rows
from moshijax.omni.spectrogram import HOP, SAMPLE_RATE
from moshijax.omni.training import NONE

if TYPE_CHECKING:
    from jaxtyping import Float, Int

log = logging.getLogger(__name__)

_MOST_PLACES = 1 << 28  # of the frames of a batch
UNIT = SAMPLE_RATE // RATE


@dataclass(frozen=True)
class ExchangeData:
    """Rows of questions and answers.

    An exchange that does not fit is left out; how many, and why, is logged.

    Attributes:
      paths: Folders that `moshijax data exchanges` made.
      weights: Share of each; (): in proportion to their exchanges.
      batch_size: Rows of the global batch.
      num_tokens: T, ids of a row: prompt, rows of speech, and answer.
      answer_tokens: A, ids of an answer at most, with the one that ends it.
      num_units: U, merged units of an answer at most.
      trim: Only the rows that cover a recording stand in the prompt; otherwise always those of a whole clip, as
        published models have it.
      shift: Seconds of silence, at most, that a question begins later; drawn for every row.
    """

    paths: tuple[str, ...]
    weights: tuple[float, ...] = ()
    batch_size: int = 8
    num_tokens: int = 512
    answer_tokens: int = 128
    num_units: int = 1600
    trim: bool = False
    shift: float = 0.0

    def __post_init__(self) -> None:
        check_sets(self.paths, self.weights)
        check_size(_MOST_PLACES, self.batch_size, num_tokens=self.num_tokens)
        for name in ("answer_tokens", "num_units"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: use at least 1")
        if self.answer_tokens >= self.num_tokens:
            raise ConfigError(
                f"answer_tokens {self.answer_tokens} must be less than num_tokens {self.num_tokens}, which hold the "
                "prompt too"
            )
        if not 0 <= self.shift <= 30:
            raise ConfigError(f"shift is {self.shift}: give 0 to 30 seconds")


class Hearing(NamedTuple):
    """What the model makes of a clip.

    Attributes:
      bands: M, of its frames.
      frames: Of a clip, 100 a second.
      stacked: Features of the encoder that become one embedding.
    """

    bands: int
    frames: int
    stacked: int

    @property
    def rows(self) -> int:
        """Embeddings of a whole clip."""
        return self.frames // 2 // self.stacked


class _Exchanges(Sequence):
    """The numbers of the records of a folder that fit."""

    def __init__(self, source: RecordSource, numbers: Sequence[int]):
        self.source, self._numbers = source, np.asarray(numbers, np.int64)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> int:
        return int(self._numbers[index])


class ExchangeMaker:
    """Make a row of a record.

    Args:
      config: Of the batches.
      hearing: Of the model.
      prompt: Around the speech.
      tokenizer: Of the text model.
    """

    def __init__(self, config: ExchangeData, hearing: Hearing, prompt: Prompt, tokenizer: Any):
        self.config, self.hearing, self.prompt, self.tokenizer = config, hearing, prompt, tokenizer
        self._end = tokenizer.token_to_id(TURN_END)

    def answer_ids(self, text: str) -> list[int]:
        """Return the ids of an answer, with the one that ends it."""
        return [*self.tokenizer.encode(text, add_special_tokens=False).ids, self._end]

    def _rows(self, samples: int) -> int:
        return speech_rows(samples, self.hearing.stacked) if self.config.trim else self.hearing.rows

    def misfit(self, samples: int, units: int, answer: str) -> str | None:
        """Return which limit an exchange exceeds; None: it fits."""
        config, longest = self.config, self.hearing.frames * HOP - round(self.config.shift * SAMPLE_RATE)
        if samples > longest:
            return f"a question longer than {longest / SAMPLE_RATE:g} s"
        if samples < 2 * self.hearing.stacked * HOP:
            return "a question too short for one row of speech"
        ids = len(self.answer_ids(answer))
        if ids > config.answer_tokens:
            return f"an answer of more than answer_tokens={config.answer_tokens}"
        rows = self._rows(samples + round(config.shift * SAMPLE_RATE))
        if len(self.prompt.before) + rows + len(self.prompt.after) + ids > config.num_tokens:
            return f"prompt and answer of more than num_tokens={config.num_tokens}"
        return f"an answer of more than num_units={config.num_units}" if units > config.num_units else None

    def draw(self, source: RecordSource, number: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draw the shift of a record and make its row, see `exchange_batches`."""
        record, config, hearing = source[number], self.config, self.hearing
        shift = int(rng.integers(round(config.shift * SAMPLE_RATE / HOP) + 1))  # in frames
        rows = self._rows(record["samples"] + shift * HOP)
        before, after = self.prompt.before, self.prompt.after
        answer = self.answer_ids(record["answer"])
        ids = [*before, *[SPEECH] * rows, *after, *answer]
        units = merged(record["units"])
        return {
            "mel": placed(record["mel"], record["quiet"], shift, hearing.frames),
            "ids": _padded(ids, config.num_tokens),
            "answer": _padded(range(len(ids) - len(answer), len(ids)), config.answer_tokens),
            "units": _padded(units, config.num_units),
        }


def placed(mel: Float[np.ndarray, "F M"], quiet: float, shift: int, frames: int) -> Float[np.ndarray, "T M"]:
    """Return the frames of a clip in which a question begins `shift` frames late, float16."""
    clip = np.full((frames, mel.shape[1]), quiet, np.float16)
    kept = mel[: frames - shift]
    clip[shift : shift + len(kept)] = kept
    return clip


def _padded(values: Sequence[int], length: int) -> Int[np.ndarray, " L"]:
    found = np.full(length, NONE, np.int32)
    found[: len(values)] = values
    return found


def _opened(paths: Sequence[str]) -> list[RecordSource]:
    """Open folders of exchanges.

    Raises:
      DataError: One is unfinished, or their units or frames differ.
    """
    sources = [RecordSource(path, records.EXCHANGES) for path in paths]
    for name, what in (("units", "units of other centroids"), ("bands", "another number of bands")):
        found = [source.index[name]["sha256"] if name == "units" else source.index[name] for source in sources]
        if len(set(found)) > 1:
            raise DataError(f"{', '.join(paths)} have {what}: prepare them alike")
    return sources


def _batches(
    paths: Sequence[str], weights: Sequence[float], batch_size: int, seed: int, kept: Sequence[_Exchanges], draw: Any,
    identity: dict[str, str], seconds: float | None,
) -> BatchSource:  # fmt: skip
    """Shuffle and mix what is kept of several folders."""
    each = [shuffled(rows, fold_seed(rows.source.index["sha256"], seed), partial(draw, rows.source)) for rows in kept]
    dataset = mixed(each, weights or [float(len(rows)) for rows in kept])
    files = {f"{rows.source.folder}/{path.name}": path for rows in kept for path, _ in rows.source.shards}
    identity = {path: rows.source.index["sha256"] for path, rows in zip(paths, kept, strict=True)} | identity
    items = sum(map(len, kept))
    return BatchSource(dataset, batch_size, items, identity, amount(items, "exchanges", seconds), files)


def exchange_batches(
    config: ExchangeData,
    hearing: Hearing,
    units: int,
    prompt: Prompt,
    tokenizer: Any,
    tokenizer_sha256: str,
    seed: int,
) -> BatchSource:
    """Open batches of exchanges.

    `mel` float16 `[B, frames, M]`; `ids` int32 `[B, T]`, `SPEECH` where the speech stands and -1 behind the answer;
    `answer` int32 `[B, A]`, where its ids stand, -1 behind them; `units` int32 `[B, U]`, merged, -1 behind them.

    Args:
      config: Of the batches.
      hearing: Of the model.
      units: Of the speech decoder.
      prompt: Around the speech.
      tokenizer: Of the text model.
      tokenizer_sha256: Of its file.
      seed: Of the run.

    Raises:
      DataError: A folder is unfinished or damaged, made for another model, or holds nothing that fits.
    """
    maker, kept = ExchangeMaker(config, hearing, prompt, tokenizer), []
    sources, left_out, seconds = _opened(config.paths), Counter[str](), 0.0
    index = sources[0].index
    if index["bands"] != hearing.bands:
        raise DataError(
            f"{config.paths[0]} has frames of {index['bands']} bands, the encoder takes {hearing.bands}: prepare it "
            f"with --bands {hearing.bands}"
        )
    if index["units"]["count"] != units:
        raise DataError(
            f"{config.paths[0]} has {index['units']['count']} units, the speech decoder {units}: prepare it with other "
            "centroids, or change the decoder"
        )
    for source in sources:
        numbers, number = [], 0
        for samples, count, answer in (note for shard in source.index["shards"] for note in shard["exchanges"]):
            why = maker.misfit(samples, count, answer)
            if why is None:
                numbers.append(number)
                seconds += samples / SAMPLE_RATE
            else:
                left_out[why] += 1
            number += 1
        if not numbers:
            raise DataError(
                f"{source.folder} has no exchange that fits: "
                f"{'; '.join(f'{count} have {why}' for why, count in left_out.items()) or 'it is empty'}; "
                "prepare other recordings, or raise the limits of the recipe and of its model"
            )
        kept.append(_Exchanges(source, numbers))
    for why, count in sorted(left_out.items()):
        log.warning("left out of %s: %d exchanges with %s", ", ".join(config.paths), count, why)
    identity = {"tokenizer": tokenizer_sha256, "units": index["units"]["sha256"]}
    return _batches(config.paths, config.weights, config.batch_size, seed, kept, maker.draw, identity, seconds)
