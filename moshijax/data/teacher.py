"""Phonetic features that the codec's semantic level is distilled from, kept in shards beside the recordings.

A teacher turns a recording into features [channels, T50, F] at 50 Hz. Ours reads the phonemes and their times in the
sidecar; one that runs a speech model on the samples (`moshijax.data.speech_teacher`) is read by the same code.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from moshijax.data import buckets, records
from moshijax.data.checks import CheckRules, all_labels_named, check_header, check_recording, unmade
from moshijax.data.findings import CheckedItem
from moshijax.data.job import RECORDINGS, Job, Progress, Runner, recordings_sha256, run_job
from moshijax.data.manifest import Item, Manifest
from moshijax.data.shards import Record, ShardPlan
from moshijax.data.transcript import label_of, read_sidecar
from moshijax.data.twins import refuse_twins
from moshijax.errors import ConfigError, DataError

RATE = 50
_CHUNK = 30 * RATE  # frames of a record


class Teacher(Protocol):
    """What turns recordings into features.

    Attributes:
      kind: recorded with the features.
      dim: F, width of a feature.
      transcribed: it reads the sidecar, so that the recording must have one, and two channels.
    """

    kind: str
    dim: int
    transcribed: bool

    def features(self, item: Item, duration: float, speakers: dict[str, str]) -> np.ndarray:
        """Return the features of a recording, [channels, ceil(duration * 50), dim] float32.

        Args:
          item: of the manifest.
          duration: in seconds.
          speakers: label in the sidecar -> "model" or "user".
        """
        ...


# Articulation of the symbols of English speech. Consonants: place (0 lips .. 1 glottis), manner, voice.
# Vowels: height, backness, rounding.
_MANNERS = ("stop", "affricate", "fricative", "nasal", "approximant", "tap")
_CONSONANTS = {
    "p": (0.0, "stop", 0), "b": (0.0, "stop", 1), "m": (0.0, "nasal", 1), "f": (0.15, "fricative", 0),
    "v": (0.15, "fricative", 1), "θ": (0.3, "fricative", 0), "ð": (0.3, "fricative", 1), "t": (0.45, "stop", 0),
    "d": (0.45, "stop", 1), "n": (0.45, "nasal", 1), "s": (0.45, "fricative", 0), "z": (0.45, "fricative", 1),
    "ɾ": (0.45, "tap", 1), "l": (0.45, "approximant", 1), "ɫ": (0.5, "approximant", 1), "ɹ": (0.5, "approximant", 1),
    "r": (0.5, "approximant", 1), "ʃ": (0.55, "fricative", 0), "ʒ": (0.55, "fricative", 1),
    "tʃ": (0.55, "affricate", 0), "dʒ": (0.55, "affricate", 1), "j": (0.65, "approximant", 1), "k": (0.8, "stop", 0),
    "ɡ": (0.8, "stop", 1), "g": (0.8, "stop", 1), "ŋ": (0.8, "nasal", 1), "x": (0.8, "fricative", 0),
    "w": (0.4, "approximant", 1), "h": (1.0, "fricative", 0), "ʔ": (1.0, "stop", 0),
}  # fmt: skip
_VOWELS = {
    "i": (1.0, 0.0, 0), "ɪ": (0.85, 0.1, 0), "ᵻ": (0.85, 0.3, 0), "e": (0.7, 0.0, 0), "ɛ": (0.4, 0.1, 0),
    "æ": (0.2, 0.1, 0), "a": (0.0, 0.3, 0), "ɐ": (0.2, 0.5, 0), "ə": (0.5, 0.5, 0), "ɚ": (0.5, 0.55, 0),
    "ɜ": (0.45, 0.5, 0), "ʌ": (0.35, 0.7, 0), "ɑ": (0.0, 0.9, 0), "ɒ": (0.05, 1.0, 1), "ɔ": (0.35, 1.0, 1),
    "o": (0.7, 1.0, 1), "ʊ": (0.85, 0.85, 1), "u": (1.0, 1.0, 1), "y": (1.0, 0.0, 1),
}  # fmt: skip
_SYMBOLS = ("silence", *_CONSONANTS, *_VOWELS, "other")
_ARTICULATION = 4 + len(_MANNERS) + 4
_SMOOTHING = np.array([0.25, 0.5, 0.25], np.float32)


def _parts(symbol: str) -> list[str]:
    """A phoneme's sounds in order: a diphthong has two, a length mark or stress none of its own."""
    text = unicodedata.normalize("NFC", symbol).strip("ˈˌ")
    if text in _CONSONANTS:
        return [text]
    parts = [c for c in text if c in _CONSONANTS or c in _VOWELS]
    return parts or ["other"]


