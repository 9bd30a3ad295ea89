"""Jobs over what is in buckets: the same bytes as from folders, names as the user writes them, nothing left here."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import fsspec
import pytest

from moshijax.data import buckets, records
from moshijax.data.checks import CheckRules, validate
from moshijax.data.documents import prepare_text
from moshijax.data.manifest import read_manifest, read_recordings
from moshijax.data.prepare import PrepareConfig, prepare
from moshijax.data.text import train_tokenizer
from moshijax.data.transcript import UnknownSpeaker
from moshijax.errors import DataError, MoshijaxError
from tests.data.sets import LevelEncoder, write_item, write_manifest, write_set

SMALL = PrepareConfig(shard_items=2)


@pytest.fixture
def bucket(tmp_path, monkeypatch) -> Path:
    """The folder that stands for gs://calls, of a driver that every process finds; and one for what is fetched."""
    monkeypatch.syspath_prepend(Path(__file__).parent / "drivers")
    monkeypatch.setenv("BUCKETS", str(tmp_path / "buckets"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "fetched"))
    for name in ("gcs", "gs"):
        fsspec.register_implementation(name, "gcsfs.GCSFileSystem", clobber=True)
    for name in ("buckets/calls", "fetched"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path / "buckets" / "calls"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_set_in_a_bucket_gives_the_bytes_of_one_in_a_folder_and_leaves_nothing_here(tmp_path, bucket):
    lines = [{"path": f"call-{number}.wav"} for number in range(4)]
    write_set(bucket / "in", 4)
    (bucket / "in" / "call-1.wav").write_bytes(b"not a recording" * 10)
    manifest = write_manifest(bucket / "in", [*lines, {"path": "gone.wav"}])
    here = prepare(read_manifest(manifest), tmp_path / "here", LevelEncoder(), SMALL)
    there = prepare(read_manifest("gs://calls/in/manifest.jsonl"), "gs://calls/out", LevelEncoder(), SMALL)
    assert there.report.usable == 3 and there.report.kinds == {"unreadable": 2}
    assert [reason.split(" ")[1] for _, reason in there.report.rejected] == [
        "gs://calls/in/call-1.wav", "gs://calls/in/gone.wav"
    ]  # fmt: skip
    one, two = files_of(tmp_path / "here"), files_of(bucket / "out")
    for name in ("dataset.json", "sources.json"):
        one[name] = one[name].replace(str(bucket).encode(), b"gs://calls")
    assert one["dataset.json"] == two["dataset.json"] and one.keys() == two.keys()
    assert all(one[name] == two[name] for name in one if name.endswith(".arrayrecord"))
    assert here.index["sha256"] == there.index["sha256"]
    assert list((tmp_path / "fetched").iterdir()) == []


def test_a_job_in_a_bucket_continues_and_notices_what_has_changed(bucket):
    write_set(bucket / "in", 5)
    content = read_recordings("gs://calls/in")
    with pytest.raises(KeyboardInterrupt):
        prepare(content, "gs://calls/out", LevelEncoder(fail_after=1), SMALL)
    assert prepare(content, "gs://calls/out", LevelEncoder(), SMALL).written == 2
    assert prepare(content, "gs://calls/out", LevelEncoder(), SMALL).written == 0
    write_item(bucket / "in", "call-0", [["other", [0.3, 0.9], "SPEAKER_USER"]])
    assert prepare(content, "gs://calls/out", LevelEncoder(), SMALL).written == 1
    with pytest.raises(DataError, match="gs://calls/out is in a bucket: copy it to this machine, or mount"):
        records.RecordSource("gs://calls/out")


def test_a_folder_in_a_bucket_is_listed_as_one_here(bucket):
    write_set(bucket / "in", 2)
    (bucket / "in" / "manifest.jsonl").unlink()
    (bucket / "in" / "deep").mkdir()
    for name in ("deep/.hidden.wav", "deep/film.mp4", "deep/more.flac", "note.txt"):
        shutil.copy(bucket / "in" / "call-0.wav", bucket / "in" / name)
    here, there = read_recordings(bucket / "in"), read_recordings("gs://calls/in")
    assert [item.id for item in there.items] == [item.id for item in here.items] == ["call-0", "call-1", "deep/more"]
    assert here.sha256 == there.sha256 and str(there.items[0].audio) == "gs://calls/in/call-0.wav"


def test_a_manifest_here_may_name_recordings_in_buckets(tmp_path, bucket):
    write_set(bucket / "in", 2)
    manifest = write_manifest(tmp_path, [{"path": "gs://calls/in/call-0.wav"}])
    (item,) = read_manifest(manifest).items
    assert buckets.stamp(item.audio)[0] == (bucket / "in" / "call-0.wav").stat().st_size
    assert prepare(read_manifest(manifest), tmp_path / "out", LevelEncoder(), SMALL).report.usable == 1


def test_a_speaker_without_a_map_is_named_with_its_place_in_the_bucket(bucket):
    (bucket / "in").mkdir()
    write_manifest(bucket / "in", [write_item(bucket / "in", "call", [["hello", [0.3, 0.6], "SOMEBODY"]])])
    with pytest.raises(UnknownSpeaker, match="gs://calls/in/call.json: unknown speakers, 'SOMEBODY'"):
        prepare(read_manifest("gs://calls/in"), "gs://calls/out", LevelEncoder(), SMALL)


def test_texts_in_a_bucket(tmp_path, bucket):
    for name in ("a.txt", "more/b.txt"):
        (bucket / name).parent.mkdir(exist_ok=True)
        (bucket / name).write_text(f"what is in {name}\nand this\n")
    tokenizer = train_tokenizer(["what is in a.txt", "and this", "more/b.txt"], 300)
    here = prepare_text([str(bucket / "**/*.txt")], tmp_path / "out", tokenizer)
    there = prepare_text(["gs://calls/**/*.txt"], "gs://calls/out", tokenizer)
    assert there.report.usable == 4 and here.index == there.index
    with pytest.raises(DataError, match=r"no file of text fits gs://calls/\*.md"):
        prepare_text(["gs://calls/*.md"], "gs://calls/other", tokenizer)


def test_what_cannot_be_reached_says_why(bucket, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MoshijaxError, match="s3://calls/x is in a bucket, which s3fs reads: pip install s3fs"):
        buckets.place("s3://calls/x")
    write_set(bucket / "in", 1)
    content = read_manifest("gs://calls/in")
    import gcsfs

    def refuse(*_, **__):
        raise RuntimeError("no credentials")

    monkeypatch.setattr(gcsfs.GCSFileSystem, "_open", refuse)
    with pytest.raises(MoshijaxError, match=r"cannot write gs://calls/out/begun.json \(RuntimeError: no credentials\)"):
        prepare(content, "gs://calls/out", LevelEncoder(), SMALL)


def test_validation_fetches_too(bucket):
    write_set(bucket / "in", 2)
    assert validate(read_manifest("gs://calls/in").items, CheckRules()).usable == 2
