from __future__ import annotations

from dataclasses import replace

import pytest

from moshijax import optional
from moshijax.errors import ConfigError, MoshijaxError
from moshijax.quickstart import stages
from moshijax.quickstart.settings import Folder, Settings
from moshijax.quickstart.stages import Stage


class Killed(BaseException):
    pass


def recording(log: list[str], fail: str = "") -> list[Stage]:
    def work(name: str):
        def run(settings, folder, tell):
            tell(0, 1, "")
            if name == fail:
                raise Killed
            log.append(name)
            return {"name": name}

        return run

    return [Stage(name, name, work(name)) for name in ("one", "two", "three")]


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    folder, log = Folder(tmp_path / "run"), []
    with pytest.raises(Killed):
        stages.run(recording(log, fail="two"), Settings(), folder)
    assert log == ["one"] and stages.done(folder, "two") is None
    finished: list[tuple[str, bool]] = []
    stages.run(
        recording(log),
        Settings(),
        folder,
        finish=lambda i, stage, marker, before: finished.append((stage.name, before)),
    )
    assert log == ["one", "two", "three"]
    assert finished == [("one", True), ("two", False), ("three", False)]
    marker = stages.done(folder, "two")
    assert marker["sessions"] == 2 and marker["figures"] == {"name": "two"}


def test_until_stops_after_its_stage(tmp_path):
    folder, log = Folder(tmp_path / "run"), []
    stages.run(recording(log), Settings(), folder, until="two")
    assert log == ["one", "two"]
    with pytest.raises(ConfigError, match="choose one of one, two, three"):
        stages.run(recording(log), Settings(), folder, until="four")


def test_a_directory_of_another_run_is_refused(tmp_path):
    folder, log = Folder(tmp_path / "run"), []
    stages.run(recording(log), Settings(seed=1), folder, until="one")
    with pytest.raises(ConfigError, match="started with seed 1, not 2"):
        stages.run(recording(log), Settings(seed=2), folder)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="holds other files"):
        stages.run(recording(log), Settings(), Folder(other))
    with pytest.raises(ConfigError, match="not a directory"):
        stages.run(recording(log), Settings(), Folder(other / "thesis.tex"))


def test_a_marker_that_was_cut_off_does_not_count(tmp_path):
    folder, log = Folder(tmp_path / "run"), []
    stages.run(recording(log), Settings(), folder, until="one")
    (folder.stages / "one.json").write_text('{"seconds"')
    stages.run(recording(log), Settings(), folder, until="one")
    assert log == ["one", "one"]


def test_a_stage_that_runs_again_takes_those_after_it_along(tmp_path):
    folder, log = Folder(tmp_path / "run"), []
    stages.run(recording(log), Settings(), folder)
    (folder.stages / "two.json").unlink()
    with pytest.raises(Killed):
        stages.run(recording(log, fail="three"), Settings(), folder)
    stages.run(recording(log), Settings(), folder)
    assert log == ["one", "two", "three", "two", "three"]


def test_an_optional_stage_is_left_out_without_its_package_and_tried_again(tmp_path):
    folder, log = Folder(tmp_path / "run"), []

    def needs_a_package(settings, folder, tell):
        raise optional.missing("faster_whisper")

    one, two, three = recording(log)
    without = [one, replace(two, work=needs_a_package, optional=True), three]
    told: list[dict] = []
    stages.run(without, Settings(), folder, finish=lambda i, stage, marker, before: told.append(marker))
    assert log == ["one", "three"] and stages.done(folder, "two") is None
    assert "pip install 'moshijax[hear]'" in told[1]["left_out"]
    stages.run(without, Settings(), folder)
    assert log == ["one", "three"]
    stages.run([one, two, three], Settings(), folder)
    assert log == ["one", "three", "two", "three"]
    with pytest.raises(MoshijaxError, match="faster_whisper"):
        stages.run([replace(one, name="other", work=needs_a_package)], Settings(), folder)
