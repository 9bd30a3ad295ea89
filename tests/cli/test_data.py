"""`moshijax data`: what users see, and exit codes."""

from __future__ import annotations

import json
import shutil

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
    (tmp_path / "questions.txt").write_text("What is two plus two? => four\n")
    (tmp_path / "script.txt").write_text("== one\nuser: What is two plus two?\nmodel: four\n")
    for arguments, code, message in (
        (("prepare", manifest, tmp_path / "o"), 2, "add --codec"),
        (("synthesize", tmp_path / "questions.txt", tmp_path / "o", "--copies", 3), 2, "say with --calls how many"),
        (("synthesize", tmp_path / "script.txt", tmp_path / "o", "--calls", 3), 2, "holds dialogues: use --copies"),
        (("validate", manifest, "--channels", "left"), 2, "--channels 'left'"),
        (("validate", manifest, "--speaker", "A"), 2, "--speaker 'A'"),
        (("validate", manifest, "--speaker", "A=user", "--speaker", "A=model"), 2, "'A' is user and that it is model"),
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


@pytest.mark.parametrize(("label", "option"), [(0, "0=user"), (None, "=user"), (True, "true=user"), ("", "=user")])
def test_the_remedy_for_an_unknown_speaker_works(cli, tmp_path, label, option):
    words = [[WORDS[0][0], WORDS[0][1], label], WORDS[1]]
    manifest = write_manifest(tmp_path, [write_item(tmp_path, "call", words, tones(WORDS))])
    code, _, err = cli("data", "validate", manifest)
    assert code == 3 and f"--speaker {option}" in err
    code, out, _ = cli("data", "validate", manifest, "--speaker", option, "--strict")
    assert code == 0 and "1 of 1 items usable: 0.0 minutes, 2 words" in out


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


def test_words_that_a_tokenizer_cannot_write_are_counted_and_named(cli, tmp_path, codec):
    words = [WORDS[0], ["naïve", WORDS[1][1], "SPEAKER_MAIN"]]
    manifest = write_manifest(
        tmp_path, [write_item(tmp_path, "call", words, tones(words)), write_item(tmp_path, "good")]
    )
    train_tokenizer(["hello yes"], 30, byte_fallback=False).save(tmp_path / "tokenizer.model")
    tokenizer = "--tokenizer", tmp_path / "tokenizer.model"
    code, out, _ = cli("data", "validate", manifest, *tokenizer)
    assert code == 0 and "1 words placed" in out
    assert "the tokenizer lacks characters of 'naïve', 1 times in call\n  1 such words are left out" in out
    code, _, _ = cli("data", "prepare", manifest, tmp_path / "out", *codec)
    assert code == 0
    code, out, _ = cli("data", "report", tmp_path / "out", *tokenizer)
    assert code == 0 and "1 left out, 0 tokens lost" in out
    code, out, _ = cli("data", "inspect", tmp_path / "out", "call", *tokenizer)
    assert code == 0 and "text row: 0 words placed" in out


def test_prepare_text(cli, tmp_path):
    tokenizer, texts = tmp_path / "tokenizer.model", tmp_path / "texts.txt"
    train_tokenizer(["hello yes"], 300).save(tokenizer)
    texts.write_text("hello yes\nyes hello\n")
    code, _, err = cli("data", "prepare", texts, tmp_path / "out")
    assert code == 2 and "add --tokenizer" in err
    more = tmp_path / "more-1.txt"
    more.write_bytes(b"hello hello\ncaf\xe9\n")
    command = ("data", "prepare", texts, tmp_path / "more-*.txt", tmp_path / "out", "--tokenizer", tokenizer)
    code, out, _ = cli(*command)
    assert code == 0 and "3 of 4 documents usable: 6 words" in out and "rejected encoding: 1 items" in out
    assert f"  rejected {more}, byte 15: the document" in out
    assert f"wrote {tmp_path / 'out'}: 1 shards, " in out and out.endswith(" tokens\n")
    code, out, _ = cli(*command)
    assert code == 0 and "whose texts have not changed" in out
    code, _, err = cli(*command[:4], tmp_path / "strict", *command[5:], "--strict")
    assert code == 3 and "1 of 4 items" in err
    code, _, err = cli("data", "prepare", texts, "manifest.jsonl", tmp_path / "out", "--tokenizer", tokenizer)
    assert code == 2 and "another input is not" in err
    code, _, err = cli(*command[:4], tmp_path / "other", *command[5:], "--copies", "2")
    assert code == 2 and "--copies is for recordings" in err and "leave it out" in err
    code, _, err = cli("data", "prepare", "a.jsonl", tmp_path / "other", "--codec", "c", "--tokenizer", tokenizer)
    assert code == 2 and "--tokenizer is for texts" in err
    code, _, err = cli("data", "prepare", "a.jsonl", "b.jsonl", tmp_path / "out", "--codec", "c")
    assert code == 2 and "prepare one at a time" in err


def test_a_job_on_beam_says_and_writes_what_the_local_one_does(cli, tmp_path):
    pytest.importorskip("apache_beam")
    (tmp_path / "a.txt").write_text("one line\nand another\n" * 20)
    tokenizer = train_tokenizer(["one line and another"], 40, byte_fallback=False)
    tokenizer.save(tmp_path / "t.model")
    given = [tmp_path / "a.txt", tmp_path / "out", "--tokenizer", tmp_path / "t.model"]
    code, here, _ = cli("data", "prepare", *given)
    index = (tmp_path / "out" / "dataset.json").rename(tmp_path / "local.json").read_bytes()
    assert code == 0
    shutil.rmtree(tmp_path / "out")
    code, there, _ = cli(
        "data", "prepare", *given, "--runner", "beam:direct", "--runner-option", "direct_num_workers=1"
    )
    assert (code, there) == (0, here) and (tmp_path / "out" / "dataset.json").read_bytes() == index
    code, _, err = cli("data", "prepare", *given, "--runner", "spark")
    assert code == 2 and "--runner 'spark': write local, beam:direct, or beam:" in err


def test_a_failed_preparation_of_text_leaves_no_folder(cli, tmp_path):
    tokenizer = tmp_path / "tokenizer.model"
    train_tokenizer(["hello yes"], 300).save(tokenizer)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    for name in ("latin.txt", "missing.txt", "missing-*.txt"):
        code, _, err = cli("data", "prepare", tmp_path / name, tmp_path / "out", "--tokenizer", tokenizer)
        assert code == 3 and name in err
        assert not (tmp_path / "out").exists()


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
@pytest.mark.parametrize(("voices", "package"), [("espeak-ng", "espeakng_loader"), ("hibari", "hibari")])
def test_from_texts_to_grids(voices, package, cli, tmp_path):
    """Synthesis, teacher, and preparation with a real codec, as a user runs them."""
    pytest.importorskip(package)
    from moshijax import codec
    from moshijax.codec.configs import TINY
    from moshijax.data.records import RecordSource

    texts = tmp_path / "texts.txt"
    texts.write_text(
        "== one\nuser: What time is it?\nmodel: It is ten.\n== two\nmodel: Good evening.\nuser -0.2: Hello.\n"
    )
    code, out, _ = cli("data", "synthesize", texts, tmp_path / "calls", "--seed", 1, "--copies", 2, "--voices", voices)
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


def test_transcribe_makes_a_folder_ready_for_the_other_commands(cli, tmp_path, monkeypatch, codec):
    from moshijax.data import recognizer

    class Ear:
        """Hears one word in every piece, where the tones of `write_item` begin."""

        version = "ear 1"

        def __init__(self, model, language, device):
            self.settings = {"kind": "ear", "language": language}

        def words(self, samples, rate):
            start = float(np.flatnonzero(np.abs(samples) > 0.05)[0]) / rate
            return [recognizer.TimedWord(self.settings["language"], start, start + 0.2, 0.9)]

    monkeypatch.setattr(recognizer, "Whisper", Ear)
    calls = tmp_path / "calls"
    calls.mkdir()
    for name in ("one", "two"):
        write_item(calls, name)
        (calls / f"{name}.json").unlink()
    (calls / "three.wav").write_bytes(bytes(100))
    code, _, err = cli("data", "transcribe", calls)
    assert code == 3 and "1 of the first 2 recordings" in err
    assert "rejected (1 unreadable), more than --max-rejected 0.1 allows" in err and err.count("\n") == 1
    code, out, _ = cli("data", "transcribe", calls, "--language", "fr", "--max-rejected", "0.5")
    assert code == 0 and "2 of 3 items usable: 0.1 minutes, 4 words" in out and "rejected unreadable: 1 items" in out
    assert "0.00 hours in, 0.00 kept; wrote" in out
    (label, (start, _), speaker, score), _ = json.loads((calls / "one.json").read_text())["alignments"]
    assert (label, speaker, score) == ("fr", "SPEAKER_USER", 0.9) and start == pytest.approx(0.3, abs=0.01)
    code, out, _ = cli("data", "validate", calls)
    assert code == 0 and "2 of 3 items usable: 0.1 minutes, 4 words" in out
    code, out, _ = cli("data", "prepare", calls, tmp_path / "out", *codec)
    assert code == 0 and "2 of 3 items usable" in out
    for arguments, message in (
        (("--piece-seconds", "31"), "--piece-seconds"),
        (("--channels", "left"), "--channels 'left'"),
        (("--device", "tpu"), "--device"),
    ):
        code, _, err = cli("data", "transcribe", calls, *arguments)
        assert code == 2 and message in err
