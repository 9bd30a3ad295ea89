"""`moshijax data`: what users see, and exit codes."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from moshijax.cli.data import command
from moshijax.data.text import train_tokenizer
from tests.data.sets import RATE, WORDS, LevelEncoder, tones, write_item, write_manifest, write_set


@pytest.fixture
def codec(monkeypatch):
    """A codec that needs no weights, instead of the one that `--codec` names."""
    from moshijax.data import encoder

    monkeypatch.setattr(encoder.CodecEncoder, "load", classmethod(lambda cls, path, count=None: LevelEncoder()))
    return "--codec", "any"


def test_every_command_has_help_with_an_example(cli):
    for name in command.commands:
        code, out, _ = cli("data", name, "--help")
        assert code == 0 and "Example:" in out and f"moshijax data {name}" in out


def test_validate_reports_and_exits(cli, tmp_path):
    manifest = write_set(tmp_path, 3)
    code, out, _ = cli("data", "validate", manifest)
    assert code == 0 and "3 of 3 items usable" in out
    lines = [write_item(tmp_path, "mono", audio=tones(WORDS)[:, 0]), write_item(tmp_path, "good")]
    write_manifest(tmp_path, lines)
    code, out, _ = cli("data", "validate", manifest)
    assert (
        code == 0 and "1 of 2 items usable" in out and "rejected channels: 1 items" in out and "mono.wav is mono" in out
    )
    code, _, err = cli("data", "validate", manifest, "--strict")
    assert code == 3 and err.splitlines()[-1].startswith("error: 1 of 2 items") and "mono.wav" in err
    write_manifest(tmp_path, lines[:1])
    code, _, err = cli("data", "validate", manifest)
    assert code == 3 and "none of the 1 items" in err


def test_validate_against_another_set(cli, tmp_path):
    one, two = write_set(tmp_path / "a", 2), write_set(tmp_path / "b", 3)
    code, _, err = cli("data", "validate", one, "--against", two)
    assert code == 3 and "2 recordings of" in err and "call-0 = call-0" in err


def test_bad_paths_and_options(cli, tmp_path, codec):
    code, _, err = cli("data", "validate", tmp_path / "nowhere.jsonl")
    assert code == 3 and err.count("\n") == 1 and "nowhere.jsonl cannot be read" in err
    manifest = write_set(tmp_path, 1)
    for arguments, code, message in (
        (("prepare", manifest, tmp_path / "o"), 2, "add --codec"),
        (("validate", manifest, "--channels", "left"), 2, "--channels 'left'"),
        (("validate", manifest, "--speaker", "A"), 2, "--speaker 'A'"),
        (("inspect", tmp_path / "no"), 3, "holds no dataset.json"),
        (("synthesize", tmp_path / "no.txt", tmp_path / "o"), 3, "no.txt cannot be read"),
        (("teacher", manifest, "--kind", "x"), 2, "'x' is not one of 'phonemes', 'wavlm'"),
        (("teacher", manifest), 3, 'no list "phonemes"'),
    ):
        found, _, err = cli("data", *arguments)
        assert found == code and message in err, (arguments, err)


def test_reversed_and_missing_times_are_told(cli, tmp_path, codec):
    words = [["a", [0.9, 0.3], "SPEAKER_MAIN"], ["b", [None, None], "SPEAKER_MAIN"], ["c", [1.5, 1.7], "SPEAKER_MAIN"]]
    line = write_item(tmp_path, "bad", words, tones([["x", [0.9, 1.7], "SPEAKER_MAIN"]]))
    manifest = write_manifest(tmp_path, [line])
    code, out, _ = cli("data", "prepare", manifest, tmp_path / "out", *codec)
    assert code == 0 and "flagged reversed: 1 items, such as bad" in out and "estimated_start: 1 items" in out
    code, _, err = cli("data", "prepare", manifest, tmp_path / "strict", *codec, "--strict")
    assert code == 3 and "bad.wav is flagged estimated_end, estimated_start, reversed" in err
    assert not (tmp_path / "strict" / "dataset.json").exists()


def test_prepare_inspect_report(cli, tmp_path, codec):
    manifest = write_set(tmp_path / "in", 3)
    tokenizer = tmp_path / "tokenizer.model"
    train_tokenizer(["hello yes"], 300).save(tokenizer)
    code, out, _ = cli("data", "prepare", manifest, tmp_path / "out", *codec)
    assert code == 0 and "3 of 3 items usable" in out and "1 shards, 3 codebooks" in out
    code, out, _ = cli("data", "inspect", tmp_path / "out", "call-1", "--tokenizer", tokenizer)
    assert code == 0 and "call-1: 2.40 s, 30 frames" in out
    lines = {line[:10].strip(): line[11:] for line in out.splitlines() if line}
    frame = int(1.05 * 12.5)
    assert lines["model says"][frame:].startswith("yes") and lines["user says"].strip() == "hello"
    assert lines["text row"][frame - 1] == "_" and lines["text row"][0] == "."
    assert lines["model  0"][frame + 1] != " " and lines["model  0"].strip() and lines["model  0"][0] == " "
    code, _, err = cli("data", "inspect", tmp_path / "out", "call-9")
    assert code == 3 and "call-" in err
    code, out, _ = cli("data", "report", tmp_path / "out", "--tokenizer", tokenizer)
    assert code == 0 and "3 items" in out and "0 tokens lost" in out
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Data set out" in page and "hello" in page and 'src="http' not in page


def test_prepare_text(cli, tmp_path):
    tokenizer, texts = tmp_path / "tokenizer.model", tmp_path / "texts.txt"
    train_tokenizer(["hello yes"], 300).save(tokenizer)
    texts.write_text("hello yes\nyes hello\n")
    code, _, err = cli("data", "prepare", texts, tmp_path / "out")
    assert code == 2 and "add --tokenizer" in err
    code, out, _ = cli("data", "prepare", texts, tmp_path / "out", "--tokenizer", tokenizer)
    assert code == 0 and "2 documents" in out


def test_an_unfinished_set_says_how_to_finish(cli, tmp_path, codec, monkeypatch):
    manifest = write_set(tmp_path / "in", 4)
    encoder = LevelEncoder(fail_after=1)
    from moshijax.data.encoder import CodecEncoder

    monkeypatch.setattr(CodecEncoder, "load", classmethod(lambda cls, path, count=None: encoder))
    code, _, err = cli("data", "prepare", manifest, tmp_path / "out", *codec, "--shard-items", "2")
    assert code == 75 and "run the same command again" in err
    code, _, err = cli("data", "report", tmp_path / "out")
    assert code == 3 and "is unfinished (1 shards" in err
    encoder.fail_after = None
    code, out, _ = cli("data", "prepare", manifest, tmp_path / "out", *codec, "--shard-items", "2")
    assert code == 0 and "4 of 4 items usable" in out


@pytest.mark.slow
def test_from_texts_to_grids(cli, tmp_path):
    """Synthesis, teacher, and preparation with a real codec, as a user runs them."""
    pytest.importorskip("espeakng_loader")
    from moshijax import codec
    from moshijax.codec.configs import TINY
    from moshijax.data.records import RecordSource

    texts = tmp_path / "texts.txt"
    texts.write_text(
        "== one\nuser: What time is it?\nmodel: It is ten.\n== two\nmodel: Good evening.\nuser -0.2: Hello.\n"
    )
    code, out, _ = cli("data", "synthesize", texts, tmp_path / "calls", "--seed", 1, "--copies", 2)
    assert code == 0 and "4 recordings" in out
    code, out, _ = cli("data", "teacher", tmp_path / "calls")
    assert code == 0 and "phonemes" in out
    assert json.loads((tmp_path / "calls" / "teacher" / "teacher.json").read_text())["rate"] == 50

    from moshijax.data.encoder import CodecEncoder

    params = codec.init(TINY, jax.random.key(0))
    with pytest.MonkeyPatch.context() as patch:
        load = classmethod(lambda cls, path, count=None: cls(TINY, params, count))
        patch.setattr(CodecEncoder, "load", load)
        code, out, _ = cli(
            "data", "prepare", tmp_path / "calls", tmp_path / "out", "--codec", "x", "--num-codebooks", 4
        )
    assert code == 0 and "4 of 4 items usable" in out
    for record in RecordSource(tmp_path / "out"):
        assert record["codes"].shape == (2, 4, int(np.ceil(record["duration"] * RATE / 1920 - 1e-9)))
