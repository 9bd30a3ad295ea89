"""`moshijax data text`, `tokenizer` and `deduplicate`: what users see, from raw files to batches, and exit codes."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
import soundfile

from moshijax.data.packed_text import TextData, text_batches
from moshijax.data.text import Tokenizer
from moshijax.lm import layouts
from tests.data.raw_text import made
from tests.data.test_deduplicate import RATE, babble


def test_from_raw_text_to_batches(cli, tmp_path):
    pages = {f"http://x/{n}": made.english(n).encode() for n in range(4)}
    (tmp_path / "crawl.warc.wet.gz").write_bytes(
        gzip.compress(made.wet(pages | {"http://x/fr": "Où est-il ?".encode()}))
    )
    dump = made.mediawiki([(f"Title {n}", "0", made.english(100 + n)) for n in range(3)], ("Old title",))
    (tmp_path / "wiki.xml").write_text(dump, encoding="utf-8")
    code, out, _ = cli("data", "text", tmp_path / "*.wet.gz", tmp_path / "wiki.xml", tmp_path / "clean")
    assert code == 0 and out.startswith("7 of 9 documents kept") and "rejected redirect: 1 items" in out
    assert "http://x/fr: its language is fr" in out and "2 files of text" in out
    again = cli("data", "text", tmp_path / "*.wet.gz", tmp_path / "wiki.xml", tmp_path / "clean")
    assert again[0] == 0 and "kept" in again[1].splitlines()[-1]

    model = tmp_path / "tokenizer.model"
    code, out, _ = cli("data", "tokenizer", tmp_path / "clean" / "*.txt", model, "--vocab-size", 500)
    assert code == 0 and "sentences of 7 documents" in out and f"wrote {model}" in out
    assert ("asks for more pieces" in out) is (Tokenizer.load(model).vocab_size < 500)
    few = cli("data", "tokenizer", tmp_path / "clean" / "*.txt", model, "--vocab-size", 30_000)
    assert few[0] == 0 and "--vocab-size 30000 asks for more pieces than there are" in few[1]
    cli("data", "tokenizer", tmp_path / "clean" / "*.txt", model, "--vocab-size", 500)
    content = model.read_bytes()
    cli("data", "tokenizer", tmp_path / "clean" / "*.txt", model, "--vocab-size", 500)
    assert model.read_bytes() == content
    code, out, _ = cli("data", "prepare", tmp_path / "clean" / "*.txt", tmp_path / "packed", "--tokenizer", model)
    assert code == 0 and "7 of 7 documents usable" in out
    data = TextData((str(tmp_path / "packed"),), 2, 64)
    codes = text_batches(data, layouts.dialogue(2), Tokenizer.load(model), 0).batch(0)["codes"]
    assert codes.shape == (2, 5, 64) and (codes[:, 0] > 3).any()


def test_bad_requests_of_text(cli, tmp_path):
    made.jsonl(tmp_path / "a.jsonl", [made.english(0)])
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    (tmp_path / "no.bin").write_bytes(b"no model")
    out = tmp_path / "out"
    for arguments, code, message in (
        ((tmp_path / "a.pdf", out), 2, "a.pdf is of no format that is read"),
        ((tmp_path / "gone.jsonl", out), 3, "gone.jsonl cannot be read: not there"),
        ((tmp_path / "*.wet", out), 3, "no file of text fits"),
        ((tmp_path / "a.jsonl", out, "--language", "zz"), 3, "has no label 'zz'"),
        ((tmp_path / "a.jsonl", out, "--quality", tmp_path / "no.bin"), 3, "no.bin is no fastText model"),
        ((tmp_path / "a.jsonl", out, "--against", tmp_path / "gone.jsonl"), 3, "gone.jsonl"),
        ((tmp_path / "a.jsonl", out, "--min-language", 2), 2, "--min-language"),
        ((tmp_path / "a.jsonl", tmp_path / "a.jsonl"), 2, "would replace the input"),
    ):
        found, _, err = cli("data", "text", *arguments)
        assert found == code and message in err, (arguments, found, err)
        assert not out.exists()
    for arguments, code, message in (
        ((tmp_path / "a.jsonl", tmp_path / "t.bin"), 2, "name it t.model"),
        ((tmp_path / "a.jsonl", tmp_path / "t.model", "--vocab-size", 100), 2, "need"),
    ):
        found, _, err = cli("data", "tokenizer", *arguments)
        assert found == code and message in err, (arguments, found, err)


@pytest.fixture
def recordings(tmp_path):
    folder = tmp_path / "calls"
    folder.mkdir()
    for name, seed, level in (("a", 0, 1.0), ("b", 1, 1.0), ("c", 0, 0.1)):
        soundfile.write(folder / f"{name}.wav", np.stack([level * babble(seed, 8.0)] * 2, axis=1), RATE)
    return folder


def test_deduplicate(cli, recordings, tmp_path):
    code, out, _ = cli("data", "deduplicate", recordings, recordings / "unique.jsonl")
    assert code == 0 and "2 of 3 recordings kept" in out and "rejected repeat: 1 items" in out and "is in a" in out
    assert [line.split('"')[3] for line in (recordings / "unique.jsonl").read_text().splitlines()] == ["a.wav", "b.wav"]
    code, out, _ = cli("data", "deduplicate", recordings, recordings / "unique.jsonl", "--frequent-share", 0.5)
    assert code == 0 and "2 of 3 recordings kept" in out  # three copies are not many
    code, _, err = cli("data", "deduplicate", recordings, tmp_path / "unique.jsonl")
    assert code == 2 and "calls/NAME.jsonl" in err
    code, _, err = cli("data", "deduplicate", recordings, recordings / "unique.jsonl", "--share", 0)
    assert code == 2 and "--share" in err
