"""Texts to shards: what a document is, what is rejected, resumed and refused, in memory that does not grow."""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest

from moshijax.data import documents
from moshijax.data.documents import TextPlan, prepare_text, read_corpus
from moshijax.data.job import finish
from moshijax.data.packed_text import TokenStream
from moshijax.data.shards import make_shard, shards_of
from moshijax.data.text import train_tokenizer
from moshijax.errors import ConfigError, DataError
from moshijax.tokens import BOS, EOS

LINES = [f"line {i} is about the {what}" for i in range(30) for what in ("sea", "hills and the woods")]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([*LINES, "caf\u00e9"], 400)


@pytest.fixture
def small(monkeypatch):
    """Pieces of a hundred bytes, so that a small file has many."""
    monkeypatch.setattr(documents, "_PIECE", 100)


def texts_of(folder, tokenizer):
    """The documents of a prepared text."""
    stream = TokenStream(folder, tokenizer)
    tokens = stream.read(0, len(stream)).tolist()
    assert tokens[0] == BOS and tokens[-1] == EOS
    found, place = [], 0
    while place < len(tokens):
        end = tokens.index(EOS, place)
        assert tokens[place] == BOS
        found.append(tokenizer.decode(tokens[place + 1 : end]))
        place = end + 1
    return found


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_document_is_a_line(tmp_path, tokenizer, small, end, mark):
    """Whatever ends it, and wherever the file is cut; other characters that Python calls line ends do not end it."""
    lines = [*LINES, "", "  two   spaces\tand\u2028a\u0085line\x0cof its own ", ""]
    (tmp_path / "texts.txt").write_bytes((mark + end.join(lines)).encode())
    assert len(read_corpus([tmp_path / "texts.txt"]).items) > 10
    index, report, written = prepare_text([tmp_path / "texts.txt"], tmp_path / "out", tokenizer, shard_items=4)
    expected = [*LINES, "two spaces and a line of its own"]
    assert texts_of(tmp_path / "out", tokenizer) == expected
    assert report.usable == report.items == len(expected) and len(index["shards"]) == written > 2
    assert report.words == sum(len(line.split()) for line in expected)


def test_many_files_in_the_order_given(tmp_path, tokenizer):
    names = ["b/one.txt", "b/two.txt", "b/[x].txt", "a.txt"]
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(LINES[number])
    found = lambda *paths: [item.id for item in read_corpus([tmp_path / path for path in paths]).items]  # noqa: E731
    assert found("b/*.txt", "a.txt") == ["b/[x].txt", "b/one.txt", "b/two.txt", "a.txt"]
    assert found("**/*.txt") == ["a.txt", "b/[x].txt", "b/one.txt", "b/two.txt"]
    assert found("b/[x].txt") == ["[x].txt"]  # a file of that name comes before a pattern
    prepare_text([tmp_path / "b/*.txt", tmp_path / "a.txt"], tmp_path / "out", tokenizer)
    assert texts_of(tmp_path / "out", tokenizer) == [LINES[n] for n in (2, 0, 1, 3)]
    (tmp_path / "b/one.md").symlink_to("one.txt")
    (tmp_path / "b/gone.md").symlink_to("nothing.txt")
    for paths, message in (
        (("b/*.txt", "b/one.txt"), "one.txt is given twice: name it once"),
        (("b/one.*",), "one.txt is given twice, also as .*one.md: name it once"),
        (("b/g*.md",), "gone.md cannot be read: No such file"),
        (("c/*.txt",), r"no file of text fits .*c/\*.txt"),
        (("b",), "b is not a file: name files of text, or a pattern such as 'books/"),
        (("none.txt",), "none.txt cannot be read: No such file"),
    ):
        with pytest.raises(DataError, match=message):
            prepare_text([tmp_path / path for path in paths], tmp_path / "failed", tokenizer)
    assert not (tmp_path / "failed").exists()


