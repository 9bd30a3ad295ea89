"""Text-only batches: every token once an epoch, ZERO everywhere else, sets mixed by their weights."""

from __future__ import annotations

import numpy as np
import pytest

from moshijax.data import documents
from moshijax.data.batches import MOST_FRAMES, MOST_SAMPLES
from moshijax.data.documents import prepare_text
from moshijax.data.grids import GridData
from moshijax.data.packed_text import TextData, TokenStream, text_batches
from moshijax.data.text import train_tokenizer
from moshijax.data.windows import AudioData
from moshijax.errors import ConfigError, DataError
from moshijax.lm import layouts
from moshijax.tokens import BOS, EOS, ZERO
from tests.train.support.grids import write_dialogues

DOCUMENTS = [f"document number {i} speaks of the sea and of the hills" for i in range(20)]
LAYOUT = layouts.dialogue(2)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(DOCUMENTS, 320)


def pack(texts, tokenizer):
    return np.array([token for text in texts for token in (BOS, *tokenizer.encode(text), EOS)])


def prepared(folder, name, texts, tokenizer):
    (folder / f"{name}.txt").write_text("\n\n".join(texts), encoding="utf-8")
    prepare_text([folder / f"{name}.txt"], folder / name, tokenizer)
    return str(folder / name)


def epoch_of(path, tokenizer, length):
    batches = text_batches(TextData((path,), 1, length), LAYOUT, tokenizer, 0)
    return np.concatenate([batches.batch(n)["codes"] for n in range(batches.items)])


@pytest.mark.parametrize("record", [7, 16, 10_000])  # tokens: smaller than a row, as long, and all in one
def test_packed_end_to_end(tmp_path, tokenizer, monkeypatch, record):
    monkeypatch.setattr(documents, "_RECORD", record)
    path = prepared(tmp_path, "texts", DOCUMENTS, tokenizer)
    expected = pack(DOCUMENTS, tokenizer)
    assert (expected == BOS).sum() == (expected == EOS).sum() == 20
    epoch = epoch_of(path, tokenizer, 16)
    assert epoch.shape[1:] == (5, 16) and epoch.dtype == np.int32
    assert (epoch[:, 1:] == ZERO).all()
    padded = np.full(len(epoch) * 16, ZERO)
    padded[: len(expected)] = expected
    assert sorted(map(tuple, epoch[:, 0].tolist())) == sorted(map(tuple, padded.reshape(-1, 16).tolist()))


def test_a_stream_reads_like_one_array(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(documents, "_RECORD", 10)
    monkeypatch.setattr(documents, "_PIECE", 100)
    (tmp_path / "texts.txt").write_text("\n".join(DOCUMENTS), encoding="utf-8")
    index, _, _ = prepare_text([tmp_path / "texts.txt"], tmp_path / "out", tokenizer, shard_items=3)
    assert len(index["shards"]) > 2
    stream, expected = TokenStream(tmp_path / "out", tokenizer), pack(DOCUMENTS, tokenizer)
    assert len(stream) == len(expected)
    for start in range(0, len(expected), 7):
        for stop in (start + 1, start + 10, start + 45, len(expected) + 5):
            np.testing.assert_array_equal(stream.read(start, stop), expected[start:stop])


def test_batches_depend_on_data_seed_and_number_alone(tmp_path, tokenizer):
    path = prepared(tmp_path, "texts", DOCUMENTS, tokenizer)
    open_one = lambda seed: text_batches(TextData((path,), 4, 16), LAYOUT, tokenizer, seed)  # noqa: E731
    one, two = open_one(3), open_one(3)
    tokens = len(pack(DOCUMENTS, tokenizer))
    empty = 1 - tokens / (16 * -(-tokens // 16))
    assert one.content == (f"20 documents, {tokens} tokens; {empty:.2%} of the places are padding, which is not scored")
    assert all(file.is_file() for file in one.files.values()) and one.files
    expected = [one.batch(n)["codes"].tobytes() for n in range(20)]
    assert [two.batch(n)["codes"].tobytes() for n in reversed(range(20))] == expected[::-1]
    assert open_one(4).batch(0)["codes"].tobytes() != expected[0]


def test_sets_have_the_shares_of_their_weights(tmp_path, tokenizer):
    """However long they are; without weights, rows come in proportion to the tokens."""
    long = prepared(tmp_path, "long", ["sea " * 40] * 9, tokenizer)
    short = prepared(tmp_path, "short", ["hills " * 40] * 3, tokenizer)
    marks = [tokenizer.encode(word)[-1] for word in ("sea", "hills")]

    def shares(weights):
        batches = text_batches(TextData((long, short), 8, 16, weights), LAYOUT, tokenizer, 0)
        rows = np.concatenate([batches.batch(n)["codes"][:, 0] for n in range(100)])
        found = [(rows == mark).any(axis=1) for mark in marks]
        assert (found[0] != found[1]).all()  # every row is of one set
        return np.mean(found, axis=1)

    rows = text_batches(TextData((long, short), 8, 16, (3.0, 2.0)), LAYOUT, tokenizer, 0).content
    assert f"; rows: 60.00% {long}, 40.00% {short}; " in rows
    np.testing.assert_allclose(shares((3.0, 2.0)), [0.6, 0.4], atol=0.01)
    np.testing.assert_allclose(shares((1.0, 9.0)), [0.1, 0.9], atol=0.01)
    tokens = [len(TokenStream(path, tokenizer)) for path in (long, short)]
    np.testing.assert_allclose(shares(()), np.array(tokens) / sum(tokens), atol=0.01)


@pytest.mark.parametrize("kind", [TextData, GridData, AudioData])
def test_absurd_sizes_are_refused_before_memory_is_asked_for(kind):
    where, name, most = ("folder",), "num_frames", MOST_FRAMES
    if kind is AudioData:
        where, name, most = "manifest.jsonl", "num_samples", MOST_SAMPLES
    for length, rows in ((most, 1), (1, most), (most // 8, 8)):
        kind(where, batch_size=rows, **{name: length})
    for length, rows in ((most + 1, 1), (1, most + 1), (10**9, 8)):
        with pytest.raises(
            ConfigError, match=f"batch_size {rows} x {name} {length} is .* at most {most}: lower {name}"
        ):
            kind(where, batch_size=rows, **{name: length})
    for length, rows in ((0, 8), (8, 0)):
        with pytest.raises(ConfigError, match=f"{name} {length} and batch_size {rows} must be at least 1"):
            kind(where, batch_size=rows, **{name: length})


def test_refusals(tmp_path, tokenizer):
    path = prepared(tmp_path, "texts", DOCUMENTS, tokenizer)
    write_dialogues(tmp_path / "dialogues", count=1)
    other = train_tokenizer([*DOCUMENTS, "other words"], 330)
    for place, model, message in (
        (path, other, f"texts was prepared with another tokenizer, {tokenizer.sha256}, not {other.sha256}: prepare"),
        (str(tmp_path / "dialogues"), tokenizer, "holds dialogue data: give a folder of prepared text"),
        (str(tmp_path / "nowhere"), tokenizer, "holds no dataset.json: make it with `moshijax data prepare`"),
        (f"{path}.txt", tokenizer, "texts.txt holds no dataset.json"),
    ):
        with pytest.raises(DataError, match=message):
            text_batches(TextData((place,)), LAYOUT, model, 0)
    with pytest.raises(ConfigError, match="paths is 'texts': give a tuple"):
        TextData("texts")
    with pytest.raises(ConfigError, match="do not fit 1 paths"):
        TextData(("texts",), weights=(1.0, 2.0))
