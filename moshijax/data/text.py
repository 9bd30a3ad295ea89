"""Text tokens in Moshi's id layout (EPAD 0, BOS 1, EOS 2, PAD 3): of SentencePiece models, or those of a backbone."""

from __future__ import annotations

import hashlib
import io
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path

import numpy as np

from moshijax import files, optional
from moshijax.data.byte_pairs import BytePairs
from moshijax.errors import ConfigError, DataError
from moshijax.tokens import BOS, EOS, EPAD, PAD

_LONGEST_LINE = 65_536  # bytes


class UnknownCharacters(DataError):
    """A text with characters that the tokenizer lacks."""


class SentencePieces:
    """The processor of a SentencePiece model.

    Args:
      model: the serialised model.
      name: of the model in messages.

    Attributes:
      file_name: by which a folder holds it.
      pieces: the string of every id.

    Raises:
      DataError: it is no such model, or has other special ids than Moshi's.
    """

    file_name = "tokenizer.model"

    def __init__(self, model: bytes, name: str):
        spm = optional.load("sentencepiece")
        try:
            self._processor = spm.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:  # whose text is a line of SentencePiece's source
            raise DataError(f"{name} is not a SentencePiece model: give the tokenizer.model of a run") from error
        ids = (self._processor.unk_id(), self._processor.bos_id(), self._processor.eos_id(), self._processor.pad_id())
        if ids != (EPAD, BOS, EOS, PAD):
            raise DataError(
                f"{name} has unk, bos, eos, pad = {ids}; {(EPAD, BOS, EOS, PAD)} are needed: "
                "train it with `moshijax data tokenizer`"
            )
        self.pieces = tuple(self._processor.id_to_piece(i) for i in range(self._processor.vocab_size()))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of texts; `EPAD` for a character that the model lacks."""
        return self._processor.encode(list(texts))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids."""
        return self._processor.decode(list(ids))


