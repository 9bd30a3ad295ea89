"""A tokenizer from files of text, of which a sample that does not depend on their size is held in memory."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from moshijax.data.documents import documents, read_corpus
from moshijax.data.text import short_lines
from moshijax.errors import ConfigError, DataError

_LONGEST = 1000  # bytes of a sentence


@dataclass
class Sample:
    """Sentences drawn from files of text.

    Attributes:
      sentences: stretches of documents of at most 1000 bytes.
      of: how many there are in the files.
      documents: that they are of.
      kinds: documents that cannot be used, by kind of fault.
      first: fault, in words; None: none.
    """

    sentences: list[str] = field(default_factory=list)
    of: int = 0
    documents: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    first: str | None = None


def sample(
    paths: Sequence[str | Path], most: int, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> Sample:
    """Draw sentences evenly from all documents of files, one document a line; a function of texts, `most` and `seed`.

    Args:
      paths: files of UTF-8 text or patterns, as for `moshijax data prepare`.
      most: sentences.
      seed: of the draw.
      progress: called after every megabyte with (pieces done, pieces in all).

    Raises:
      DataError: a file cannot be read, or no document is usable.
    """
    if most < 1:
        raise ConfigError(f"most is {most}: draw at least 1 sentence")
    found, rng, corpus = Sample(), random.Random(seed), read_corpus(paths)
    for number, piece in enumerate(corpus.items, 1):
        for _, text in documents(piece):
            if not isinstance(text, str):
                found.kinds[text.kind] += 1
                found.first = found.first or f"{piece.path}, byte {text.place or 0}: the document {text.reason}"
                continue
            found.documents += 1
            for sentence in short_lines(text, _LONGEST):
                found.of += 1
                if len(found.sentences) < most:
                    found.sentences.append(sentence)
                elif (place := rng.randrange(found.of)) < most:
                    found.sentences[place] = sentence
        if progress is not None:
            progress(number, len(corpus.items))
    if not found.sentences:
        raise DataError(f"{corpus.path} has no usable document: {found.first or 'it is empty'}")
    return found
