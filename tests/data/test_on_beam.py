"""Jobs on Beam: shards, index and report equal those of the local runner, also when a worker is killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

pytest.importorskip("apache_beam")

from moshijax.data.checks import CheckRules
from moshijax.data.isolation import Isolated
from moshijax.data.manifest import read_manifest
from moshijax.data.on_beam import OnBeam, runner_of
from moshijax.data.prepare import PrepareConfig, prepare
from moshijax.errors import ConfigError, DataError
from tests.data.sets import LevelEncoder, write_item, write_manifest, write_set
from tests.data.test_prepare import digests

SMALL = PrepareConfig(shard_items=2)


class MortalEncoder(LevelEncoder):
    """Is killed with its process at its second call, once; `mark` says that this has been."""

    def __init__(self, mark: Path):
        super().__init__()
        self.mark = mark

    def encode(self, waveforms):
        if not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(waveforms)


def test_shards_index_and_report_are_those_of_the_local_runner_also_when_a_worker_is_killed(tmp_path):
    write_set(tmp_path / "in", 6)
    lines = [{"path": f"call-{number}.wav"} for number in range(6)]
    (tmp_path / "in" / "call-3.wav").write_bytes(b"not a recording" * 10)
    manifest = read_manifest(write_manifest(tmp_path / "in", [*lines, {"path": "gone.wav"}]))
    here = prepare(manifest, tmp_path / "here", LevelEncoder(), SMALL)
    seen = []
    mortal = MortalEncoder(tmp_path / "mark")
    there = prepare(
        manifest, tmp_path / "there", mortal, SMALL, lambda *done: seen.append(done[:2]),
        OnBeam("direct", ["direct_num_workers=2", "direct_running_mode=multi_threading"]),
    )  # fmt: skip
    assert mortal.mark.exists() and there.written == 4 and seen == [(7, 7)]
    assert digests(tmp_path / "here") == digests(tmp_path / "there")
    assert here.report == there.report and here.index == there.index
    # Whoever did it, another runner finds it done, and does what has changed.
    assert prepare(manifest, tmp_path / "there", LevelEncoder(), SMALL).written == 0
    write_item(tmp_path / "in", "call-5")
    assert prepare(manifest, tmp_path / "there", LevelEncoder(), SMALL, runner=OnBeam("direct")).written == 1


def test_what_stops_a_job_is_told_in_one_line_and_the_rest_is_kept(tmp_path):
    lines = [write_item(tmp_path, name) for name in ("one", "two", "three")]
    manifest = read_manifest(write_manifest(tmp_path, lines))
    write_item(tmp_path, "two", [["hello", [0.3, 0.6], "SOMEBODY"]])
    one = PrepareConfig(shard_items=1)
    with pytest.raises(DataError, match="two.json: unknown speakers, 'SOMEBODY'"):
        prepare(manifest, tmp_path / "out", LevelEncoder(), one, runner=OnBeam("direct"))
    assert not list((tmp_path / "out").glob("*.failed.json"))
    write_item(tmp_path, "two")
    assert prepare(manifest, tmp_path / "out", LevelEncoder(), one, runner=OnBeam("direct")).written == 1


def test_a_strict_job_ends_without_an_index(tmp_path):
    manifest = read_manifest(write_manifest(tmp_path, [write_item(tmp_path, "one"), {"path": "gone.wav"}]))
    strict = PrepareConfig(rules=CheckRules(strict=True))
    with pytest.raises(DataError, match="1 of 2 items"):
        prepare(manifest, tmp_path / "out", LevelEncoder(), strict, runner=OnBeam("direct"))
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_a_stopped_job_ends_its_processes_and_continues(tmp_path, monkeypatch):
    manifest = read_manifest(write_set(tmp_path / "in", 2))
    ended, plain = [], Isolated.__call__

    def stopped(self, *call, **options):
        ended.append(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(Isolated, "__call__", stopped)
    with pytest.raises(KeyboardInterrupt):
        prepare(manifest, tmp_path / "out", LevelEncoder(), runner=OnBeam("direct"))
    assert ended and not any(isolated.close.alive for isolated in ended)
    monkeypatch.setattr(Isolated, "__call__", plain)
    assert prepare(manifest, tmp_path / "out", LevelEncoder(), runner=OnBeam("direct")).written == 1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("locall", "", "--runner 'locall': write local, beam:direct, or beam: and the name of a Beam runner"),
        ("beam:", "", "--runner 'beam:': write local"),
        ("local", "x=1", "--runner-option x=1 is of Beam: add --runner beam:RUNNER"),
        ("beam:NoRunner", "", "Beam has no runner 'NoRunner'"),
        (
            "beam:direct",
            "direct_num_workers=many",
            "Beam has no runner 'direct' with the options direct_num_workers=many",
        ),
        ("beam:direct", "direct_running_mode=multi_processing", "leave it out"),
    ],
)
def test_wrong_runners_are_refused_before_anything_begins(name, options, message):
    with pytest.raises(ConfigError, match=message):
        runner_of(name, [options] if options else [])
