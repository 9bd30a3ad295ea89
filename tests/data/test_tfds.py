"""TensorFlow Datasets both ways: sets that it has written are read, and ours are opened by it, without TensorFlow.

The sets in `tfds/` were written by tensorflow-datasets 4.9.10 with TensorFlow 2.21: three and two examples of noise at
16 kHz with an `Audio` feature, whose integers are stored as such, or as FLAC (`lazy_decode`).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("tensorflow_datasets")

from moshijax.data.documents import prepare_text
from moshijax.data.manifest import read_manifest
from moshijax.data.prepare import prepare
from moshijax.data.publish import publish
from moshijax.data.records import RecordSource
from moshijax.data.text import train_tokenizer
from moshijax.data.tfds_sets import import_set, open_set
from moshijax.errors import ConfigError, DataError
from tests.data.sets import LevelEncoder, write_set
from tests.data.test_prepare import digests

SETS = Path(__file__).parent / "tfds"
STORED = ("tfrecord-eager", "array_record-eager", "tfrecord-lazy")


def noise() -> list[np.ndarray]:
    """The recordings that the sets were made of."""
    rng = np.random.default_rng(0)
    return [(rng.normal(size=320 * (i + 2)) * 1000).astype(np.int16) for i in range(3)]


@pytest.mark.parametrize("stored", STORED)
def test_a_set_becomes_the_recordings_it_was_made_of(stored, tmp_path):
    report = import_set(open_set("tfds:spoken", SETS / stored), tmp_path / "out")
    assert report.usable == report.items == 5 and report.words == 15 and report.seconds == pytest.approx(0.28)
    manifest = read_manifest(tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()]
    assert len(manifest.items) == 5
    for item, line in zip(manifest.items, lines, strict=True):
        number = line["tfds"]["speaker_id"]
        samples, rate = soundfile.read(item.audio, dtype="int16")
        np.testing.assert_array_equal(samples, noise()[number])
        assert rate == 16_000 and item.duration == len(samples) / rate
        assert item.audio.with_suffix(".txt").read_text() == f"hello number {number}\n"
        assert line["tfds"]["id"] == f"84-121123-{number:04d}"
    assert [item.id.split("/")[0] for item in manifest.items] == ["train"] * 3 + ["test_clean"] * 2


def test_all_storages_give_the_same_files_and_tensorflow_is_not_imported(tmp_path):
    code = f"""
        import sys
        from moshijax.data.tfds_sets import import_set, open_set
        for stored in {STORED!r}:
            import_set(open_set("tfds:spoken:1.0.0", {str(SETS)!r} + "/" + stored), {str(tmp_path)!r} + "/" + stored)
        assert "tensorflow" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
    one, *others = [digests(tmp_path / stored / "train") for stored in STORED]
    assert len(one) == 6 and all(other == one for other in others)


def test_an_import_goes_on_where_it_was_interrupted(tmp_path):
    found = open_set("tfds:spoken", SETS / STORED[0])

    def stop(done, *_):
        if done == 2:
            raise KeyboardInterrupt

    import_set(found, tmp_path / "whole", ["train"])
    with pytest.raises(KeyboardInterrupt):
        import_set(found, tmp_path / "parts", ["train"], progress=stop)
    assert not (tmp_path / "parts" / "manifest.jsonl").exists()
    import_set(found, tmp_path / "parts", ["train"])
    assert digests(tmp_path / "whole" / "train") == digests(tmp_path / "parts" / "train")
    with pytest.raises(ConfigError, match="parts holds another import"):
        import_set(found, tmp_path / "parts")
    with pytest.raises(ConfigError, match="tfds holds other files"):
        import_set(found, SETS)


@pytest.fixture
def copy(tmp_path):
    """A set of our own to damage: the folder of its version, and what opens and imports it."""
    shutil.copytree(SETS / STORED[0], tmp_path / "data")
    return tmp_path / "data" / "spoken" / "1.0.0", lambda *splits: import_set(
        open_set("tfds:spoken", tmp_path / "data"), tmp_path / "out", splits
    )


def test_damaged_sets_are_told(copy):
    folder, run = copy
    shard = folder / "spoken-train.tfrecord-00000-of-00002"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-20])
    with pytest.raises(DataError, match="spoken-train.tfrecord-00000-of-00002 breaks off"):
        run()
    shard.write_bytes(whole[: 16 + int.from_bytes(whole[:8], "little")])
    with pytest.raises(DataError, match=r"holds \d of \d examples"):
        run()
    shard.unlink()
    with pytest.raises(DataError, match="00000-of-00002 is missing"):
        run()


def test_sets_that_do_not_fit_are_told(copy, tmp_path):
    folder, run = copy
    with pytest.raises(ConfigError, match="spoken has no split 'dev', but train, test_clean"):
        run("dev")
    for source in ("spoken", "tfds:", "tfds:spoken/a/b", "hf:spoken"):
        with pytest.raises(ConfigError, match=f"source '{source}': write tfds:NAME"):
            open_set(source, tmp_path / "data")
    with pytest.raises(DataError, match="other is not prepared in .*: run `tfds build other --data_dir"):
        open_set("tfds:other", tmp_path / "data")
    with pytest.raises(DataError, match=r"spoken 2.0.0 is not prepared in .*, but \['1.0.0'\]"):
        open_set("tfds:spoken:2.0.0", tmp_path / "data")
    with pytest.raises(ConfigError, match="has the configs spoken: name one, as tfds:data/spoken"):
        open_set("tfds:data", tmp_path)
    features = json.loads((folder / "features.json").read_text())
    audio = features["featuresDict"]["features"]["speech"]["audio"]
    del audio["sampleRate"]
    (folder / "features.json").write_text(json.dumps(features))
    with pytest.raises(ConfigError, match="spoken does not say its sample rate: give it with --sample-rate"):
        run()
    del features["featuresDict"]["features"]["speech"]
    (folder / "features.json").write_text(json.dumps(features))
    with pytest.raises(DataError, match=r"has 0 audio features \(none\): one is needed"):
        run()


