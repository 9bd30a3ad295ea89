"""A prepared data set of made-up dialogues, in the format of `moshijax data prepare`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from moshijax import files
from moshijax.data import records
from moshijax.data.documents import prepare_text
from moshijax.data.text import Tokenizer, train_tokenizer

WORDS = ("yes", "no", "the", "red", "blue", "green", "door", "train", "leaves", "soon", "late", "never", "at", "ten")


def write_tokenizer(path: Path) -> Tokenizer:
    tokenizer = train_tokenizer([" ".join(WORDS), *WORDS], vocab_size=40, byte_fallback=False)
    tokenizer.save(path)
    return tokenizer


def write_dialogues(
    folder: Path,
    count: int = 24,
    frames: int | tuple[int, ...] = 40,
    codebooks: int = 4,
    card: int = 32,
    channels: tuple[str, ...] = ("model", "user"),
    codec: str = "0" * 64,
) -> None:
    """Codes that are easy to predict (each follows from the one before) and words at even times; `frames` of every
    recording, or of each."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    lengths = [frames] * count if isinstance(frames, int) else list(frames)

    def dialogue(number: int, frames: int) -> dict:
        first = random.integers(0, card, (len(channels), codebooks, 1))
        codes = ((first + 3 * np.arange(frames)) % card).astype(np.int16)
        starts = np.arange(0.5, frames * 0.08 - 0.5, 0.6)
        words = [[WORDS[random.integers(len(WORDS))], float(t), float(t) + 0.3, "model"] for t in starts]
        return {"id": str(number), "codes": codes, "words": words, "duration": frames * 0.08, "provenance": {}}

    found = [dialogue(number, length) for number, length in enumerate(lengths)]
    name = records.shard_name(0, 1)
    records.write_shard(folder / name, found)
    index = {
        "format_version": records.FORMAT_VERSION,
        "kind": "dialogue",
        "channels": list(channels),
        "codec": {"sha256": codec, "sample_rate": 24000, "frame_size": 1920, "num_codebooks": codebooks},
        "shards": [{"file": name, "records": len(found), "frames": lengths}],
        "sha256": records.digest("made up", count, frames, codebooks, card),
    }
    files.write_json(folder / records.INDEX, index)


def write_text(folder: Path, tokenizer: Tokenizer) -> None:
    """Prepared text: 60 documents of 8 words."""
    random = np.random.default_rng(1)
    path = folder.with_suffix(".txt")
    path.write_text("\n".join(" ".join(random.choice(WORDS, 8)) for _ in range(60)) + "\n", encoding="utf-8")
    prepare_text([path], folder, tokenizer)
