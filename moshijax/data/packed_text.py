"""Batches of text alone: documents packed end to end, one token per frame, audio rows ZERO."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moshijax import files
from moshijax.data import records
from moshijax.data.batches import BatchSource, amount, fold_seed, shuffled
from moshijax.errors import ConfigError, DataError
from moshijax.tokens import BOS, EOS, ZERO

if TYPE_CHECKING:
    from moshijax.data.text import Tokenizer
    from moshijax.lm.layouts import StreamLayout

_TOKENS = "tokens.npy"


@dataclass(frozen=True)
class TextData:
    """Text-only batches.

    Attributes:
      path: a text file (UTF-8, one document a line), or a folder made by `moshijax data prepare FILE.txt`.
      batch_size, num_frames: of the grid [B, K, T].
    """

    path: str
    batch_size: int = 8
    num_frames: int = 125

    def __post_init__(self) -> None:
        if self.num_frames < 1 or self.batch_size < 1:
            raise ConfigError(f"num_frames {self.num_frames} and batch_size {self.batch_size} must be at least 1")


def read_documents(path: str | Path) -> list[str]:
    """Return the non-empty lines of a UTF-8 text file.

    Raises:
      DataError: the file cannot be read, is not UTF-8 or is empty.
    """
    path = Path(path)
    try:
        lines = [" ".join(line.split()) for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start}): convert it to UTF-8") from error
    except OSError as error:
        raise DataError(f"text file {path} cannot be read: {error.strerror}") from error
    lines = [line for line in lines if line]
    if not lines:
        raise DataError(f"text file {path} is empty: it needs one document a line")
    return lines


def pack(documents: Iterable[str], tokenizer: Tokenizer) -> np.ndarray:
    """Join documents end to end, each as BOS, tokens, EOS; [n] int32."""
    pieces = [[BOS, *tokenizer.encode(document), EOS] for document in documents]
    return np.asarray([token for piece in pieces for token in piece], np.int32)


def prepare_text(path: str | Path, out_dir: str | Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """Pack a text file once, bound to the tokenizer's hash; return the content of `dataset.json`."""
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    documents = read_documents(path)
    tokens = pack(documents, tokenizer)
    with files.staged(out_dir / _TOKENS) as partial, open(partial, "wb") as file:
        np.save(file, tokens)
    index = {
        "format_version": records.FORMAT_VERSION,
        "kind": "text",
        "tokenizer_sha256": tokenizer.sha256,
        "documents": len(documents),
        "tokens": len(tokens),
        "shards": [],
        "sha256": records.digest(tokenizer.sha256, records.tree_digest(tokens)),
    }
    files.write_json(out_dir / records.INDEX, index)
    return index


class _Chunks(Sequence):
    def __init__(self, tokens: np.ndarray, length: int):
        self._tokens, self._length = tokens, length

    def __len__(self) -> int:
        return (len(self._tokens) + self._length - 1) // self._length

    def __getitem__(self, index: int) -> np.ndarray:
        row = np.full(self._length, ZERO, np.int32)
        piece = self._tokens[index * self._length : (index + 1) * self._length]
        row[: len(piece)] = piece
        return row


def text_batches(config: TextData, layout: StreamLayout, tokenizer: Tokenizer, seed: int) -> BatchSource:
    """Open batches {"codes": int32 [B, K, T]} with text in the text row and ZERO in the audio rows.

    Raises:
      DataError: no text, or it was packed with another tokenizer.
    """
    path = Path(config.path)
    if path.is_dir():
        index = records.read_index(path)
        if index.get("tokenizer_sha256") != tokenizer.sha256:
            raise DataError(f"{path} was packed with another tokenizer: prepare it again with this one")
        file, documents, identity = path / _TOKENS, index["documents"], index["sha256"]
        tokens = np.load(file, mmap_mode="r")
    else:
        file, read = path, read_documents(path)
        documents, tokens = len(read), pack(read, tokenizer)
        identity = records.digest(tokenizer.sha256, records.tree_digest(tokens))
    chunks = _Chunks(tokens, config.num_frames)

    def draw(text: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        del rng
        grid = np.full((len(layout.streams), config.num_frames), ZERO, np.int32)
        grid[0] = text
        return {"codes": grid}

    dataset = shuffled(chunks, fold_seed(identity, seed), draw)
    content = f"{amount(documents, 'documents')}, {len(tokens)} tokens"
    return BatchSource(dataset, config.batch_size, len(chunks), {str(path): identity}, content, {str(file): file})
