"""Files appear complete or not at all, and a failed write names the file and the remedy."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from moshijax import files
from moshijax.errors import MoshijaxError

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail(*args: object) -> None:
    raise FULL


def test_text_bytes_and_json_are_written(tmp_path):
    files.write(tmp_path / "a", "Grüße\n")
    files.write(tmp_path / "b", b"\x00\xff")
    files.write_json(tmp_path / "c", {"b": "ü", "a": [1]})
    assert (tmp_path / "a").read_bytes() == "Grüße\n".encode()
    assert (tmp_path / "b").read_bytes() == b"\x00\xff"
    assert (tmp_path / "c").read_text("utf-8") == '{\n  "b": "ü",\n  "a": [\n    1\n  ]\n}\n'
    assert names(tmp_path) == ["a", "b", "c"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, call):
    files.write(tmp_path / "a", "old")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(MoshijaxError, match="cannot write .*a: No space left on device; free some space or choose"):
        files.write(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old" and names(tmp_path) == ["a"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    files.write(tmp_path / "a", "old")
    with pytest.raises(KeyboardInterrupt), files.staged(tmp_path / "a") as partial:
        partial.write_text("ne")
        raise KeyboardInterrupt
    assert (tmp_path / "a").read_text() == "old" and names(tmp_path) == ["a"]


def test_the_name_is_given_after_the_content_is_on_the_disk(tmp_path, monkeypatch):
    order = []
    for call in ("fsync", "replace"):
        real = getattr(os, call)
        monkeypatch.setattr(os, call, lambda *args, call=call, real=real: (order.append(call), real(*args)))
    files.write(tmp_path / "a", "new")
    assert order == ["fsync", "replace"]


def test_what_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "a", tmp_path / "missing" / "a"):
        with pytest.raises(MoshijaxError, match=f"cannot write {path}: "):
            files.write(path, "x")
    with (
        pytest.raises(MoshijaxError, match="cannot write .*: Not a directory"),
        files.staged_directory(tmp_path / "file" / "deep" / "er"),
    ):
        pass
    (tmp_path / "folder").mkdir()
    with pytest.raises(MoshijaxError, match="Is a directory"):
        files.write(tmp_path / "folder", "x")


def test_a_folder_without_permission_is_named(tmp_path, monkeypatch):
    def refuse(a, b):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(a), None, str(b))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(MoshijaxError, match="cannot write .*a: Permission denied"):
        files.write(tmp_path / "a", "x")


def test_an_error_about_another_file_passes(tmp_path):
    for staging in (files.staged, files.staged_directory):
        with pytest.raises(FileNotFoundError), staging(tmp_path / "a"):
            (tmp_path / "source").read_bytes()
    assert names(tmp_path) == []


def test_a_directory_takes_the_place_of_the_old_one(tmp_path):
    for content in ("old", "new"):
        with files.staged_directory(tmp_path / "out") as partial:
            (partial / content).write_text(content)
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["new"]


def test_what_a_killed_process_left_is_not_taken_over(tmp_path):
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "old").write_text("x")
    with files.staged_directory(tmp_path / "out") as partial:
        (partial / "new").write_text("x")
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["new"]


def test_a_failed_directory_leaves_the_old_one(tmp_path, monkeypatch):
    with files.staged_directory(tmp_path / "out") as partial:
        (partial / "old").write_text("x")
    with pytest.raises(MoshijaxError, match="No space left"), files.staged_directory(tmp_path / "out") as partial:
        (partial / "new").write_text("x")
        fail()
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["old"]
    rename = os.rename
    monkeypatch.setattr(os, "rename", lambda a, b: fail() if a.name == ".out.partial" else rename(a, b))
    with pytest.raises(MoshijaxError, match="No space left"), files.staged_directory(tmp_path / "out"):
        pass
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["old"]


def test_a_full_disk_is_recognised_in_errors_of_libraries():
    assert files.is_out_of_space(FULL) and files.is_out_of_space(RuntimeError("write: No space left on device; bye"))
    assert files.is_out_of_space(OSError(errno.EDQUOT, "x")) and not files.is_out_of_space(OSError(errno.EACCES, "x"))
    assert not files.is_out_of_space(RuntimeError("no"))