def _vector(symbol: str) -> np.ndarray:
    """One-hot symbol and articulation, equally long parts, so that near sounds have near vectors."""
    vector = np.zeros(len(_SYMBOLS) + _ARTICULATION, np.float32)
    vector[_SYMBOLS.index(symbol)] = 1.0
    body = vector[len(_SYMBOLS) :]
    if symbol in _CONSONANTS:
        place, manner, voice = _CONSONANTS[symbol]
        body[0], body[1], body[2] = 1.0, math.cos(math.pi * place), math.sin(math.pi * place)
        body[3] = voice
        body[4 + _MANNERS.index(manner)] = 1.0
    elif symbol in _VOWELS:
        height, back, rounded = _VOWELS[symbol]
        body[3] = 1.0
        body[-4:] = 1.0, 2 * height - 1, 2 * back - 1, rounded
    norm = np.linalg.norm(body)
    if norm:
        body /= norm
    return vector


class PhonemeTeacher:
    """Features from the sidecar's phonemes: one-hot symbol and articulation, smoothed over 60 ms."""

    kind = "phonemes"
    dim = len(_SYMBOLS) + _ARTICULATION
    transcribed = True

    def __init__(self) -> None:
        self._vectors = {symbol: _vector(symbol) for symbol in _SYMBOLS}

    def features(self, item: Item, duration: float, speakers: dict[str, str]) -> np.ndarray:
        """Return the features of both speakers; see `Teacher`.

        Raises:
          DataError: the sidecar has no phonemes, or one of another form.
        """
        content = read_sidecar(item.sidecar)
        if not isinstance(content.get("phonemes"), list):
            raise DataError(f'{item.sidecar} has no list "phonemes" of [symbol, [start, end], speaker]')
        frames = math.ceil(duration * RATE - 1e-6)
        features = np.zeros((2, frames, self.dim), np.float32)
        features[:] = self._vectors["silence"]
        try:
            for symbol, (start, end), label in content["phonemes"]:
                channel = 0 if speakers[label_of(label)] == "model" else 1
                parts = _parts(symbol)
                edges = np.linspace(start, end, len(parts) + 1) * RATE
                for part, a, b in zip(parts, edges[:-1], edges[1:], strict=True):
                    first = max(0, round(a))
                    features[channel, first : max(round(b), first + 1)] = self._vectors[part]
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"{item.sidecar} has a phoneme that is not [symbol, [start, end], speaker]: {error}"
            ) from error
        padded = np.pad(features, ((0, 0), (1, 1), (0, 0)), mode="edge") if frames else features
        return sum(w * padded[:, i : i + frames] for i, w in enumerate(_SMOOTHING)) if frames else features


def make_teacher(kind: str = "phonemes", model: str | None = None, layer: int = -1) -> Teacher:
    """Make a teacher by its kind.

    Args:
      kind: `phonemes`, or `wavlm` for a speech model of Transformers.
      model: of `wavlm`: folder or name of the model.
      layer: of `wavlm`: which hidden states; 0 is the input of the first layer, -1 the output of the last.

    Raises:
      ConfigError: an unknown kind, or a model where none belongs or none where one does.
      MissingPackage: torch or transformers is not installed.
    """
    if kind not in ("phonemes", "wavlm"):
        raise ConfigError(f"teacher {kind!r} is not known: use phonemes or wavlm")
    if (kind == "wavlm") != (model is not None):
        raise ConfigError(f"teacher {kind!r} with model {model!r}: a model belongs to wavlm, and wavlm needs one")
    if kind == "phonemes":
        return PhonemeTeacher()
    from moshijax.data.speech_teacher import SpeechTeacher

    return SpeechTeacher(model, layer)


