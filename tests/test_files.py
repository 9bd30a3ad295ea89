"""Files appear complete or not at all, and a failed write names the file and the remedy."""

from __future__ import annotations

import errno
import functools
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from moshijax import files
from moshijax.errors import ConfigError, MoshijaxError

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
        pytest.raises(ConfigError, match=f"cannot write .*: {tmp_path / 'file'} is not a folder"),
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
        with files.staged_directory(tmp_path / "out", replace=True) as partial:
            (partial / content).write_text(content)
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["new"]


def test_a_directory_that_is_there_by_then_stays(tmp_path):
    with pytest.raises(ConfigError, match="out exists"), files.staged_directory(tmp_path / "out"):
        (tmp_path / "out").mkdir()
    assert names(tmp_path) == ["out"]
    with pytest.raises(ConfigError, match="out exists"), files.staged_directory(tmp_path / "out"):
        raise AssertionError("begun")


KILLED = """
import os, sys
from pathlib import Path
from moshijax import files
with files.staged_directory(Path(sys.argv[1])) as partial:
    (partial / "old").write_text("x")
    os._exit(9)
"""


def test_what_a_killed_process_left_is_not_taken_over(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "out")])
    assert names(tmp_path) == [".out.partial"]
    with files.staged_directory(tmp_path / "out") as partial:
        (partial / "new").write_text("x")
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["new"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_the_user_has_under_the_name_of_the_scratch_folder_stays(tmp_path, kind):
    taken = tmp_path / ".out.partial"
    thesis = taken / "thesis.txt" if kind == "folder" else taken
    thesis.parent.mkdir(exist_ok=True)
    thesis.write_text("mine")
    with pytest.raises(ConfigError, match=f"cannot write .*out: {taken} is in the way; move it"):
        with files.staged_directory(tmp_path / "out"):
            raise AssertionError("begun")
    assert thesis.read_text() == "mine" and names(tmp_path) == [".out.partial"]


def test_a_failed_directory_leaves_the_old_one(tmp_path, monkeypatch):
    with files.staged_directory(tmp_path / "out") as partial:
        (partial / "old").write_text("x")
    again = functools.partial(files.staged_directory, tmp_path / "out", replace=True)
    with pytest.raises(MoshijaxError, match="No space left"), again() as partial:
        (partial / "new").write_text("x")
        fail()
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["old"]
    rename = os.rename
    monkeypatch.setattr(os, "rename", lambda a, b: fail() if a.name == "moshijax.new" else rename(a, b))
    with pytest.raises(MoshijaxError, match="No space left"), again():
        pass
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["old"]


def test_a_full_disk_is_recognised_in_errors_of_libraries():
    assert files.is_out_of_space(FULL) and files.is_out_of_space(RuntimeError("write: No space left on device; bye"))
    assert files.is_out_of_space(OSError(errno.EDQUOT, "x")) and not files.is_out_of_space(OSError(errno.EACCES, "x"))
    assert not files.is_out_of_space(RuntimeError("no"))


# What a command is about to write ------------------------------------------------------------------------------------


def refused(match, *arguments, check=files.check_outputs):
    with pytest.raises(ConfigError, match=match) as error:
        check(*arguments)
    assert "\n" not in str(error.value)


def test_an_output_that_is_an_input_or_another_output_is_refused_with_both_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given, folder = tmp_path / "a.wav", tmp_path / "folder"
    given.write_text("x")
    folder.mkdir()
    (folder / "link.wav").symlink_to(given)
    os.link(given, folder / "hard.wav")
    (tmp_path / "alias").symlink_to(folder)
    for output in (given, "a.wav", "folder/../a.wav", folder / "link.wav", folder / "hard.wav", "alias/hard.wav"):
        refused(f"output {output} would replace the input {given}: choose another path", [None, output], [None, given])
    refused(r"output alias/new would replace the output folder/new: choose", ["folder/new", "alias/new"])
    refused(r"output b.wav would replace the input .b.wav.partial", ["b.wav"], [".b.wav.partial"])
    refused(r"output folder would replace the input alias", "folder", ["alias"], check=files.check_folder)
    files.check_outputs(["b.wav", "c.wav", None], [given, None])
    files.check_outputs(["folder/link.wav"])


def test_outputs_that_no_file_can_be(tmp_path):
    (tmp_path / "file").write_text("x")
    refused("it is a folder; name a file", [tmp_path])
    refused("its folder does not exist; create it first", [tmp_path / "missing" / "a"])
    refused("its folder does not exist", [tmp_path / "file" / "a"])
    refused("must be a name of at most 246 bytes", [tmp_path / ("n" * 247)])
    refused("must be a name of at most 246 bytes", [tmp_path / ("ü" * 124)])
    refused("must be a name of at most 246 bytes without NUL", [tmp_path / "a\0b"])
    refused("File name too long", [tmp_path / "a"], [tmp_path / ("n" * 256)])
    refused("null byte", [tmp_path / "a"], ["a\0b"])
    files.check_outputs([tmp_path / ("n" * 246)])
    (tmp_path / ".a.partial").mkdir()
    refused(f"{tmp_path / '.a.partial'} is in the way", [tmp_path / "a"])


def test_devices_are_no_outputs(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/null", tmp_path / "pipe"):
        refused(f"cannot write {path}: it is a device, not a file; name a file", [path])
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_folders_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for path, match in (
        (tmp_path / "folder", "folder exists; choose another path or remove it first"),
        (tmp_path / "file" / "a" / "b", f"{tmp_path / 'file'} is not a folder"),
        (tmp_path / ("n" * 247), "at most 246 bytes"),
    ):
        refused(match, path, check=files.check_folder)
    with pytest.raises(ConfigError, match="it is not a folder"):
        files.check_folder(tmp_path / "file", new=False)
    files.check_folder(tmp_path / "folder", new=False)
    files.check_folder(tmp_path / "a" / "b")
    assert names(tmp_path) == ["file", "folder"]


def test_a_folder_of_somebody_else_is_refused_before_the_work(tmp_path):
    tmp_path.chmod(0o555)
    user = os.getuid()
    if user == 0:  # who may write everywhere; what is asked is the real user
        os.setreuid(65534, -1)
    try:
        for check, output in ((files.check_outputs, [tmp_path / "a"]), (files.check_folder, tmp_path / "a")):
            with pytest.raises(MoshijaxError, match="cannot write .*a: Permission denied") as error:
                check(output)
            assert error.value.exit_code == 1
    finally:
        os.setreuid(user, -1)
        tmp_path.chmod(0o755)
