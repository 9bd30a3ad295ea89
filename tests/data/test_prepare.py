"""Preparation: what is written, resumed, refused; nothing half-written looks finished."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import soundfile

from moshijax import lock
from moshijax.data import checks, records
from moshijax.data import prepare as prepare_module
from moshijax.data.checks import CheckRules, judge
from moshijax.data.job import finish
from moshijax.data.manifest import read_manifest
from moshijax.data.prepare import GridPlan, PrepareConfig, prepare
from moshijax.data.shards import shards_of
from moshijax.errors import ConfigError, DataError, MoshijaxError
from tests.data.sets import RATE, WORDS, LevelEncoder, endanger, tones, write_item, write_manifest, write_set

SMALL = PrepareConfig(shard_items=2)


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_records(tmp_path):
    manifest = read_manifest(write_set(tmp_path / "in", 5))
    seen = []
    index, report, _ = prepare(manifest, tmp_path / "out", LevelEncoder(), SMALL, lambda d, t, r: seen.append((d, t)))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "dataset.json", *(f"shard-0000{i}-of-00003.arrayrecord" for i in range(3)), "sources.json"
    ]  # fmt: skip
    source = records.RecordSource(tmp_path / "out")
    assert len(source) == report.usable == 5 and seen[-1] == (5, 5)
    for number, record in enumerate(source):
        assert record["id"] == f"call-{number}"
        audio, _ = soundfile.read(tmp_path / "in" / f"call-{number}.wav", dtype="float32")
        expected = LevelEncoder().encode([audio[:, 0], audio[:, 1]])
        assert record["codes"].dtype == np.int16
        np.testing.assert_array_equal(record["codes"], np.stack(expected))
        assert [w[0] for w in record["words"]] == ["hello", "yes"]
        assert record["words"][0][3] == "user"
        assert record["provenance"]["sample_rate"] == RATE
    assert [shard["frames"] for shard in index["shards"]] == [[25, 30], [35, 40], [45]]


@pytest.mark.parametrize("longest", [120.0, 0.0])
def test_both_sides_of_a_recording_are_records_of_one_shard(tmp_path, monkeypatch, longest):
    """Also where it is so long that it is encoded in pieces."""
    manifest = read_manifest(write_set(tmp_path / "in", 3))
    prepare(manifest, tmp_path / "one", LevelEncoder(), SMALL)
    lines = [json.loads(line) for line in manifest.path.read_text().splitlines()]
    lines[1]["sides"] = "both"
    monkeypatch.setattr(prepare_module, "_LONG_SECONDS", longest)
    both = read_manifest(write_manifest(tmp_path / "in", lines))
    index, report, _ = prepare(both, tmp_path / "both", LevelEncoder(), SMALL)
    one, source = (list(records.RecordSource(tmp_path / name)) for name in ("one", "both"))
    assert [record["id"] for record in source] == ["call-0", "call-1", "call-1#swapped", "call-2"]
    swapped = source.pop(2)
    assert [(r["id"], r["words"], r["provenance"]) for r in source] == [
        (r["id"], r["words"], r["provenance"]) for r in one
    ]
    for mine, other in zip(source, one, strict=True):
        np.testing.assert_array_equal(mine["codes"], other["codes"])
    np.testing.assert_array_equal(swapped["codes"], one[1]["codes"][::-1])
    sides = {"model": "user", "user": "model"}
    assert swapped["words"] == [[text, start, end, sides[who]] for text, start, end, who in one[1]["words"]]
    assert swapped["provenance"] == {**one[1]["provenance"], "channels": [1, 0]}
    # Hours of sound count once; the frames of the records are of both.
    assert report.usable == 3 and report.seconds == pytest.approx(2.0 + 2.4 + 2.8)
    assert [shard["frames"] for shard in index["shards"]] == [[25, 30, 30], [35]]


def test_sides_are_of_two_streams_and_nothing_else(tmp_path):
    line = write_item(tmp_path, "a")
    manifest = write_manifest(tmp_path, [{**line, "sides": "left"}])
    with pytest.raises(DataError, match="line 1: sides is 'left': write \"both\""):
        read_manifest(manifest)
    both = read_manifest(write_manifest(tmp_path, [{**line, "sides": "both"}]))
    with pytest.raises(ConfigError, match="both sides of a, which streams 'mixed' does not know"):
        prepare(both, tmp_path / "out", LevelEncoder(), PrepareConfig(CheckRules(streams="mixed")))
    prepare(both, tmp_path / "out", LevelEncoder())
    with pytest.raises(MoshijaxError):  # a set with one side is another job
        prepare(read_manifest(write_manifest(tmp_path, [line])), tmp_path / "out", LevelEncoder())


def test_other_sample_rates_are_resampled(tmp_path):
    tmp_path.joinpath("in").mkdir()
    lines = [
        write_item(tmp_path / "in", "a"),
        write_item(tmp_path / "in", "b", audio=tones(WORDS, rate=8000), rate=8000),
    ]
    prepare(read_manifest(write_manifest(tmp_path / "in", lines)), tmp_path / "out", LevelEncoder())
    a, b = records.RecordSource(tmp_path / "out")
    assert a["codes"].shape == b["codes"].shape
    assert np.abs(a["codes"] - b["codes"]).max() <= 1
    assert b["provenance"]["sample_rate"] == 8000


def test_long_recordings_go_through_in_pieces(tmp_path, monkeypatch):
    manifest = read_manifest(write_set(tmp_path / "in", 3))
    prepare(manifest, tmp_path / "whole", LevelEncoder())
    monkeypatch.setattr(prepare_module, "_LONG_SECONDS", 2.1)
    prepare(manifest, tmp_path / "pieces", LevelEncoder())
    assert digests(tmp_path / "whole") == digests(tmp_path / "pieces")


def test_interrupted_and_continued_equals_never_interrupted(tmp_path):
    manifest = read_manifest(write_set(tmp_path / "in", 7))
    prepare(manifest, tmp_path / "whole", LevelEncoder(), SMALL)
    with pytest.raises(KeyboardInterrupt):
        prepare(manifest, tmp_path / "parts", LevelEncoder(fail_after=2), SMALL)
    with pytest.raises(DataError, match=r"parts is unfinished \(2 shards, no dataset.json\): run the same"):
        records.RecordSource(tmp_path / "parts")
    second = LevelEncoder()
    prepare(manifest, tmp_path / "parts", second, SMALL)
    assert second.calls == 2  # two of four shards were there already
    assert digests(tmp_path / "whole") == digests(tmp_path / "parts")
    third = LevelEncoder()
    index, report, _ = prepare(manifest, tmp_path / "parts", third, SMALL)
    assert third.calls == 0 and report.usable == 7 and len(index["shards"]) == 4


def test_rejected_items_are_in_the_index(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    lines = [write_item(folder, "good"), write_item(folder, "mono", audio=tones(WORDS)[:, 0])]
    manifest = read_manifest(write_manifest(folder, lines))
    index, report, _ = prepare(manifest, tmp_path / "out", LevelEncoder())
    assert index["report"]["rejected"][0][0] == "mono" and report.kinds == {"channels": 1}
    assert len(records.RecordSource(tmp_path / "out")) == 1
    with pytest.raises(DataError, match="1 of 2 items"):
        prepare(manifest, tmp_path / "strict", LevelEncoder(), PrepareConfig(rules=CheckRules(strict=True)))
    assert not (tmp_path / "strict" / "dataset.json").exists()
    only = read_manifest(write_manifest(folder, lines[1:]))
    with pytest.raises(DataError, match="none of the 1 items"):
        prepare(only, tmp_path / "none", LevelEncoder())
    assert not (tmp_path / "none" / "dataset.json").exists()


def risky_judge(item, *more):
    endanger(item.audio)
    return judge(item, *more)


def test_a_crash_of_the_decoder_rejects_its_item(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "judge", risky_judge)
    lines = [write_item(tmp_path, name) for name in ("first", "segfault", "last")]
    index, report, _ = prepare(read_manifest(write_manifest(tmp_path, lines)), tmp_path / "out", LevelEncoder())
    assert [record["id"] for record in records.RecordSource(tmp_path / "out")] == ["first", "last"]
    assert dict(report.kinds) == {"decoder": 1} == index["report"]["kinds"]
    assert "segfault.wav ended its process (exit code -11), tried 2 times" in report.rejected[0][1]


def test_another_codec_or_manifest_is_refused(tmp_path):
    manifest = read_manifest(write_set(tmp_path / "in", 2))
    prepare(manifest, tmp_path / "out", LevelEncoder())
    other = LevelEncoder()
    other.sha256 = "another"
    with pytest.raises(DataError, match=r"made with codec_sha256 = 'level-encoder', now it is 'another'"):
        prepare(manifest, tmp_path / "out", other)
    more = read_manifest(write_set(tmp_path / "in", 3))
    with pytest.raises(DataError, match=r"made of other recordings: 1 \(call-2\) added; choose another"):
        prepare(more, tmp_path / "out", LevelEncoder())


def write_half_a_character(folder, name):
    (folder / f"{name}.json").write_text('{"alignments": [["\\ud83d", [0.3, 0.6], "SPEAKER_USER"]]}')


def test_a_word_that_cannot_be_stored_rejects_its_item_alone(tmp_path):
    manifest = read_manifest(write_set(tmp_path, 3))
    write_half_a_character(tmp_path, "call-1")
    index, report, _ = prepare(manifest, tmp_path / "out", LevelEncoder())
    assert [record["id"] for record in records.RecordSource(tmp_path / "out")] == ["call-0", "call-2"]
    assert dict(report.kinds) == {"transcript": 1} and "alignment 0 is" in index["report"]["rejected"][0][1]


def test_no_memory_is_no_fault_of_an_item(tmp_path, monkeypatch):
    def full(*_):
        raise MemoryError

    monkeypatch.setattr(prepare_module.RecordMaker, "make", full)
    with pytest.raises(MemoryError):
        prepare(read_manifest(write_set(tmp_path, 1)), tmp_path / "out", LevelEncoder())


@pytest.mark.parametrize("finished", [True, False])
def test_changed_recordings_are_made_again_and_only_theirs(tmp_path, finished):
    manifest = read_manifest(write_set(tmp_path / "in", 6))
    (tmp_path / "in" / "call-0.json").write_text("no JSON")
    (tmp_path / "in" / "call-1.json").unlink()
    if finished:
        before = prepare(manifest, tmp_path / "out", LevelEncoder(), SMALL)
        assert before.written == 3 and before.report.usable == 4
        again = prepare(manifest, tmp_path / "out", LevelEncoder(), SMALL)
        assert again[1:] == (before.report, 0) and again.index["sha256"] == before.index["sha256"]
    else:
        with pytest.raises(KeyboardInterrupt):
            prepare(manifest, tmp_path / "out", LevelEncoder(fail_after=1), SMALL)
    kept = [records.shard_name(n, 3) for n in range(1, 3 if finished else 2)]
    times = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in kept}
    write_set(tmp_path / "in", 2)
    write_manifest(tmp_path / "in", [{"path": item.audio.name, "duration": item.duration} for item in manifest.items])
    after = prepare(manifest, tmp_path / "out", LevelEncoder(), SMALL)
    assert after.report.usable == 6 and after.written == 3 - len(kept)
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in kept} == times
    prepare(manifest, tmp_path / "fresh", LevelEncoder(), SMALL)
    assert digests(tmp_path / "out") == digests(tmp_path / "fresh")
    if finished:
        assert after.index["sha256"] != before.index["sha256"]


def test_a_corrected_word_is_in_the_data(tmp_path):
    manifest = read_manifest(write_set(tmp_path / "in", 1))
    first = prepare(manifest, tmp_path / "out", LevelEncoder())
    sidecar = tmp_path / "in" / "call-0.json"
    sidecar.write_text(sidecar.read_text().replace("hello", "hallo"))
    assert prepare(manifest, tmp_path / "out", LevelEncoder()).index["sha256"] != first.index["sha256"]
    assert records.RecordSource(tmp_path / "out")[0]["words"][0][0] == "hallo"


def test_files_of_another_time_with_the_same_bytes_are_the_same(tmp_path):
    manifest = read_manifest(write_set(tmp_path / "in", 2))
    prepare(manifest, tmp_path / "out", LevelEncoder())
    write_set(tmp_path / "in", 2)
    for item in manifest.items:
        os.utime(item.audio, ns=(1, 1))
    assert prepare(manifest, tmp_path / "out", LevelEncoder()).written == 0


def test_recordings_that_are_gone_are_listed_and_the_data_is_kept(tmp_path):
    manifest = read_manifest(write_set(tmp_path / "in", 3))
    prepare(manifest, tmp_path / "out", LevelEncoder())
    before = digests(tmp_path / "out")
    (tmp_path / "in" / "call-1.wav").unlink()
    with pytest.raises(DataError, match=r"no longer there: 1 \(.*call-1.wav\); put them back"):
        prepare(manifest, tmp_path / "out", LevelEncoder())
    assert digests(tmp_path / "out") == before


def test_a_folder_with_other_files_is_refused_and_stays_as_it_is(tmp_path):
    manifest = read_manifest(write_set(tmp_path / "in", 1))
    before = digests(tmp_path / "in")
    with pytest.raises(ConfigError, match="in holds other files, such as call-0.json: choose a new or empty folder"):
        prepare(manifest, tmp_path / "in", LevelEncoder())
    assert digests(tmp_path / "in") == before


def test_a_second_process_in_a_folder_is_refused(tmp_path):
    manifest = read_manifest(write_set(tmp_path / "in", 1))
    (tmp_path / "out").mkdir()
    with lock.inside(tmp_path / "out"), pytest.raises(MoshijaxError, match=f"written by process {os.getpid()} on"):
        prepare(manifest, tmp_path / "out", LevelEncoder())
    assert prepare(manifest, tmp_path / "out", LevelEncoder()).written == 1


def test_damaged_data_sets_are_refused(tmp_path):
    prepare(read_manifest(write_set(tmp_path / "in", 4)), tmp_path / "out", LevelEncoder(), SMALL)
    first = tmp_path / "out" / records.shard_name(0, 2)
    content = first.read_bytes()
    first.write_bytes(content[:1000])
    with pytest.raises(DataError, match="cannot be read"):
        records.RecordSource(tmp_path / "out")[0]
    first.unlink()
    with pytest.raises(DataError, match=r"shard .*shard-00000-of-00002.arrayrecord is missing"):
        records.RecordSource(tmp_path / "out")
    with pytest.raises(DataError, match=r"holds no dataset.json"):
        records.RecordSource(tmp_path / "nowhere")
    first.write_bytes(content)
    index = json.loads((tmp_path / "out" / "dataset.json").read_text())
    (tmp_path / "out" / "dataset.json").write_text(json.dumps({**index, "format_version": 99}))
    with pytest.raises(DataError, match="format version 99"):
        records.RecordSource(tmp_path / "out")


def test_full_disk_leaves_nothing_that_looks_finished(tmp_path):
    """A limit on file size stands for a disk without room."""
    code = f"""
        import resource, signal, sys
        from pathlib import Path
        import numpy as np
        from moshijax.data.records import write_shard
        from moshijax.errors import MoshijaxError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        noise = np.random.RandomState(0).randint(0, 2000, (2, 8, 50_000)).astype(np.int16)
        try:
            write_shard(Path({str(tmp_path)!r}) / "a.arrayrecord", [{{"codes": noise}}])
        except MoshijaxError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert "cannot write" in done.stdout and "free some space" in done.stdout, done
    assert list(tmp_path.iterdir()) == []