class Tokenizer:
    """A SentencePiece model, or the `tokenizer.json` of a backbone (`moshijax.data.byte_pairs`).

    Word texts are NFC-normalised; ids below 4 are special and never come from `encode`.

    Args:
      model: the serialised model.
      name: of the model in messages.

    Attributes:
      model: the serialised model, bytes.
      sha256: of `model`; binds prepared text to it.
      pieces: the string of every id, in order ("▁" stands for a space).
      file_name: by which a folder holds it, `tokenizer.model` or `tokenizer.json`.
      takes_words: an artifact can tokenise text with it, because it is a SentencePiece model.
    """

    def __init__(self, model: bytes, name: str = "the tokenizer"):
        if not model:
            raise DataError(f"{name} is empty: copy it again")
        processor = BytePairs if model.lstrip().startswith(b"{") else SentencePieces
        self._processor = processor(model, name)
        self.model = model
        self.sha256 = hashlib.sha256(model).hexdigest()
        self.pieces, self.file_name = self._processor.pieces, self._processor.file_name
        self.takes_words = processor is SentencePieces
        self._encode = lru_cache(maxsize=100_000)(self._encode_uncached)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a tokenizer from a file, or `tokenizer.model` or else `tokenizer.json` from a folder.

        Raises:
          DataError: it cannot be read, is of neither kind, or has other special ids than Moshi's.
        """
        path = cls.file(path)
        try:
            model = path.read_bytes()
        except OSError as error:
            raise DataError(f"tokenizer {path} cannot be read: {files.reason(path, error)}") from error
        files.check_fetched(path)
        return cls(model, f"tokenizer {path}")

    @staticmethod
    def file(path: str | Path) -> Path:
        """Return a tokenizer's file: the path itself, or in a folder `tokenizer.model`, or else `tokenizer.json`."""
        path = Path(path)
        if not path.is_dir():
            return path
        places = [path / kind.file_name for kind in (SentencePieces, BytePairs)]
        return next((place for place in places if place.is_file()), places[0])

    def save(self, path: str | Path) -> None:
        """Write the model to a file."""
        files.write(Path(path), self.model)

    def __getstate__(self) -> bytes:
        return self.model

    def __setstate__(self, model: bytes) -> None:
        self.__init__(model)

    @property
    def vocab_size(self) -> int:
        """Number of pieces."""
        return len(self.pieces)

    def _encode_uncached(self, text: str) -> tuple[int, ...]:
        ids = tuple(self._processor.encode([unicodedata.normalize("NFC", text)])[0])
        if EPAD in ids:
            raise UnknownCharacters(f"{text!r} has characters that the tokenizer lacks: train it with byte_fallback")
        return ids

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, or of one word (each word is tokenised alone, as on the grid), without BOS.

        Raises:
          UnknownCharacters: a character that the tokenizer lacks.
        """
        return list(self._encode(text))

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray | None]:
        """Return the ids of long texts, int32, without BOS; None for one with a character that the tokenizer lacks.

        The texts are shared out among the cores, and unlike those of `encode` not remembered.
        """
        found = self._processor.encode([unicodedata.normalize("NFC", text) for text in texts])
        arrays = (np.asarray(ids, np.int32) for ids in found)
        return [None if (ids == EPAD).any() else ids for ids in arrays]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids; special ids and negative ones are left out."""
        return self._processor.decode([int(i) for i in ids if int(i) > PAD])


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    byte_fallback: bool = True,
    seed_sentencepiece_size: int = 1_000_000,
    character_coverage: float = 1.0,
) -> Tokenizer:
    """Train a unigram model on texts (any number of words each): digits split, NFC, nothing else changed.

    A small corpus may give fewer pieces than `vocab_size`; with `byte_fallback`, 256 of them are bytes, so that any
    text can be written. The same texts give the same model.

    Args:
      texts: what to train on.
      vocab_size: pieces, special ids and bytes included.
      byte_fallback: characters that are no piece become bytes.
      seed_sentencepiece_size: candidates to begin with, see SentencePiece.
      character_coverage: share of all letters of the texts whose characters become pieces, the most frequent first.

    Raises:
      ConfigError: `vocab_size` is too small for the special ids, bytes and characters.
      DataError: no text.
    """
    spm = optional.load("sentencepiece")
    lines = [line for text in texts for line in short_lines(text, _LONGEST_LINE)]
    if not lines:
        raise DataError("there is no text to train a tokenizer on: give at least one sentence")
    characters = _covering(lines, character_coverage) + 1
    smallest = 4 + 256 * byte_fallback + characters
    if vocab_size < smallest:
        raise ConfigError(
            f"vocab_size is {vocab_size}, but 4 special ids, {256 * byte_fallback} bytes and {characters} characters "
            f"need {smallest}: raise it"
        )
    model = io.BytesIO()
    try:
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            split_digits=True,
            byte_fallback=byte_fallback,
            character_coverage=character_coverage,
            normalization_rule_name="identity",
            unk_id=EPAD,
            bos_id=BOS,
            eos_id=EOS,
            pad_id=PAD,
            unk_surface="",
            num_threads=1,
            seed_sentencepiece_size=seed_sentencepiece_size,
            max_sentence_length=_LONGEST_LINE,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ConfigError(f"SentencePiece cannot train with vocab_size {vocab_size}: {error}") from error
    return Tokenizer(model.getvalue())


def short_lines(text: str, most: int) -> Iterator[str]:
    """Cut a text at spaces into NFC lines of at most `most` bytes, since SentencePiece leaves out what is longer.

    Only a word that is longer itself is cut inside.
    """
    line: list[str] = []
    size = 0
    for word in unicodedata.normalize("NFC", text).split():
        length = len(word.encode("utf-8", "replace"))
        if line and size + length > most:
            yield " ".join(line)
            line, size = [], 0
        while length > most:
            yield word[: most // 4]
            word = word[most // 4 :]
            length = len(word.encode("utf-8", "replace"))
        line.append(word)
        size += length + 1
    if line:
        yield " ".join(line)


def _covering(lines: Iterable[str], share: float) -> int:
    """How many of the most frequent characters make up a share of all."""
    counts = Counter(chain.from_iterable(lines))
    left, found = share * counts.total(), 0
    for _, count in counts.most_common():
        if left <= 0:
            break
        left -= count
        found += 1
    return found


def words_of(manifest_words: Iterable[Sequence]) -> list[str]:
    """Return texts to train on from word lists: the words of each item joined by spaces."""
    return [" ".join(word.text for word in words) for words in manifest_words]
