"""Documents that are nearly the same, by MinHash signatures over all shards."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from moshijax import optional
from moshijax.data.raw_text import words

BUCKETS = 14
_HASHES = 8  # of a bucket
_WORDS = 5


@cache
def _signer() -> Any:
    """Return datatrove's first stage, which makes signatures; its output folder is not used."""
    minhash = optional.load("datatrove.pipeline.dedup.minhash")
    config = minhash.MinhashConfig(n_grams=_WORDS, num_buckets=BUCKETS, hashes_per_bucket=_HASHES)
    return minhash.MinhashDedupSignature("memory://signatures", config, language=words.tokenizer())


def signature(text: str) -> np.ndarray:
    """Return the MinHash signature of a document, uint64 [14]: of every bucket of 8 hashes of 5-grams, one hash.

    Two documents with a share s of their 5-grams in common have one of the 14 equal with probability
    1 - (1 - s^8)^14: a half at s = 0.7, 0.92 at 0.8, 0.9999 at 0.9 (the values of datatrove).
    """
    digest = optional.load("xxhash").xxh3_64_intdigest
    shingles = _signer().get_shingles(text)
    if not len(shingles):  # fewer than five words: equal or not
        return np.full(BUCKETS, digest(" ".join(words.plain_words(text)).encode()), np.uint64)
    parts = _signer().get_signature(shingles)
    return np.asarray([digest(np.asarray(part, np.uint64).tobytes()) for part in parts], np.uint64)


def first_of_each(signatures: np.ndarray) -> np.ndarray:
    """Find groups of documents that are nearly the same, also through others.

    Args:
      signatures: uint64 [N, 14], in the order of the documents.

    Returns:
      For every document the number of the first one of its group, int64 [N]; its own where it is the first.
    """
    count = len(signatures)
    parent = np.arange(count)

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    for bucket in range(signatures.shape[1]):
        order = np.argsort(signatures[:, bucket], kind="stable")
        equal = np.flatnonzero(signatures[order[1:], bucket] == signatures[order[:-1], bucket])
        for place in equal:
            one, other = root(int(order[place])), root(int(order[place + 1]))
            parent[max(one, other)] = min(one, other)
    return np.fromiter((root(number) for number in range(count)), np.int64, count)
