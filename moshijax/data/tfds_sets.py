"""Public sets of TensorFlow Datasets to folders of recordings, read without TensorFlow.

A set that was prepared once, by whichever machine has TensorFlow, is shards of `tf.train.Example` (TFRecord or
ArrayRecord), `features.json` and `dataset_info.json`. That package's own audio feature cannot be made without
TensorFlow, so the samples are taken from the examples here, as `Audio` and `Tensor` features store them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from moshijax import files, optional
from moshijax.data.findings import Report
from moshijax.errors import ConfigError, DataError

RECORD = "import.json"
#: Features of speech sets that hold what is said.
TEXTS = ("text", "transcript", "transcription", "sentence", "utterance")
_PROBED = 100  # examples that decide how many bits the integers have
_SOURCE = re.compile(r"tfds:(?P<name>[\w-]+)(/(?P<config>[\w.-]+))?(:(?P<version>\d+\.\d+\.\d+))?")


@dataclass(frozen=True)
class PublicSet:
    """A prepared set of TensorFlow Datasets with one audio feature.

    Attributes:
      folder: of one version.
      name: of the set, with its config.
      kind: of its shards, tfrecord or array_record.
      splits: by name, the shards in order, each with its number of examples.
      audio: key of the audio feature.
      about: what features.json says of it.
      others: keys of the texts and numbers.
    """

    folder: Path
    name: str
    kind: str
    splits: dict[str, tuple[tuple[Path, int], ...]]
    audio: str
    about: dict[str, Any]
    others: tuple[str, ...]


def open_set(source: str, data_dir: str | Path | None = None) -> PublicSet:
    """Find a prepared set.

    Args:
      source: tfds:NAME, tfds:NAME/CONFIG, either with :VERSION; the newest version without.
      data_dir: where sets are prepared; None: as TensorFlow Datasets has it, ~/tensorflow_datasets.

    Raises:
      ConfigError: another source, or several configs and none named.
      DataError: the set is not prepared there, lacks a shard, or has no audio feature, or several.
    """
    match = _SOURCE.fullmatch(source)
    if match is None:
        raise ConfigError(f"source {source!r}: write tfds:NAME, tfds:NAME/CONFIG or tfds:NAME/CONFIG:1.0.0")
    root = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets")
    name = "/".join(filter(None, (match["name"], match["config"])))
    folder = _version(root / name, name, match["version"], root)
    features = _json(folder / "features.json").get("featuresDict", {}).get("features", {})
    audio = [key for key, about in features.items() if "audio" in about]
    # (sets made without TensorFlow have tensors in place of audio)
    tensors = [k for k, about in features.items() if k in ("audio", "speech") and "tensor" in about]
    found = audio or tensors
    if len(found) != 1:
        raise DataError(f"{folder} has {len(found)} audio features ({', '.join(found) or 'none'}): one is needed")
    others = [k for k, about in features.items() if {"text", "classLabel"} & about.keys() or _is_scalar(about)]
    about = next(features[found[0]][kind] for kind in ("audio", "tensor") if kind in features[found[0]])
    info = _json(folder / "dataset_info.json")
    kind = info.get("fileFormat", "tfrecord")
    if kind not in _READERS:
        raise DataError(f"{folder} is of format {kind}: prepare it as {' or '.join(_READERS)}")
    return PublicSet(folder, name, kind, _splits(folder, info, kind), found[0], about, tuple(sorted(others)))


def _version(folder: Path, name: str, wanted: str | None, root: Path) -> Path:
    there = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    versions = [n for n in there if re.fullmatch(r"\d+\.\d+\.\d+", n) and (folder / n / "dataset_info.json").exists()]
    if wanted in versions or (versions and wanted is None):
        return folder / (wanted or max(versions, key=lambda n: tuple(map(int, n.split(".")))))
    if there and not versions:
        raise ConfigError(f"tfds:{name} has the configs {', '.join(there)}: name one, as tfds:{name}/{there[0]}")
    which, others = f"{name} {wanted or ''}".strip(), f", but {versions}" if versions else ""
    raise DataError(
        f"{which} is not prepared in {root}{others}: run `tfds build {name} --data_dir {root}` where TensorFlow is "
        "installed, or give the folder with --data-dir"
    )


def _json(path: Path) -> dict[str, Any]:
    found = files.read_json(path, "description")
    if not isinstance(found, dict):
        raise DataError(f"{path} is no description of a set: prepare it again")
    return found


def _is_scalar(about: dict[str, Any]) -> bool:
    tensor = about.get("tensor")
    return tensor is not None and not tensor.get("shape", {}).get("dimensions")


def _splits(folder: Path, info: dict[str, Any], kind: str) -> dict[str, tuple[tuple[Path, int], ...]]:
    found = {}
    for split in info.get("splits", []):
        lengths = [int(n) for n in split.get("shardLengths", [])]
        names = []
        for number in range(len(lengths)):
            parts = {
                "DATASET": info["name"], "SPLIT": split["name"], "FILEFORMAT": kind,
                "SHARD_X_OF_Y": f"{number:05d}-of-{len(lengths):05d}",
            }  # fmt: skip
            template = split.get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
            names.append(folder / template.format(**parts))
        for path in names:
            if not path.exists():
                raise DataError(f"shard {path} is missing: copy it again, or prepare the set again")
        found[split["name"]] = tuple(zip(names, lengths, strict=True))
    return found


def _tfrecords(path: Path) -> Iterator[bytes]:
    """Yield the records of a TFRecord file: length (8 bytes), its checksum (4), data, its checksum (4)."""
    with open(path, "rb") as file:
        while head := file.read(12):
            if len(head) < 12:
                raise DataError(f"shard {path} breaks off: copy it again")
            (size,) = struct.unpack("<Q", head[:8])
            data = file.read(size)
            if len(data) < size or len(file.read(4)) < 4:
                raise DataError(f"shard {path} breaks off: copy it again")
            yield data


def _array_records(path: Path) -> Iterator[bytes]:
    reader = optional.load("array_record.python.array_record_module").ArrayRecordReader(str(path))
    try:
        for number in range(reader.num_records()):
            yield reader.read([number])[0]
    finally:
        reader.close()


_READERS: dict[str, Callable[[Path], Iterator[bytes]]] = {"tfrecord": _tfrecords, "array_record": _array_records}


def examples(found: PublicSet, split: str) -> Iterator[dict[str, Any]]:
    """Yield every example of a split as {key: list of int, float or bytes}.

    Raises:
      DataError: a shard breaks off, is no set of examples, or has other than the number of them that the set says.
    """
    optional.load("tensorflow_datasets")
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    for path, length in found.splits[split]:
        count = 0
        for data in _READERS[found.kind](path):
            try:
                features = tf_example_pb2.Example.FromString(data).features.feature
            except DecodeError as error:
                raise DataError(f"shard {path}: record {count} is no example ({error}): copy it again") from error
            yield {
                key: getattr(value, value.WhichOneof("kind") or "bytes_list").value for key, value in features.items()
            }
            count += 1
        if count != length:
            raise DataError(f"shard {path} holds {count} of {length} examples: copy it again")


def samples_of(found: PublicSet, example: dict[str, Any]) -> tuple[np.ndarray, int | None]:
    """Return the sound of an example, [N, channels] integers or floats, and its rate in Hz if the example has it.

    Raises:
      DataError: it cannot be decoded.
    """
    about, value = found.about, example.get(found.audio, ())
    shape = [int(n) for n in about.get("shape", {}).get("dimensions", ["-1"])]
    channels = shape[1] if len(shape) > 1 else 1
    if about.get("lazyDecode"):
        soundfile = optional.load("soundfile")
        try:
            samples, rate = soundfile.read(BytesIO(value[0]), dtype="int32", always_2d=True)
        except (soundfile.LibsndfileError, RuntimeError, IndexError) as error:
            raise DataError(f"its sound cannot be decoded ({error})") from error
        return samples, rate
    if about.get("encoding", "none").lower() in ("bytes", "zlib"):
        data = zlib.decompress(value[0]) if about["encoding"].lower() == "zlib" else value[0]
        flat = np.frombuffer(data, about["dtype"])
    else:
        flat = np.asarray(value, about.get("dtype", "int64"))
    if len(flat) % channels:
        raise DataError(f"it has {len(flat)} samples for {channels} channels")
    return flat.reshape(-1, channels), None


def import_set(
    found: PublicSet,
    out_dir: str | Path,
    splits: Sequence[str] = (),
    rate: int | None = None,
    progress: Callable[[int, int, Report], None] | None = None,
) -> Report:
    """Write a set as recordings: FLAC (WAV, if floats or of 32 bits), what is said in .txt beside each, a manifest.

    An example becomes `SPLIT/NUMBER.flac`; its other features stand in its line of the manifest. What is there stays,
    so that the same command continues after an interruption.

    Args:
      found: the set.
      out_dir: folder to fill.
      splits: which; all if empty.
      rate: in Hz, where the set does not say.
      progress: called after every example with examples done, how many there are, and the report so far.

    Returns:
      The report; examples that cannot be used are rejected.

    Raises:
      ConfigError: no such split, no rate, or the folder holds something else.
      DataError: a shard is damaged, or nothing is usable.
    """
    out_dir = Path(out_dir)
    if missing := sorted(set(splits) - found.splits.keys()):
        raise ConfigError(f"{found.name} has no split {missing[0]!r}, but {', '.join(found.splits)}")
    chosen = [name for name in found.splits if not splits or name in splits]
    rate = rate or int(found.about.get("sampleRate") or 0)
    if not rate and not found.about.get("lazyDecode"):
        raise ConfigError(f"{found.name} does not say its sample rate: give it with --sample-rate")
    _claim(out_dir, {"set": found.name, "version": found.folder.name, "splits": chosen, "sample_rate": rate})
    report, lines = Report(), []
    total = sum(length for name in chosen for _, length in found.splits[name])
    for split in chosen:
        bits = _bits(found, split)
        for number, example in enumerate(examples(found, split)):
            name = f"{split}/{number:06d}"
            try:
                samples, own = samples_of(found, example)
                path = _write(out_dir / name, samples, own or rate, bits)
            except DataError as error:
                report.reject(name, "unreadable", f"{found.folder}, {split} {number}: {error}")
            else:
                others = {key: _plain(example[key]) for key in found.others if key in example}
                text = next((others[key] for key in TEXTS if others.get(key)), None)
                if text is not None:
                    files.write(path.with_suffix(".txt"), f"{text}\n")
                seconds = len(samples) / (own or rate)
                lines.append({"path": f"{split}/{path.name}", "duration": seconds, "tfds": others})
                report.items, report.usable = report.items + 1, report.usable + 1
                report.seconds += seconds
                report.words += len(str(text or "").split())
            if progress is not None:
                progress(report.items, total, report)
    report.require_usable(found.folder)
    files.write(out_dir / "manifest.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return report


def _claim(out_dir: Path, claim: dict[str, Any]) -> None:
    """Take a folder for an import, or find that it is of the same one."""
    record = out_dir / RECORD
    if record.exists():
        if files.read_json(record) != claim:
            raise ConfigError(f"{out_dir} holds another import, see {record}: choose a new folder")
        return
    if out_dir.exists() and any(out_dir.iterdir()):
        raise ConfigError(f"{out_dir} holds other files: choose a new or empty folder")
    out_dir.mkdir(parents=True, exist_ok=True)
    files.write_json(record, claim)


def _bits(found: PublicSet, split: str) -> int:
    """Return how many bits the integers of a split have, which 64-bit features do not say: 16 or 32."""
    if found.about.get("lazyDecode"):
        return 32  # as the decoder gives them
    peak = 0
    for example in islice(examples(found, split), _PROBED):
        with contextlib.suppress(DataError):
            samples = samples_of(found, example)[0]
            if samples.dtype.kind in "iu" and samples.size:
                peak = max(peak, int(samples.max()), -int(samples.min()))
    return 16 if peak <= 1 << 15 else 32


def _write(path: Path, samples: np.ndarray, rate: int, bits: int) -> Path:
    """Write a recording unless it is there, and return its path."""
    if not len(samples):
        raise DataError("it has no samples")
    if samples.dtype.kind == "f":
        path, kind, samples = path.with_suffix(".wav"), "FLOAT", samples.astype(np.float32)
    else:
        if max(int(samples.max()), -int(samples.min())) > 1 << bits - 1:
            raise DataError(f"its samples have more than the {bits} bits of others: the set is of two scales")
        # What was FLAC of 16 or 24 bits becomes that again: its low bits are 0.
        low = 16 if bits == 16 or not (samples & 0xFFFF).any() else 24 if not (samples & 0xFF).any() else 32
        samples = (samples >> (bits - 16)).astype(np.int16) if low == 16 else samples.astype(np.int32)
        path, kind = path.with_suffix(".wav" if low == 32 else ".flac"), f"PCM_{low}"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        with files.staged(path) as partial:
            form = "WAV" if path.suffix == ".wav" else "FLAC"
            optional.load("soundfile").write(str(partial), samples, rate, subtype=kind, format=form)
    return path


def _plain(value: Any) -> Any:
    """Return a text or a number of an example as JSON has it."""
    first = value[0] if len(value) else None
    return first.decode("utf-8", "replace") if isinstance(first, bytes) else first
