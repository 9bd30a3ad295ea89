"""Files as other programs and systems leave them: byte order marks, separators, pointers, other names for files."""

from __future__ import annotations

import json
import unicodedata

import pytest

from moshijax import config, files
from moshijax.data.checks import CheckRules, validate
from moshijax.data.manifest import read_manifest
from moshijax.data.prepare import prepare
from moshijax.data.records import RecordSource
from moshijax.data.synthesis import texts
from moshijax.data.text import Tokenizer
from moshijax.errors import ConfigError, DataError
from moshijax.weights.safetensors import TensorFile
from tests.data.sets import LevelEncoder, write_item, write_manifest, write_set

BOM = b"\xef\xbb\xbf"
LFS = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 499723\n"
ANNEX = "/annex/objects/SHA256E-s499723--" + "0" * 64 + ".model\n"


def reasons(folder, *paths):
    """Why the items of these paths are rejected; a good one beside them is not."""
    lines = [write_item(folder, "good"), *({"path": path} for path in paths)]
    report = validate(read_manifest(write_manifest(folder, lines)).items, CheckRules())
    assert report.usable == 1 and len(report.rejected) == len(paths)
    return [reason for _, reason in report.rejected]


def test_byte_order_marks_and_line_ends_of_windows(tmp_path):
    line = write_item(tmp_path, "call")
    for name in ("call.json", "manifest.jsonl"):
        content = json.dumps(line).encode() if name == "manifest.jsonl" else (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(BOM + content + b"\r\n\r\n")
    report = validate(read_manifest(tmp_path).items, CheckRules(strict=True))
    assert report.usable == 1 and report.words == 2
    (tmp_path / "texts.txt").write_bytes(BOM + b"hello there\r\nhow are you\rfine")
    assert files.lines(files.read_text(tmp_path / "texts.txt")) == ["hello there", "how are you", "fine"]
    (tmp_path / "script.txt").write_bytes(BOM + b"== one\r\nuser: Hello.\r\n")
    assert [dialogue.id for dialogue in texts.load(tmp_path / "script.txt")] == ["one"]
    recipe = b"from __gin__ import dynamic_registration\r\ninclude 'nano/fisher.gin'\r\n"
    (tmp_path / "own.gin").write_bytes(BOM + recipe)
    assert config.load(tmp_path / "own.gin") == config.load("nano/fisher.gin")
    (tmp_path / "model.json").write_bytes(BOM + b"{}")
    assert files.read_json(tmp_path / "model.json") == {}


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\u0085", "\x0c", "\x0b", "\x1c"])
def test_only_line_ends_end_lines(tmp_path, mark):
    line = {**write_item(tmp_path, "call"), "note": f"first{mark}second" if mark > " " else "control"}
    text = json.dumps(line, ensure_ascii=False)
    (tmp_path / "manifest.jsonl").write_text(text + "\n", encoding="utf-8")
    assert [item.id for item in read_manifest(tmp_path).items] == ["call"]
    (tmp_path / "texts.txt").write_text(f"one{mark}line\nanother", encoding="utf-8")
    assert files.lines(files.read_text(tmp_path / "texts.txt")) == [f"one{mark}line", "another"]
    (dialogue,) = texts.parse(f"== one\nuser: Hello{mark}there.")
    assert len(dialogue.utterances) == 1


def test_other_encodings_are_refused_by_name(tmp_path):
    for encoding in ("utf-16", "latin-1"):
        (tmp_path / "texts.txt").write_text("café", encoding=encoding)
        with pytest.raises(DataError, match=r"texts.txt is not UTF-8 \(byte \d\): convert it"):
            files.read_text(tmp_path / "texts.txt")


@pytest.mark.parametrize(("content", "command"), [(LFS, "git lfs pull"), (ANNEX, "git annex get")])
def test_files_that_were_not_fetched_are_named(tmp_path, content, command):
    path = tmp_path / "bad.wav"
    path.write_text(content)
    for read in (Tokenizer.load, TensorFile, read_manifest, files.read_text, files.read_json):
        with pytest.raises(DataError, match=f"bad.wav is a git-.* pointer, not the file itself: run `{command}`"):
            read(path)
    with pytest.raises(ConfigError, match="pointer"):
        config.load(path)
    (reason,) = reasons(tmp_path, "bad.wav")
    assert f"run `{command}`" in reason


def test_prepared_data_that_was_not_fetched_is_named(tmp_path):
    prepare(read_manifest(write_set(tmp_path / "in", 1)), tmp_path / "out", LevelEncoder())
    (shard,) = (tmp_path / "out").glob("*.arrayrecord")
    shard.write_text(LFS)
    with pytest.raises(DataError, match="arrayrecord is a git-lfs pointer"):
        RecordSource(tmp_path / "out")[0]
    (tmp_path / "out" / "dataset.json").write_text(LFS)
    with pytest.raises(DataError, match="dataset.json is a git-lfs pointer"):
        RecordSource(tmp_path / "out")


def test_an_empty_tokenizer_is_named(tmp_path):
    path = tmp_path / "t.model"
    for content, message in ((b"", "is empty: copy it again"), (b"nonsense", "is not a SentencePiece model: give")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"tokenizer .*t.model {message}"):
            Tokenizer.load(path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("audio\\call.wav", "folders are separated by / here, not by \\"),
        ("C:\\data\\call.wav", "folders are separated by / here, not by \\"),
        ("~/call.wav", "~ does not stand for the home folder here"),
        ("ftp://host/call.wav", "URLs are not fetched"),
        ("https://example.org/call.wav", "URLs are not fetched"),
        ("audio", "audio cannot be read: Is a directory"),
        ("gone.wav", "gone.wav cannot be read: No such file or directory"),
    ],
)
def test_paths_of_other_systems_say_what_is_meant(tmp_path, path, message):
    (tmp_path / "audio").mkdir()
    (reason,) = reasons(tmp_path, path)
    assert message in reason


@pytest.mark.parametrize("path", [".", "/", "", "a\0b.wav", 3, None])
def test_paths_that_no_recording_can_have_are_named_by_their_line(tmp_path, path):
    manifest = write_manifest(tmp_path, [write_item(tmp_path, "good"), {"path": path}])
    with pytest.raises(DataError, match="manifest.jsonl, line 2: path is .*: give the path of a recording"):
        read_manifest(manifest)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_name_in_the_other_unicode_form_is_pointed_out(tmp_path, form):
    written, there = (unicodedata.normalize(name, "café/été") for name in (form, {"NFC": "NFD", "NFD": "NFC"}[form]))
    (tmp_path / there).parent.mkdir()
    write_item(tmp_path, there)
    (reason,) = reasons(tmp_path, f"{written}.wav")
    assert "differs from" in reason and ascii(f"{there}.wav")[1:] in reason
    # The transcript alone, as when a system rewrites names of one kind of file.
    (tmp_path / f"{there}.json").rename(tmp_path / f"{written.replace('/', '-')}.json")
    (tmp_path / f"{there}.wav").rename(tmp_path / f"{there.replace('/', '-')}.wav")
    (reason,) = reasons(tmp_path, f"{there.replace('/', '-')}.wav")
    assert "does not exist" in reason and "only in the Unicode form" in reason
