"""Text-only batches: every token once an epoch, ZERO everywhere else."""

from __future__ import annotations

import numpy as np
import pytest

from moshijax.data.packed_text import TextData, pack, prepare_text, text_batches
from moshijax.data.text import train_tokenizer
from moshijax.errors import DataError
from moshijax.lm import layouts
from moshijax.tokens import BOS, EOS, ZERO

DOCUMENTS = [f"document number {i} speaks of the sea and of the hills" for i in range(20)]
LAYOUT = layouts.dialogue(2)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(DOCUMENTS, 320)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n\n".join(DOCUMENTS), encoding="utf-8")
    return path


def test_packed_end_to_end(path, tokenizer):
    expected = pack(DOCUMENTS, tokenizer)
    assert (expected == BOS).sum() == (expected == EOS).sum() == 20
    batches = text_batches(TextData(str(path), 1, 16), LAYOUT, tokenizer, 0)
    epoch = np.concatenate([batches.batch(n)["codes"] for n in range(batches.items)])
    assert epoch.shape[1:] == (5, 16) and epoch.dtype == np.int32
    assert (epoch[:, 1:] == ZERO).all()
    seen = sorted(tuple(row) for row in epoch[:, 0].tolist())
    padded = np.full(batches.items * 16, ZERO)
    padded[: len(expected)] = expected
    assert seen == sorted(tuple(row) for row in padded.reshape(-1, 16).tolist())


def test_prepared_folder_gives_the_same_rows(path, tokenizer, tmp_path):
    index = prepare_text(path, tmp_path / "packed", tokenizer)
    assert index["documents"] == 20
    unpacked = text_batches(TextData(str(path), 4, 16), LAYOUT, tokenizer, 3)
    first = text_batches(TextData(str(tmp_path / "packed"), 4, 16), LAYOUT, tokenizer, 3)
    again = text_batches(TextData(str(tmp_path / "packed"), 4, 16), LAYOUT, tokenizer, 3)
    assert first.content == unpacked.content == f"20 documents, {index['tokens']} tokens"
    assert all(file.is_file() for file in (*first.files.values(), *unpacked.files.values()))
    for n in (0, 5, 17):
        np.testing.assert_array_equal(first.batch(n)["codes"], again.batch(n)["codes"])
    other = train_tokenizer([*DOCUMENTS, "other words"], 330)
    with pytest.raises(DataError, match="packed with another tokenizer"):
        text_batches(TextData(str(tmp_path / "packed")), LAYOUT, other, 3)


def test_bad_files(tmp_path, tokenizer):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    for name, message in (("empty", "is empty"), ("latin", "is not UTF-8"), ("missing", "cannot be read")):
        with pytest.raises(DataError, match=f"{name}.txt {message}"):
            text_batches(TextData(str(tmp_path / f"{name}.txt")), LAYOUT, tokenizer, 0)