def test_bad_documents_are_named_and_the_others_used(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "_LONGEST", 60)
    monkeypatch.setattr(documents, "_PIECE", 200)
    monkeypatch.setattr(documents, "_LISTED", 3)
    plain = train_tokenizer([*LINES, "xyz"], 40, byte_fallback=False)
    bad = [b"caf\xe9", b"t\0w\0o\0", b"long " * 100, "\u4e2d".encode(), *[b"\xff\xfe"] * 5]
    good = [line.encode() for line in LINES[:20]]
    content = b"\n".join([*good[:10], *bad, *good[10:]])
    (tmp_path / "texts.txt").write_bytes(content)
    (tmp_path / "none.txt").write_bytes(b"\xef\xbb\xbf \n\n")
    paths = [tmp_path / "texts.txt", tmp_path / "none.txt"]
    index, report, _ = prepare_text(paths, tmp_path / "out", plain)
    assert texts_of(tmp_path / "out", plain) == LINES[:20]
    assert dict(report.kinds) == {"encoding": 7, "too_long": 1, "characters": 1, "empty": 1}
    assert (report.items, report.usable) == (30, 20) and index["report"]["kinds"] == report.kinds
    reasons = dict(report.rejected)
    assert reasons["none.txt"] == f"text file {tmp_path / 'none.txt'} is empty: it needs one document a line"
    place = f"{tmp_path / 'texts.txt'}, byte {content.index(bytes([0xE9]))}"
    assert reasons[place] == f"{place}: the document is not UTF-8: convert it to UTF-8"
    assert len(report.rejected) < 10  # the first of each piece, so that it stays small
    with pytest.raises(DataError, match=r"\d+ of \d+ items of .* are rejected; the first"):
        prepare_text(paths, tmp_path / "strict", plain, strict=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b" \n\r\n", "is empty"), (b"caf\xe9\n", "byte 3: the document is not UTF-8"),
     ("hello\n".encode("utf-16"), "not UTF-8"), ("hello\n".encode("utf-16-le"), "has a NUL, as UTF-16 has")],
)  # fmt: skip
def test_a_file_without_any_document_leaves_nothing_behind(tmp_path, tokenizer, content, message):
    (tmp_path / "bad.txt").write_bytes(content)
    with pytest.raises(DataError, match=f"bad.txt is usable; the first: .*{message}"):
        prepare_text([tmp_path / "bad.txt"], tmp_path / "out", tokenizer)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="no text is given"):
        prepare_text([], tmp_path / "out", tokenizer)


class Stopped:
    """A tokenizer that is stopped, as by Ctrl-C, at its n-th piece."""

    def __init__(self, tokenizer, pieces=None):
        self.tokenizer, self.pieces, self.asked = tokenizer, pieces, 0
        self.sha256, self.vocab_size = tokenizer.sha256, tokenizer.vocab_size

    def encode_documents(self, texts):
        if self.asked == self.pieces:
            raise KeyboardInterrupt
        self.asked += 1
        return self.tokenizer.encode_documents(texts)


def test_interrupted_and_continued_equals_never_interrupted(tmp_path, tokenizer, small):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(LINES))
    pieces = len(read_corpus([path]).items)
    index, report, _ = prepare_text([path], tmp_path / "whole", tokenizer, 4)
    with pytest.raises(KeyboardInterrupt):
        prepare_text([path], tmp_path / "parts", Stopped(tokenizer, 10), 4)
    with pytest.raises(DataError, match=r"parts is unfinished \(2 shards, no dataset.json\): run the same"):
        TokenStream(tmp_path / "parts", tokenizer)
    rest, seen = Stopped(tokenizer), []
    again = prepare_text(
        [path], tmp_path / "parts", rest, 4, progress=lambda done, total, _: seen.append((done, total))
    )
    assert again[:2] == (index, report) and rest.asked == pieces - 8 and seen[-1] == (pieces, pieces)
    assert digests(tmp_path / "whole") == digests(tmp_path / "parts")
    assert prepare_text([path], tmp_path / "parts", Stopped(tokenizer, 0), 4) == (index, report, 0)


