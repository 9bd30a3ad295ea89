"""Broken recordings beside good ones: each is rejected by name and kind, and the good ones come out as without them."""

from __future__ import annotations

import pytest

from moshijax.data.checks import CheckRules, judge_apart
from moshijax.data.isolation import Isolated
from moshijax.data.manifest import read_manifest
from moshijax.data.prepare import PrepareConfig, prepare
from tests.data.sets import LevelEncoder
from tests.data.test_prepare import digests
from tools import broken


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("broken")
    broken.write(folder)
    return folder


def test_every_broken_recording_is_rejected_with_its_kind_and_its_name(folder):
    items = read_manifest(folder).items
    assert len(broken.BROKEN) >= 40 and len(items) == len(broken.BROKEN) + 4
    with Isolated() as isolated:
        for item in items:
            checked = judge_apart(isolated, item, CheckRules())[0]
            if item.id.startswith("good-"):
                assert checked.rejected is None
                continue
            assert checked.kind == broken.BROKEN[item.id].kind, (item.id, checked.rejected)
            assert f"{folder / item.id}." in checked.rejected and "\n" not in checked.rejected, checked.rejected


def test_good_recordings_come_out_as_without_the_broken_ones(folder, tmp_path):
    manifest = folder / "manifest.jsonl"
    everything = prepare(read_manifest(manifest), tmp_path / "all", LevelEncoder(), PrepareConfig(shard_items=1000))
    whole = manifest.read_text()
    broken.write_manifest(folder, [f"good-{n}.{'flac' if n == 3 else 'wav'}" for n in (1, 2, 3, 4)])
    try:
        alone = prepare(read_manifest(manifest), tmp_path / "good", LevelEncoder(), PrepareConfig(shard_items=1000))
    finally:
        manifest.write_text(whole)
    name = "shard-00000-of-00001.arrayrecord"
    assert digests(tmp_path / "all")[name] == digests(tmp_path / "good")[name]
    one, two = everything.report, alone.report
    assert (one.usable, one.seconds, one.words) == (two.usable, two.seconds, two.words) == (4, 8.0, 8)
    expected: dict[str, int] = {}
    for fault in broken.BROKEN.values():
        expected[fault.kind] = expected.get(fault.kind, 0) + 1
    assert one.kinds == expected and two.kinds == {}


def test_the_set_has_the_same_bytes_every_time(folder, tmp_path):
    broken.write(tmp_path / "again")
    for path in folder.iterdir():
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name
