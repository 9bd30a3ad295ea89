"""Batches of text alone: documents packed end to end, one token per frame, audio rows ZERO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moshijax.data.batches import (
    MOST_FRAMES,
    BatchSource,
    amount,
    check_sets,
    check_size,
    fold_seed,
    mixed,
    shares_of,
    shuffled,
)
from moshijax.data.records import RecordSource
from moshijax.errors import DataError
from moshijax.tokens import ZERO

if TYPE_CHECKING:
    from pathlib import Path

    from moshijax.data.text import Tokenizer
    from moshijax.lm.layouts import StreamLayout


@dataclass(frozen=True)
class TextData:
    """Text-only batches.

    Attributes:
      paths: folders made by `moshijax data prepare FILE.txt ...`; `weights` are their shares of the rows (empty: in
        proportion to tokens).
      batch_size, num_frames: of the grid [B, K, T].
    """

    paths: tuple[str, ...]
    batch_size: int = 8
    num_frames: int = 125
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_sets(self.paths, self.weights)
        check_size(MOST_FRAMES, self.batch_size, num_frames=self.num_frames)


class TokenStream:
    """The tokens of a prepared text, as if they were one array.

    Raises:
      DataError: the folder is unfinished or damaged, holds other data, or was prepared with another tokenizer.
    """

    def __init__(self, folder: str | Path, tokenizer: Tokenizer):
        self.source = RecordSource(folder)
        index = self.source.index
        if index["kind"] != "text":
            raise DataError(f"{folder} holds {index['kind']} data: give a folder of prepared text")
        if index["tokenizer_sha256"] != tokenizer.sha256:
            raise DataError(
                f"{folder} was prepared with another tokenizer, {index['tokenizer_sha256']}, not {tokenizer.sha256}: "
                "prepare it again with this one, or use that one"
            )
        self.documents = index["report"]["usable"]
        self.sha256 = index["sha256"]
        self._firsts = np.cumsum([0, *(count for shard in index["shards"] for count in shard["tokens"])])

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the tokens from `start` to `stop`, or to the end; int32. Reads the records that hold them."""
        stop = min(stop, len(self))
        first = int(np.searchsorted(self._firsts, start, side="right")) - 1
        last = int(np.searchsorted(self._firsts, stop, side="left"))
        found = np.concatenate([self.source[number]["tokens"] for number in range(first, last)])
        return found[start - self._firsts[first] : stop - self._firsts[first]].astype(np.int32)


class _Rows(Sequence):
    """The rows that a stream is cut into, ZERO behind its end."""

    def __init__(self, stream: TokenStream, length: int):
        self.stream, self._length = stream, length

    def __len__(self) -> int:
        return (len(self.stream) + self._length - 1) // self._length

    def __getitem__(self, index: int) -> np.ndarray:
        row = np.full(self._length, ZERO, np.int32)
        piece = self.stream.read(index * self._length, (index + 1) * self._length)
        row[: len(piece)] = piece
        return row


def text_batches(config: TextData, layout: StreamLayout, tokenizer: Tokenizer, seed: int) -> BatchSource:
    """Open batches {"codes": int32 [B, K, T]} with text in the text row and ZERO in the audio rows.

    Raises:
      DataError: a folder is unfinished or damaged, holds other data, or was prepared with another tokenizer.
    """

    def draw(text: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        del rng
        grid = np.full((len(layout.streams), config.num_frames), ZERO, np.int32)
        grid[0] = text
        return {"codes": grid}

    streams = [TokenStream(path, tokenizer) for path in config.paths]
    rows = [_Rows(stream, config.num_frames) for stream in streams]
    parts = {str(path): stream.sha256 for path, stream in zip(config.paths, streams, strict=True)}
    parts["tokenizer"] = tokenizer.sha256
    weights = config.weights or [float(len(stream)) for stream in streams]
    padding = [1 - len(of.stream) / max(1, len(of) * config.num_frames) for of in rows]
    content = f"{amount(sum(stream.documents for stream in streams), 'documents')}, {sum(map(len, streams))} tokens"
    datasets = [shuffled(of, fold_seed(of.stream.sha256, seed), draw) for of in rows]
    return BatchSource(
        mixed(datasets, weights),
        config.batch_size,
        sum(map(len, rows)),
        parts,
        content + shares_of(config.paths, weights, padding),
        {f"{stream.source.folder}/{path.name}": path for stream in streams for path, _ in stream.source.shards},
    )