def test_only_shards_of_changed_text_are_made_again(tmp_path, tokenizer, small):
    path, out = tmp_path / "texts.txt", tmp_path / "out"
    path.write_text("\n".join(LINES))
    first, _, shards = prepare_text([path], out, tokenizer, 4)
    path.write_text("\n".join([*LINES[:3], LINES[3].upper(), *LINES[4:]]))  # of the same length
    index, _, written = prepare_text([path], out, tokenizer, 4)
    assert written == 1 < shards and index["sha256"] != first["sha256"]
    assert texts_of(out, tokenizer)[3] == LINES[3].upper()
    (tmp_path / "more.txt").write_text("more\n")
    with pytest.raises(DataError, match=r"out was made of other texts: 1 \(more.txt\) added; choose"):
        prepare_text([tmp_path / "more.txt", path], out, tokenizer, 4)
    with pytest.raises(DataError, match="was made with tokenizer_sha256"):
        prepare_text([path], out, train_tokenizer(LINES, 300), 4)


@pytest.mark.parametrize("lines", [2 * LINES, LINES[: len(LINES) // 2], LINES[:1]])
def test_a_text_of_another_length_is_made_again(tmp_path, tokenizer, small, lines):
    path, out = tmp_path / "texts.txt", tmp_path / "out"
    path.write_text("\n".join(LINES))
    prepare_text([path], out, tokenizer, 4)
    with pytest.raises(KeyboardInterrupt):
        prepare_text([path], tmp_path / "begun", Stopped(tokenizer, 10), 4)
    path.write_text("\n".join(lines))
    prepare_text([path], tmp_path / "fresh", tokenizer, 4)
    for folder in (out, tmp_path / "begun"):
        assert prepare_text([path], folder, tokenizer, 4).written
        assert digests(folder) == digests(tmp_path / "fresh")


def test_a_shard_made_in_another_process_has_the_same_bytes(tmp_path, tokenizer, small):
    (tmp_path / "texts.txt").write_text("\n".join(LINES))
    index, report, _ = prepare_text([tmp_path / "texts.txt"], tmp_path / "here", tokenizer, 4)
    corpus, plan = read_corpus([tmp_path / "texts.txt"]), pickle.loads(pickle.dumps(TextPlan(4, False, tokenizer)))
    (tmp_path / "there").mkdir()
    made = [make_shard(plan, items, tmp_path / "there" / name) for name, items in reversed(shards_of(corpus, plan))]
    assert finish(corpus, tmp_path / "there", plan, made[::-1]) == (index, report)
    assert digests(tmp_path / "here") == digests(tmp_path / "there")


PEAK = """
import json, re, sys
from pathlib import Path
from moshijax.data.documents import prepare_text
from moshijax.data.packed_text import TextData, text_batches
from moshijax.data.text import Tokenizer
from moshijax.lm import layouts

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1000

folder = Path(sys.argv[1])
tokenizer = Tokenizer.load(folder / "tokenizer.model")
for name in ("little", "again"):
    prepare_text([folder / "little.txt"], folder / name, tokenizer)
text_batches(TextData((str(folder / "little"),)), layouts.text_only(), tokenizer, 0).batch(0)
before = peak()
_, report, _ = prepare_text([folder / "much.txt"], folder / "much", tokenizer)
batches = text_batches(TextData((str(folder / "much"),)), layouts.text_only(), tokenizer, 0)
for n in range(50):
    batches.batch(1000 * n)
print(json.dumps({"documents": report.usable, "growth": peak() - before}))
"""


@pytest.mark.parametrize("megabytes", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_text(tmp_path, tokenizer, megabytes):
    """17 million tokens in 20 MB: as lists of Python they would take 900 MB, the text and its lines 60 MB."""
    tokenizer.save(tmp_path / "tokenizer.model")
    block = "\n".join(" ".join(LINES[(7 * i + j) % len(LINES)] for j in range(40)) for i in range(1000)) + "\n"
    (tmp_path / "little.txt").write_text(block * (8_000_000 // len(block)))
    copies = megabytes * 1_000_000 // len(block)
    with open(tmp_path / "much.txt", "w") as file:
        for _ in range(copies):
            file.write(block)
    made = subprocess.run([sys.executable, "-c", PEAK, tmp_path], capture_output=True, text=True, check=True)
    found = json.loads(made.stdout)
    assert found["documents"] == 1000 * copies
    assert found["growth"] < 80  # MB
    assert np.sum([path.stat().st_size for path in (tmp_path / "much").iterdir()]) > 1e5
