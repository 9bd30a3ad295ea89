"""Folders of audio without a manifest: what is found in them, and what is left out and said."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from moshijax.data import audio
from moshijax.data.manifest import AUDIO_SUFFIXES, read_recordings
from moshijax.errors import DataError


def write(path: Path, **how) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(2400, 0.1), 24_000, **how)
    return path


def found(folder: Path) -> list[str]:
    return [item.id for item in read_recordings(folder).items]


def test_companions_and_copies_are_hidden(tmp_path, caplog):
    for number in range(3):
        write(tmp_path / f"call-{number}.wav")
        (tmp_path / f"._call-{number}.wav").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(4000))
    write(tmp_path / ".ipynb_checkpoints" / "call-0-checkpoint.wav")
    assert found(tmp_path) == ["call-0", "call-1", "call-2"]
    (record,) = caplog.records
    first = tmp_path / "._call-0.wav"
    assert record.getMessage() == f"{tmp_path}: 3 recordings; left out: 4 hidden, such as {first}"


def test_links_are_followed_once_and_loops_end(tmp_path, caplog):
    for part in ("a", "b"):
        write(tmp_path / "store" / part / f"call-{part}.wav")
        (tmp_path / "set" / part).parent.mkdir(exist_ok=True)
        (tmp_path / "set" / part).symlink_to(Path("..") / "store" / part)
    folder = tmp_path / "set"
    write(folder / "own" / "call-own.wav")
    assert found(folder) == ["a/call-a", "b/call-b", "own/call-own"] and not caplog.records
    (folder / "again").symlink_to("own")
    (folder / "loop").symlink_to(".")
    (folder / "itself").symlink_to("itself")
    (folder / "twin.wav").symlink_to("own/call-own.wav")
    for number in range(4):
        (folder / f"absent-{number}.wav").symlink_to(f".git/annex/objects/{number}.wav")
    assert found(folder) == ["a/call-a", "b/call-b", "own/call-own"]
    message = caplog.records[-1].getMessage()
    assert f"3 recordings; left out: 5 links that lead nowhere, such as {folder / 'absent-0.wav'}; " in message
    assert f"3 links to what is there already, such as {folder / 'again'}" in message
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "x.wav").symlink_to("nowhere.wav")
    with pytest.raises(DataError, match="only holds no audio .* left out: 1 links that lead nowhere, such as .*x.wav"):
        read_recordings(tmp_path / "only")


def test_a_folder_that_cannot_be_opened_is_named(tmp_path, caplog, monkeypatch):
    write(tmp_path / "here.wav")
    write(tmp_path / "private" / "there.wav")
    listed = os.scandir

    def scandir(path):
        if Path(path).name == "private":  # (whoever is root may open it)
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert found(tmp_path) == ["here"]
    assert f"1 not open to us (Permission denied), such as {tmp_path / 'private'}" in caplog.text


def test_all_that_is_read_is_found_and_the_rest_is_counted(tmp_path, caplog):
    formats = {
        ".wav": "WAV", ".wave": "WAVEX", ".bwf": "WAV", ".rf64": "RF64", ".w64": "W64", ".flac": "FLAC", ".ogg": "OGG",
        ".oga": "OGG", ".opus": "OGG", ".mp3": "MP3", ".mp2": "MP3", ".aif": "AIFF", ".aiff": "AIFF", ".aifc": "AIFF",
        ".au": "AU", ".snd": "AU", ".caf": "CAF", ".sph": "NIST", ".nist": "NIST", ".voc": "VOC",
    }  # fmt: skip
    assert set(formats) == set(AUDIO_SUFFIXES)
    for number, (suffix, form) in enumerate(formats.items()):
        write(tmp_path / f"{number:02}{suffix.upper() if number % 2 else suffix}", format=form)
    for name in ("a.m4a", "b.mp4", "c.webm", "d.wma", "notes.txt", "00.json"):
        (tmp_path / name).write_bytes(b"\0\0\0\x18ftypM4A " + bytes(2000))
    items = read_recordings(tmp_path).items
    assert len(items) == len(formats) and all(audio.probe(item.audio).num_samples >= 2400 for item in items)
    assert f"20 recordings; left out: 4 in formats that are not read, such as {tmp_path / 'a.m4a'}" in caplog.text


def test_a_name_that_is_not_utf8_does_not_spoil_the_folder(tmp_path, caplog):
    write(tmp_path / "good.wav")
    strange = os.path.join(os.fsencode(tmp_path), b"caf\xe9.wav")
    with open(strange, "wb") as file:
        file.write((tmp_path / "good.wav").read_bytes())
    assert found(tmp_path) == ["good"]
    assert r"1 with names that are not UTF-8, such as " in caplog.text and r"caf\udce9.wav" in caplog.text
