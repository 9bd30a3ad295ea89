"""The tokenizer of a Llama 3 or a Qwen2: ids of the grid, what is text, round trips, refusals."""

from __future__ import annotations

import json
import pickle
import unicodedata

import numpy as np
import pytest

from moshijax.data.text import Tokenizer, train_tokenizer
from moshijax.errors import DataError
from moshijax.runtime.text import words_of
from moshijax.tokens import EPAD, PAD
from tests.data import backbone_tokenizer
from tests.data.backbone_tokenizer import BEGIN, TEXTS


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return backbone_tokenizer.write(tmp_path_factory.mktemp("backbone") / "tokenizer.json")


@pytest.fixture(scope="module")
def tokenizer(file):
    return Tokenizer.load(file.parent)


def test_ids_are_those_of_the_file_behind_the_special_ones(file, tokenizer):
    import tokenizers

    theirs = tokenizers.Tokenizer.from_file(str(file))
    for text in TEXTS:
        assert tokenizer.encode(text) == [4 + i for i in theirs.encode(" " + text).ids]
        for word in text.split():
            assert tokenizer.encode(word) == [4 + i for i in theirs.encode(" " + word).ids]
    assert tokenizer.vocab_size == 4 + theirs.get_vocab_size() == len(tokenizer.pieces)
    assert tokenizer.encode("") == [] and tokenizer.encode(" the") == tokenizer.encode("the")


def test_a_word_is_one_piece_as_in_a_sentence(tokenizer):
    """The space in front of a word is part of it, so that words alone are those of the whole text."""
    words = [i for word in TEXTS[0].split() for i in tokenizer.encode(word)]
    assert words == tokenizer.encode(TEXTS[0])
    assert all(tokenizer.pieces[tokenizer.encode(word)[0]].startswith("\u2581") for word in TEXTS[0].split())


@pytest.mark.parametrize("text", ["Paris", "42", "cafe\u0301 ☕", "שלום", "don't", "日本語", "two\nlines"])
def test_round_trip(tokenizer, text):
    want = unicodedata.normalize("NFC", text)
    ids = tokenizer.encode(text)
    assert min(ids) > PAD and tokenizer.decode([PAD, EPAD, *ids, -1]) == want
    (document,) = tokenizer.encode_documents([text])
    assert document.dtype == np.int32 and document.tolist() == ids


def test_special_tokens_in_a_text_are_text(tokenizer):
    special = tokenizer.pieces.index(BEGIN)
    ids = tokenizer.encode(f"a {BEGIN} b")
    assert special not in ids and tokenizer.decode(ids) == f"a {BEGIN} b"


def test_the_runtime_reads_its_pieces(tokenizer, loaded, monkeypatch):
    """Characters that are cut between pieces, and words whose first piece is a space and half a character."""
    monkeypatch.setattr(loaded, "pieces", tokenizer.pieces)
    texts = ["Paris", "日本語", "☕", "cafés"]
    tokens = [i for text in texts for i in tokenizer.encode(text)]
    assert [word.text for word in words_of(loaded, tokens)] == texts
    assert any("<0x" in tokenizer.pieces[i] for i in tokens)


def test_half_characters_behind_a_space(tmp_path):
    """Merges of large vocabularies join the space with the first bytes of what follows."""
    path = backbone_tokenizer.write(tmp_path / "tokenizer.json", 262, ["\u00a0 ☕ ☔ ☎"])
    pieces = Tokenizer.load(path).pieces
    assert any(piece.startswith("\u2581<0x") for piece in pieces)


def test_saved_and_pickled(tokenizer, tmp_path):
    assert tokenizer.file_name == "tokenizer.json"
    tokenizer.save(tmp_path / tokenizer.file_name)
    for other in (Tokenizer.load(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert other.sha256 == tokenizer.sha256 and other.encode("Paris") == tokenizer.encode("Paris")
    train_tokenizer(TEXTS * 3, 320).save(tmp_path / "tokenizer.model")
    assert Tokenizer.load(tmp_path).file_name == "tokenizer.model"


def edited(file, change):
    described = json.loads(file.read_text())
    change(described)
    return json.dumps(described).encode()


def test_refusals(file):
    with pytest.raises(DataError, match=r"is no tokenizer.json .*: copy it again"):
        Tokenizer(b'{"version": 1}', "x")

    def other_kind(described):
        described["pre_tokenizer"], described["decoder"] = {"type": "Whitespace"}, None

    with pytest.raises(DataError, match=r"x is not of byte pairs.*give one of them, or the tokenizer.model of a run"):
        Tokenizer(edited(file, other_kind), "x")

    def a_byte_less(described):
        described["model"]["merges"] = [m for m in described["model"]["merges"] if "\u0120" not in "".join(m)]
        described["model"]["vocab"] = {
            piece: number for piece, number in described["model"]["vocab"].items() if "\u0120" not in piece
        }

    with pytest.raises(DataError, match=r"x has no piece for byte 32 and 0 more"):
        Tokenizer(edited(file, a_byte_less), "x")


def test_texts_are_packed_with_it(file, tokenizer, cli, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    code, out, err = cli("data", "prepare", texts, tmp_path / "packed", "--tokenizer", file)
    assert code == 0, err
    index = json.loads((tmp_path / "packed" / "dataset.json").read_text())
    assert index["tokenizer_sha256"] == tokenizer.sha256
