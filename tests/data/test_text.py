"""The tokenizer: id layout, round trips, determinism, refusals."""

from __future__ import annotations

import pickle

import pytest

from moshijax.data.text import Tokenizer, train_tokenizer
from moshijax.errors import ConfigError, DataError
from moshijax.tokens import BOS, EOS, EPAD, PAD

TEXTS = ["the capital of France is Paris", "it costs 42 crowns", "what is two plus two", "seven days a week"] * 3


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 320)


def test_ids(tokenizer):
    assert tokenizer.pieces[EPAD] == "<unk>" and tokenizer.pieces[BOS] == "<s>"
    assert tokenizer.pieces[EOS] == "</s>" and tokenizer.pieces[PAD] == "<pad>"
    assert tokenizer.vocab_size == len(tokenizer.pieces) <= 320
    assert all(i > PAD for text in TEXTS for i in tokenizer.encode(text))


@pytest.mark.parametrize("text", ["Paris", "42", "cafe\u0301 ☕", "שלום", "don't", "日本語"])
def test_round_trip(tokenizer, text):
    import unicodedata

    assert tokenizer.decode([PAD, EPAD, *tokenizer.encode(text), -1, EOS]) == unicodedata.normalize("NFC", text)


def test_digits_are_split(tokenizer):
    pieces = [tokenizer.pieces[i] for i in tokenizer.encode("4242")]
    assert [p for p in pieces if p != "▁"] == ["4", "2", "4", "2"] or pieces[0] == "▁4"
    assert len([p for p in pieces if any(c.isdigit() for c in p)]) == 4


def test_same_texts_same_model(tokenizer):
    assert train_tokenizer(TEXTS, 320).sha256 == tokenizer.sha256


def test_saved_and_pickled(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.model")
    for other in (Tokenizer.load(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert other.sha256 == tokenizer.sha256 and other.encode("Paris") == tokenizer.encode("Paris")


def test_refusals(tmp_path):
    with pytest.raises(ConfigError, match=r"vocab_size is 100, but .* raise it"):
        train_tokenizer(TEXTS, 100)
    with pytest.raises(DataError, match="no text"):
        train_tokenizer(["", "  "], 300)
    with pytest.raises(DataError, match=r"nowhere cannot be read"):
        Tokenizer.load(tmp_path / "nowhere")
    (tmp_path / "x").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="not a SentencePiece model"):
        Tokenizer.load(tmp_path / "x")


def test_unknown_character_without_bytes_is_refused_not_made_epad():
    small = train_tokenizer(TEXTS, 60, byte_fallback=False)
    assert small.decode(small.encode("Paris")) == "Paris"
    with pytest.raises(DataError, match=r"'Zürich' has characters that the tokenizer lacks"):
        small.encode("Zürich")


def test_a_vocabulary_from_files(tmp_path):
    """A sample that is a function of texts and seed; long lines are cut, not left out; rare characters become bytes."""
    from moshijax.data.vocabulary import sample

    lines = [f"the {word} number {n} of the house" for n in range(300) for word in ("red", "green")]
    (tmp_path / "a.txt").write_text("\n".join(lines[:300]), encoding="utf-8")
    (tmp_path / "b.txt").write_bytes((" ".join(lines[300:]) + " \u4e2d\n").encode() + b"\xff\n")
    paths = [tmp_path / "*.txt"]
    whole = sample(paths, 10_000)
    assert whole.of == len(whole.sentences) > 300 and " ".join(whole.sentences[300:]).split()[-1] == "\u4e2d"
    assert max(len(text.encode()) for text in whole.sentences) <= 1000
    assert whole.documents == 301 and whole.kinds == {"encoding": 1} and "b.txt, byte" in whole.first
    some = sample(paths, 50, seed=1)
    assert some == sample(paths, 50, seed=1) and some.sentences != sample(paths, 50, seed=2).sentences
    assert len(some.sentences) == 50 and set(some.sentences) <= set(whole.sentences) and some.of == whole.of
    covered = train_tokenizer(whole.sentences, 400, character_coverage=0.9999)
    assert "\u4e2d" not in covered.pieces and covered.decode(covered.encode("\u4e2d 12")) == "\u4e2d 12"
    assert "\u4e2d" in train_tokenizer(whole.sentences, 400).pieces
    assert len(covered.encode("2024")) >= 4  # digits are split


def test_a_line_longer_than_sentencepiece_takes_is_cut():
    from moshijax.data.text import short_lines

    text = "word " * 20 + "x" * 50
    assert list(short_lines(text, 10_000)) == [text.strip()] if (text := " ".join(text.split())) else False
    cut = list(short_lines(text, 24))
    assert max(map(len, cut)) <= 24 and "".join(cut).replace(" ", "") == text.replace(" ", "")