def test_failing_records_leave_no_shard(tmp_path):
    def content():
        yield {"a": 1}
        raise MoshijaxError("no")

    with pytest.raises(MoshijaxError, match="no"):
        records.write_shard(tmp_path / "x.arrayrecord", content())
    assert list(tmp_path.iterdir()) == []


def test_empty_shards_and_empty_codes(tmp_path):
    records.write_shard(tmp_path / "x.arrayrecord", [])
    assert records.unpack(records.pack({"c": np.zeros((2, 3, 0), np.int16)}))["c"].shape == (2, 3, 0)


def test_a_shard_made_in_another_process_has_the_same_bytes(tmp_path):
    """A plan and some items travel by pickle; what comes back is all that the index needs."""
    manifest = read_manifest(write_set(tmp_path / "in", 5))
    index, report, _ = prepare(manifest, tmp_path / "here", LevelEncoder(), SMALL)
    plan = GridPlan(SMALL.shard_items, False, LevelEncoder(), SMALL)
    (tmp_path / "there").mkdir()
    calls = [(plan, items, tmp_path / "there" / name) for name, items in shards_of(manifest, plan)]
    code = "import pickle, sys; from moshijax.data.shards import make_shard; calls = pickle.load(sys.stdin.buffer); " \
        "sys.stdout.buffer.write(pickle.dumps([make_shard(*call) for call in reversed(calls)]))"  # fmt: skip
    made = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(calls), capture_output=True, check=True)
    results = pickle.loads(made.stdout)[::-1]
    assert finish(manifest, tmp_path / "there", plan, results) == (index, report)
    assert digests(tmp_path / "here") == digests(tmp_path / "there")


def test_few_shards_are_open_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(records._Open, "MOST", 2)
    prepare(
        read_manifest(write_set(tmp_path / "in", 5)), tmp_path / "out", LevelEncoder(), PrepareConfig(shard_items=1)
    )
    source = pickle.loads(pickle.dumps(records.RecordSource(tmp_path / "out")))

    def opened():
        files = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
        return [name for name in files if name.endswith(".arrayrecord")]

    before = len(opened())
    for number in (0, 1, 2, 3, 4, 0, 4, 2):
        assert source[number]["id"] == f"call-{number}"
        assert len(opened()) - before <= 2
    assert len(opened()) - before == 2
