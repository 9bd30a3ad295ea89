"""Two-channel recordings to questions and answers, which LLaMA-Omni is trained on.

A record is one exchange: what a user says until the model speaks, as log-mel frames, and what the model then says, as
text and as units of speech. A user whom nobody answers makes an exchange too, with an empty answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from moshijax.data import records
from moshijax.data.checks import CheckRules, all_labels_named, judge_apart, signal_blocks, unmade
from moshijax.data.findings import CheckedItem
from moshijax.data.isolation import Isolated
from moshijax.data.job import Job, Progress, run_job
from moshijax.data.manifest import Item, Manifest
from moshijax.data.shards import Record, ShardPlan
from moshijax.data.speech_units import Centroids, merged
from moshijax.data.teacher import RATE, PhonemeTeacher, TeacherFeatures
from moshijax.data.transcript import Word
from moshijax.data.twins import refuse_twins
from moshijax.errors import ConfigError, DataError
from moshijax.omni import spectrogram
from moshijax.omni.spectrogram import CLIP, HOP, SAMPLE_RATE, WINDOW

if TYPE_CHECKING:
    from jaxtyping import Float

_LONG_SECONDS = 120.0
#: Samples of a unit.
UNIT = SAMPLE_RATE // RATE


@dataclass(frozen=True)
class ExchangeConfig:
    """How recordings become exchanges.

    Attributes:
      rules: How items are judged; two channels, as the questions must be apart from the answers.
      shard_items: Recordings of one shard.
      bands: Of the log-mel frames, as the encoder has them.
      question_margin: Seconds of the user's channel that are kept before and behind the words of a question.
      answer_margin: The same of an answer.
      speech: Keep the answers' samples too, which a vocoder is trained on.
    """

    rules: CheckRules = field(default_factory=CheckRules)
    shard_items: int = 256
    bands: int = 128
    question_margin: float = 0.3
    answer_margin: float = 0.06
    speech: bool = False

    def __post_init__(self) -> None:
        if self.shard_items < 1:
            raise ConfigError(f"shard_items is {self.shard_items}: use at least 1")
        if self.bands not in spectrogram.BANDS:
            raise ConfigError(f"bands is {self.bands}: an encoder has {' or '.join(map(str, spectrogram.BANDS))}")
        if self.rules.streams != "two":
            raise ConfigError(f"streams is {self.rules.streams!r}: questions and answers take a channel each")
        for name in ("question_margin", "answer_margin"):
            if not 0 <= getattr(self, name) <= 5:
                raise ConfigError(f"{name} is {getattr(self, name)}: give 0 to 5 seconds")


@dataclass(frozen=True)
class Exchange:
    """What was said.

    Attributes:
      question: Words of the user.
      answer: Words of the model; none where nobody answers.
    """

    question: tuple[Word, ...]
    answer: tuple[Word, ...]


def exchanges_of(words: Sequence[Word]) -> tuple[list[Exchange], Counter[str]]:
    """Cut a conversation into exchanges, and count what is odd.

    A question begins with the first word of the user after the model has spoken. Counted are words of the model before
    anybody asks, which are left out ("unasked_word"), questions that nobody answers ("unanswered"), and answers that
    begin before the question has ended ("early_answer").

    Args:
      words: In any order.
    """
    found: list[Exchange] = []
    counts: Counter[str] = Counter()
    question: list[Word] = []
    answer: list[Word] = []
    for word in [*sorted(words, key=lambda w: w.start), None]:
        if question and (word is None or answer and word.speaker == "user"):
            counts["unanswered"] += not answer
            counts["early_answer"] += bool(answer) and answer[0].start < question[-1].end
            found.append(Exchange(tuple(question), tuple(answer)))
            question, answer = [], []
        if word is None:
            break
        if word.speaker == "user":
            question.append(word)
        elif question:
            answer.append(word)
        else:
            counts["unasked_word"] += 1
    return found, +counts


def span(words: Sequence[Word], others: Iterable[Word], margin: float, duration: float) -> tuple[float, float]:
    """Return from when to when a speaker says some words, with a margin that reaches into none of their others."""
    start, end = words[0].start, max(word.end for word in words)
    before = [word.end for word in others if word.end <= start]
    behind = [word.start for word in others if word.start >= end]
    return max([0.0, start - margin, *before]), min([duration, end + margin, *behind])


@partial(jax.jit, static_argnums=(1, 2))
def _log_mel(waveform_BN: Float[np.ndarray, "B N"], bands: int, samples: int) -> Float[np.ndarray, "B T M"]:
    return spectrogram.log_mel(waveform_BN, bands, samples)


def question_mel(waveform: Float[np.ndarray, " N"], bands: int) -> tuple[Float[np.ndarray, "T M"], float]:
    """Return the frames of a question that hear any of it, and the value of those behind it in a padded clip.

    Args:
      waveform: At 16 kHz, at most 30 s.
      bands: M.

    Returns:
      float16 frames, and the value of the silence behind them.
    """
    frames = min(CLIP // HOP, -(-(len(waveform) + WINDOW // 2) // HOP))
    # A second is the step of the lengths that are compiled; a shorter clip has the same frames.
    samples = min(CLIP, -(-(len(waveform) + 2 * WINDOW) // SAMPLE_RATE) * SAMPLE_RATE)
    padded = np.zeros((1, samples), np.float32)
    padded[0, : len(waveform)] = waveform[:samples]
    mel = np.asarray(_log_mel(padded, bands, samples))[0]
    return mel[:frames].astype(np.float16), float(np.float16(mel[-1, 0]))


@dataclass(frozen=True)
class ExchangePlan(ShardPlan):
    """Recordings to exchanges.

    Attributes:
      features: Folder that `moshijax data teacher` made for these recordings.
      centroids: File of centroids of these features.
      config: How recordings become exchanges.
    """

    index_name = records.EXCHANGES
    noted = "exchanges"

    features: str
    centroids: str
    config: ExchangeConfig

    def deciding(self) -> dict[str, Any]:
        """See `ShardPlan`."""
        config, rules = self.config, self.config.rules
        of_rules = {"channels": rules.channels, "speakers": dict(rules.speakers), "min_score": rules.min_score}
        names = ("bands", "question_margin", "answer_margin", "speech")
        return {
            "features_sha256": TeacherFeatures(self.features).sha256,
            "centroids_sha256": Centroids.load(self.centroids).sha256,
            **of_rules,
            **{name: getattr(config, name) for name in names},
        }

    def about(self) -> dict[str, Any]:
        """See `ShardPlan`."""
        centroids = Centroids.load(self.centroids)
        units = {"sha256": centroids.sha256, "source": centroids.where, "count": len(centroids.table_UD), "rate": RATE}
        return {
            "kind": "exchanges",
            "bands": self.config.bands,
            "sample_rate": SAMPLE_RATE,
            "units": units,
            "speech": self.config.speech,
        }

    def note(self, record: Record) -> list[Any]:
        """Return samples of the question, merged units, and the text of the answer."""
        return [record["samples"], len(merged(record["units"])), record["answer"]]

    def reads(self, item: Item) -> Sequence[Path]:
        """See `ShardPlan`."""
        return item.audio, *item.transcripts

    def make(self, items: Iterable[Item]) -> Iterator[CheckedItem | Record]:
        """See `ShardPlan`; one that gives no exchange is rejected."""
        features, centroids = TeacherFeatures(self.features), Centroids.load(self.centroids)
        with Isolated() as isolated:
            for item in items:
                checked, _, signal = judge_apart(isolated, item, self.config.rules, SAMPLE_RATE, _LONG_SECONDS)
                made: list[Record] = []
                if checked.rejected is None:
                    try:
                        if signal is None:  # a long one was judged piece by piece
                            signal = np.concatenate(list(signal_blocks(checked, self.config.rules, SAMPLE_RATE)))
                        made = list(self._records(checked, signal, features, centroids))
                        for record in made:
                            records.pack(record)
                    except Exception as error:
                        checked.kind, checked.rejected = unmade(item, error, "exchange")
                        made = []
                yield from made
                yield checked

    def _records(
        self, checked: CheckedItem, signal: Float[np.ndarray, "N 2"], features: TeacherFeatures, centroids: Centroids
    ) -> Iterator[Record]:
        """Yield the records of an item, which has at least one.

        Raises:
          DataError: It has none, or its features are missing.
        """
        item, config, duration = checked.item, self.config, checked.info.duration
        found, counts = exchanges_of(checked.words)
        checked.flags.update(counts)
        if not found:
            raise DataError(f"recording {item.audio} has no word of the user: leave it out")
        if item.id not in features:
            raise DataError(f"recording {item.audio} has no features in {self.features}: run `data teacher` again")
        by = {who: [word for word in checked.words if word.speaker == who] for who in ("user", "model")}
        made = 0
        for number, exchange in enumerate(found):
            start, end = span(exchange.question, by["user"], config.question_margin, duration)
            waveform = signal[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE), 1]
            if len(waveform) > CLIP:
                checked.flags["long_question"] += 1  # it is left out
                continue
            mel, quiet = question_mel(waveform, config.bands)
            spoken, speech = np.zeros(0, np.int16), np.zeros(0, np.float32)
            if exchange.answer:
                start, end = span(exchange.answer, by["model"], config.answer_margin, duration)
                first = int(start * RATE + 1e-6)
                last = max(first + 1, round(end * RATE))
                spoken = centroids.units(self._model_features(features, checked, first, last))
                speech = signal[first * UNIT : (first + len(spoken)) * UNIT, 0]
                speech = np.pad(speech, (0, len(spoken) * UNIT - len(speech)))
            yield {
                "id": f"{item.id}#{number}" if len(found) > 1 else item.id,
                "mel": mel,
                "quiet": quiet,
                "samples": len(waveform),
                "question": " ".join(word.text for word in exchange.question),
                "answer": " ".join(word.text for word in exchange.answer),
                "units": spoken,
                **({"speech": np.round(np.clip(speech, -1, 1) * 32767).astype(np.int16)} if config.speech else {}),
                "provenance": {"path": item.id, "channels": list(checked.channels)},
            }
            made += 1
        if not made:
            raise DataError(f"recording {item.audio} has only questions longer than {CLIP // SAMPLE_RATE} s: cut it")

    def _model_features(
        self, features: TeacherFeatures, checked: CheckedItem, first: int, last: int
    ) -> Float[np.ndarray, "T D"]:
        channel = 0 if features.kind == PhonemeTeacher.kind else checked.channels[0]
        return features.read(checked.item.id, first, last)[channel].astype(np.float32)


def prepare_exchanges(
    manifest: Manifest,
    out_dir: str | Path,
    features: str | Path,
    centroids: str | Path,
    config: ExchangeConfig | None = None,
    progress: Progress | None = None,
) -> Job:
    """Write `exchanges.json` and shards of records {id, mel, quiet, samples, question, answer, units, provenance}.

    `mel` is float16 `[T, bands]`, 100 frames a second; `quiet` the value of the frames behind it in a padded clip;
    `units` int16, 50 a second, not merged; `speech` int16 at 16 kHz, where it is kept, as long as they are.

    Args:
      manifest: Of the recordings.
      out_dir: Folder of the shards.
      features: Folder that `moshijax data teacher` made for these recordings.
      centroids: File of centroids of these features.
      config: How recordings become exchanges.
      progress: Called after every item with (items done, items in all, report so far).

    Returns:
      The content of `exchanges.json`, the report of accepted and rejected items, and the number of shards written.

    Raises:
      DataError: Nothing is usable, strict rules met a rejected item, features or centroids are of something else, or
        `out_dir` holds the start of another job.
    """
    config = config or ExchangeConfig()
    dim, table = TeacherFeatures(features, manifest).dim, Centroids.load(centroids)
    if table.table_UD.shape[1] != dim:
        raise DataError(
            f"{centroids} has centroids of width {table.table_UD.shape[1]}, the features of {features} have {dim}: "
            "make the centroids of features of the same kind"
        )
    plan = ExchangePlan(config.shard_items, config.rules.strict, str(features), str(centroids), config)
    if config.rules.strict:
        refuse_twins(manifest.items)
    with all_labels_named(manifest.items, config.rules):
        return run_job(manifest, Path(out_dir), plan, progress)
