"""What commands share: the progress bar, overrides, folders."""

from __future__ import annotations

import io
import sys

import pytest

from moshijax.cli.common import ProgressBar, overrides_of, writable
from moshijax.errors import ConfigError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_shows_title_count_and_note_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with ProgressBar("encoding", 8) as bar:
        bar(2, note="1.5 min")
        bar._bar.refresh()
        bar.retitle("writing")
        bar(12, 16)
    text = sys.stderr.getvalue()
    assert all(part in text for part in ("encoding", "2/8", "1.5 min", "writing", "12/16"))


def test_a_bar_is_silent_elsewhere(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with ProgressBar("encoding") as bar:
        bar(2, 8)
    assert not bar.shown and sys.stderr.getvalue() == ""
    monkeypatch.setattr(sys, "stderr", Terminal())
    with ProgressBar("encoding", shown=False) as bar:
        bar(2, 8)
    assert sys.stderr.getvalue() == ""


def test_overrides_are_read_in_both_forms():
    assert overrides_of(("--gin.a.b=1", "--gin.c", "x=y", "--gin.d=e=f")) == ["a.b=1", "c=x=y", "d=e=f"]
    with pytest.raises(ConfigError, match="unknown argument '--step=1'"):
        overrides_of(("--step=1",))
    with pytest.raises(ConfigError, match="--gin.a has no value"):
        overrides_of(("--gin.a",))


def test_a_folder_below_a_file_is_not_writable(tmp_path):
    assert writable(tmp_path / "new" / "folder")
    (tmp_path / "file").write_text("x")
    assert not writable(tmp_path / "file" / "folder")
