"""Another text vocabulary for a model."""

from __future__ import annotations

import numpy as np
import pytest

from moshijax import weights
from moshijax.weights.retokenize import SPECIAL, carried
from tests.weights.test_lm import PUBLISHED, published_tensors, write

pytest.importorskip("sentencepiece")
OLD = ["yes no the red blue green door train leaves soon late never at ten", "the blue train is late"]
NEW = ["赤い電車は十時に出ます", "青い電車は遅れています", "はい、いいえ", "the red train"]


def test_rows_of_shared_pieces_move():
    old = ["<unk>", "<s>", "</s>", "<pad>", "a", "b", "c"]
    new = ["<unk>", "<s>", "</s>", "<pad>", "c", "d", "a", "<pad>"]
    assert carried(old, new).tolist() == [0, 1, 2, 3, 6, -1, 4, -1]


@pytest.fixture
def model(tmp_path):
    """A model over the pieces of OLD."""
    from moshijax.data.text import train_tokenizer

    tokenizer = train_tokenizer(OLD, vocab_size=40, byte_fallback=False)
    stated = {**PUBLISHED, "text_card": tokenizer.vocab_size, "tokenizer_name": "old.model"}
    write(tmp_path / "given", stated, published_tensors(stated))
    tokenizer.save(tmp_path / "given" / "old.model")
    train_tokenizer(NEW, vocab_size=310, byte_fallback=True).save(tmp_path / "new.model")
    return tmp_path / "given"


def test_a_script_without_spaces(model, tmp_path, cli):
    from moshijax.data.text import Tokenizer

    new, old = Tokenizer.load(tmp_path / "new.model"), Tokenizer.load(model / "old.model")
    text = "青い電車は十時に出ます"
    assert "".join(new.pieces[i] for i in new.encode(text)).replace("\u2581", "") == text
    arguments = ("weights", "retokenize", model, tmp_path / "made", "--tokenizer", tmp_path / "new.model")
    code, out, err = cli(*arguments)
    assert code == 0, err
    (config, params), (before, was) = weights.load_lm(tmp_path / "made"), weights.load_lm(model)
    assert config.text_card == config.text_vocab == new.vocab_size != before.text_card
    assert (tmp_path / "made" / "tokenizer.model").read_bytes() == new.model
    places = carried(old.pieces, new.pieces)
    known = np.flatnonzero(places >= 0)
    assert 6 < len(known) < new.vocab_size and f"{len(known)} of them carried over" in out
    for name in ("text_embedding", "depth/text_embedding"):
        table, then = params, was
        for part in name.split("/"):
            table, then = table[part], then[part]
        table, then = table["table"][0], then["table"][0]
        assert len(table) == new.vocab_size + 1
        np.testing.assert_array_equal(table[known], then[places[known]])
        np.testing.assert_array_equal(table[-1], then[-1])
        fresh = table[np.flatnonzero(places < 0)]
        assert 0.5 < fresh.std() * np.sqrt(table.shape[1]) < 1.5
    head, then = params["text_head"]["kernel"], was["text_head"]["kernel"]
    np.testing.assert_array_equal(head[known], then[places[known]])
    # Nothing else has changed.
    for tree in (params, was):
        del tree["text_embedding"], tree["text_head"], tree["depth"]["text_embedding"]
    import jax

    jax.tree.map(np.testing.assert_array_equal, params, was)
    # The same command gives the same weights.
    code, _, _ = cli(*arguments[:3], tmp_path / "again", *arguments[4:])
    assert code == 0
    name = "parameters.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "made" / name).read_bytes()


def test_a_folder_with_the_tokenizer(model, tmp_path, cli):
    (tmp_path / "run").mkdir()
    (tmp_path / "new.model").rename(tmp_path / "run" / "tokenizer.model")
    code, _, err = cli("weights", "retokenize", model, tmp_path / "made", "--tokenizer", tmp_path / "run")
    assert code == 0, err
    made = (tmp_path / "made" / "tokenizer.model").read_bytes()
    assert made == (tmp_path / "run" / "tokenizer.model").read_bytes()


def test_what_cannot_be_retokenized(model, tmp_path, cli):
    (model / "old.model").rename(tmp_path / "old.model")
    arguments = ("weights", "retokenize", model, tmp_path / "made", "--tokenizer", tmp_path / "new.model")
    code, _, err = cli(*arguments)
    assert code == 2 and "--old-tokenizer" in err
    code, _, err = cli(*arguments, "--old-tokenizer", tmp_path / "new.model")
    assert code == 2 and "the old tokenizer" in err
    assert not (tmp_path / "made").exists()


def test_special_ids_that_text_could_become(tmp_path):
    import io

    import sentencepiece as spm

    from moshijax.data.text import Tokenizer, train_tokenizer
    from moshijax.errors import DataError

    text = "</s><pad><s> the red train"
    ids = train_tokenizer(OLD, vocab_size=310, byte_fallback=True).encode(text)
    assert min(ids) > max(SPECIAL)  # spelt out, letter by letter
    made = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(OLD * 20),
        model_writer=made,
        vocab_size=30,
        model_type="unigram",
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        user_defined_symbols=["</s>"],
        hard_vocab_limit=False,
    )
    with pytest.raises(DataError, match=r"has unk, bos, eos, pad = \(0, 1, -1, 3\); \(0, 1, 2, 3\) are needed"):
        Tokenizer(made.getvalue())