def test_examples_of_another_scale_or_without_sound_are_rejected_and_counted(copy, monkeypatch):
    import moshijax.data.tfds_sets as module

    _, run = copy
    plain, probed = module.samples_of, []

    def changed(found, example):
        samples, rate = plain(found, example)
        number = example["speaker_id"][0]
        probed.append(number)
        late = len(probed) > 3  # after the probe
        return (samples[:0] if number == 0 else samples << 8 if number == 1 and late else samples), rate

    monkeypatch.setattr(module, "samples_of", changed)
    report = run("train")
    assert report.usable == 1 and report.kinds == {"unreadable": 2}
    assert {reason.rpartition(": ")[0].split(" ")[-1] for _, reason in report.rejected} and any(
        "more than the 16 bits" in reason for _, reason in report.rejected
    )


READ = """
    import json, sys
    sys.path[:] = [path for path in sys.path if path != {root!r}]
    class Refuse:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "moshijax":
                raise ModuleNotFoundError(name)
    sys.meta_path.insert(0, Refuse())
    import tensorflow_datasets as tfds
    source = tfds.builder_from_directory({folder!r}).as_data_source({split!r})
    def plain(value):
        if isinstance(value, dict):
            return {{key: plain(part) for key, part in value.items()}}
        return value.decode() if isinstance(value, bytes) else value.tolist() if hasattr(value, "tolist") else \\
            [plain(part) for part in value] if isinstance(value, list) else value
    found = [plain(source[number]) for number in range(len(source))]
    assert "tensorflow" not in sys.modules
    print(json.dumps(found))
"""


def read_elsewhere(folder: Path, split: str, where: Path) -> list[dict]:
    code = textwrap.dedent(READ.format(folder=str(folder), split=split, root=str(Path(__file__).parents[2])))
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, cwd=where)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_a_published_set_is_opened_without_our_code(tmp_path):
    prepare(read_manifest(write_set(tmp_path / "in", 4)), tmp_path / "set", LevelEncoder())
    source = RecordSource(tmp_path / "set")
    folder = publish(source, tmp_path / "out", "my_calls", "1.2.0", "calls", "Calls of ours.")
    found = read_elsewhere(folder, "calls", tmp_path)
    assert [example["id"] for example in found] == [f"call-{number}" for number in range(4)]
    for example, record in zip(found, source, strict=True):
        np.testing.assert_array_equal(example["codes"], record["codes"])
        words = [list(word) for word in zip(*(example["words"][k] for k in ("text", "start", "end", "speaker")))]
        assert [(text, speaker) for text, _, _, speaker in words] == [(w[0], w[3]) for w in record["words"]]
        np.testing.assert_array_equal([w[1:3] for w in words], np.float32([w[1:3] for w in record["words"]]))
        assert example["duration"] == np.float32(record["duration"])
        assert json.loads(example["provenance"]) == record["provenance"]
    description = json.loads((folder / "dataset_info.json").read_text())["description"]
    assert description.startswith("Calls of ours.") and '"sha256": "level-encoder"' in description
    assert sorted(path.name for path in (tmp_path / "out").rglob(".*")) == []
    with pytest.raises(ConfigError, match="1.2.0 exists"):
        publish(source, tmp_path / "out", "my_calls", "1.2.0")
    for wrong in ({"name": "My"}, {"name": "x", "version": "1"}, {"name": "x", "split": "a b"}):
        with pytest.raises(ConfigError, match=": (use small letters|write three numbers)"):
            publish(source, tmp_path / "other", **wrong)


def test_packed_text_is_published_too(tmp_path):
    (tmp_path / "a.txt").write_text("one line\nand another\n")
    prepare_text([tmp_path / "a.txt"], tmp_path / "set", train_tokenizer(["one line and another"], 300))
    source = RecordSource(tmp_path / "set")
    (example,) = read_elsewhere(publish(source, tmp_path / "out", "lines"), "train", tmp_path)
    assert example["tokens"] == source[0]["tokens"].tolist()


def test_the_commands(tmp_path, cli):
    code, out, _ = cli("data", "import", tmp_path / "in", "--source", "tfds:spoken", "--data-dir", SETS / STORED[1])
    assert code == 0 and "5 of 5 items usable" in out and f"wrote {tmp_path / 'in' / 'manifest.jsonl'}: spoken" in out
    prepare(read_manifest(write_set(tmp_path / "calls", 2)), tmp_path / "set", LevelEncoder())
    code, out, _ = cli("data", "publish", tmp_path / "set", tmp_path / "out", "--name", "ours")
    assert (
        code == 0
        and out == f"wrote {tmp_path / 'out/ours/1.0.0'}: 2 records; open it with tfds.builder_from_directory\n"
    )
