"""The page of a quickstart: what it proposes next."""

from __future__ import annotations

from pathlib import Path

from moshijax.quickstart.page import next_commands
from moshijax.quickstart.settings import Folder, Settings


def test_the_next_seed_is_proposed() -> None:
    first = next_commands(Settings(), Folder(Path("runs/quickstart")))[-1]
    assert first == "moshijax quickstart --run-dir runs/quickstart-seed1 --seed 1"
    second = next_commands(Settings(seed=1), Folder(Path("runs/quickstart-seed1")))[-1]
    assert second == "moshijax quickstart --run-dir runs/quickstart-seed2 --seed 2"
