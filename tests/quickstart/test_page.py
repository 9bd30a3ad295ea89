"""The page of a quickstart: what it proposes next, and what an independent ear heard."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from moshijax.eval.heard import Answer, Heard
from moshijax.quickstart import page, stages
from moshijax.quickstart.page import next_commands
from moshijax.quickstart.settings import Folder, Settings
from moshijax.quickstart.stages import Stage
from moshijax.report.page import Page


def test_the_next_seed_is_proposed() -> None:
    first = next_commands(Settings(), Folder(Path("runs/quickstart")))[-1]
    assert first == "moshijax quickstart --run-dir runs/quickstart-seed1 --seed 1"
    second = next_commands(Settings(seed=1), Folder(Path("runs/quickstart-seed1")))[-1]
    assert second == "moshijax quickstart --run-dir runs/quickstart-seed2 --seed 2"


def test_words_heard_are_on_the_page_or_said_to_be_missing(tmp_path) -> None:
    folder = Folder(tmp_path / "run")

    def listen(settings, folder, tell):
        found = Heard(
            [Answer("a", "like a stone", {"recording": "like a stone", "codec": "like a phone"})],
            {("a", kind): np.zeros(2400, np.float32) for kind in ("recording", "codec")},
            {"recording": 16_000, "codec": 24_000},
            {},
        )
        folder.calls.mkdir()
        found.save(folder.calls)
        return found.values

    def drawn() -> str:
        report = Page("report")
        page._words_heard(report, folder)
        report.write(tmp_path / "report.html")
        return (tmp_path / "report.html").read_text()

    assert page.words_heard(folder) is None and "Not measured: install the extra" in drawn()
    stages.run([Stage("heard", "listen", listen, optional=True)], Settings(), folder)
    text = drawn()
    assert "33.3%" in text and "heard: like a phone" in text and text.count("<audio") == 2