def compute_features(
    manifest: Manifest,
    out_dir: str | Path | None = None,
    teacher: Teacher | None = None,
    rules: CheckRules | None = None,
    shard_items: int = 256,
    progress: Progress | None = None,
    runner: Runner = run_job,
) -> Job:
    """Write `teacher.json` and shards of {id, features float16 [channels, 1500, F]}: 30 s each, the last one less.

    Args:
      manifest: of the recordings.
      out_dir: default is the folder `teacher` beside the manifest.
      teacher: default is the phonetic one.
      rules: for recordings with transcripts.
      shard_items: recordings per shard.
      progress: called after every item with items done, items in all, and the report so far.
      runner: of the job.

    Returns:
      The content of `teacher.json`, the report of accepted and rejected items, and the number of shards written.

    Raises:
      DataError: nothing is usable, strict rules met a rejected item, or `out_dir` holds other features.
    """
    rules, teacher = rules or CheckRules(), teacher or PhonemeTeacher()
    out_dir = buckets.place(out_dir) if out_dir is not None else manifest.path.parent / "teacher"
    if rules.strict:
        refuse_twins(manifest.items)
    with all_labels_named(manifest.items, rules):
        return runner(manifest, out_dir, FeaturePlan(shard_items, rules.strict, teacher, rules), progress)


@dataclass(frozen=True)
class FeaturePlan(ShardPlan):
    """Recordings to the features of a teacher.

    Attributes:
      teacher: who computes them.
      rules: for recordings with transcripts.
    """

    index_name = records.TEACHER
    noted = "ids"

    teacher: Teacher
    rules: CheckRules

    def deciding(self) -> dict[str, Any]:
        """See `ShardPlan`."""
        rules = self.rules
        of_transcripts = {"channels": rules.channels, "speakers": dict(rules.speakers), "min_score": rules.min_score}
        return {"kind": self.teacher.kind, **(of_transcripts if self.teacher.transcribed else {})}

    def about(self) -> dict[str, Any]:
        """See `ShardPlan`."""
        return {"kind": self.teacher.kind, "dim": self.teacher.dim, "rate": RATE, "chunk_frames": _CHUNK}

    def note(self, record: Record) -> str:
        """Return the item's id."""
        return record["id"]

    def reads(self, item: Item) -> Sequence[Path]:
        """See `ShardPlan`."""
        return (item.audio, *item.transcripts) if self.teacher.transcribed else (item.audio,)

    def make(self, items: Iterable[Item]) -> Iterator[CheckedItem | Record]:
        """See `ShardPlan`."""
        for item in items:
            checked = check_header(item, self.rules) if self.teacher.transcribed else check_recording(item)
            if checked.rejected is None:
                try:
                    features = self.teacher.features(item, checked.info.duration, dict(self.rules.speakers))
                    features = features.astype(np.float16)
                    records.pack({"id": item.id})
                except Exception as error:
                    checked.kind, checked.rejected = unmade(item, error, "teacher")
                else:
                    for start in range(0, features.shape[1], _CHUNK):
                        yield {"id": item.id, "features": features[:, start : start + _CHUNK]}
            yield checked


class TeacherFeatures:
    """Features by item id.

    Raises:
      DataError: they are unfinished, or of other recordings than `manifest`.
    """

    def __init__(self, folder: str | Path, manifest: Manifest | None = None):
        self._source = records.RecordSource(folder, records.TEACHER)
        index = self._source.index
        if manifest is not None and index["plan"][RECORDINGS] != recordings_sha256(manifest):
            raise DataError(
                f"teacher features {folder} are of other recordings than {manifest.path}: delete them and run "
                "`moshijax data teacher` again"
            )
        self.kind, self.dim, self.rate, self.sha256 = (index[name] for name in ("kind", "dim", "rate", "sha256"))
        self._chunk = index["chunk_frames"]
        self._numbers: dict[str, list[int]] = {}  # of the records of each item
        for number, name in enumerate(name for shard in index["shards"] for name in shard["ids"]):
            self._numbers.setdefault(name, []).append(number)

    def __contains__(self, name: str) -> bool:
        return name in self._numbers

    @property
    def names(self) -> list[str]:
        """The ids of all items."""
        return list(self._numbers)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return frames `start` to `stop` of an item, or to its end; reads the chunks that hold them.

        Returns:
          [channels, frames, F] float16.
        """
        numbers, first = self._numbers[name], start // self._chunk
        needed = numbers[first : None if stop is None else -(-stop // self._chunk)]
        found = np.concatenate([self._source[number]["features"] for number in needed], axis=1)
        offset = first * self._chunk
        return found[:, start - offset : None if stop is None else stop - offset]
