"""Prepared sets as sets of TensorFlow Datasets, which anybody opens without our code, and nobody needs TensorFlow for.

The shards are ArrayRecord, which `tfds.builder_from_directory(FOLDER).as_data_source()` reads at random.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from moshijax import files, optional
from moshijax.data.records import RecordSource
from moshijax.errors import ConfigError, DataError

_SHARD_BYTES = 1 << 28


def publish(
    source: RecordSource,
    out_dir: str | Path,
    name: str,
    version: str = "1.0.0",
    split: str = "train",
    description: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a prepared set as a set of TensorFlow Datasets.

    Recordings have the features id (text), codes (int16 [C, Q, T], with channels and codebooks in the description),
    words (a sequence of text, start and end in seconds, speaker), duration (seconds) and provenance (text, JSON);
    packed text has tokens (int32 [N]). Times are float32, as examples have no other reals.

    Args:
      source: the prepared set.
      out_dir: where `name`/`version` is made, the data_dir of TensorFlow Datasets.
      name: of the set, small letters, digits and underlines.
      version: such as 1.0.0.
      split: under which the records stand.
      description: for people; what binds codes to their codec is added.
      progress: called after every record with records done, and how many there are.

    Returns:
      The folder that `tfds.builder_from_directory` opens; it appears when it is complete.

    Raises:
      ConfigError: such a name or version cannot be, or the folder is there.
      DataError: the set is of a kind that has no features, or a record of it cannot be read.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        raise ConfigError(f"name {name!r}: use small letters, digits and single underlines, beginning with a letter")
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise ConfigError(f"version {version!r}: write three numbers, such as 1.0.0")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", split):
        raise ConfigError(f"split {split!r}: use small letters, digits and underlines, beginning with a letter")
    tfds = optional.load("tensorflow_datasets")
    features, example = _features(tfds, source)
    folder = Path(out_dir) / name / version
    files.check_folder(folder)
    about = f"{description}\n\n{_about(source)}".strip()

    def generate() -> Iterator[tuple[int, dict[str, Any]]]:
        for number in range(len(source)):
            yield number, example(source[number])
            if progress is not None:
                progress(number + 1, len(source))

    def info(builder: Any) -> Any:
        return tfds.core.DatasetInfo(
            builder=builder, description=about, features=features, disable_shuffling=True, license=None
        )

    methods = {
        "name": name,
        "VERSION": tfds.core.Version(version),
        "_info": info,
        "_split_generators": lambda self, manager: {split: generate()},
        "_generate_examples": lambda self: None,
        "__module__": __name__,
    }
    builder_class = type("Published", (tfds.core.GeneratorBasedBuilder,), methods)
    size = sum(path.stat().st_size for path, _ in source.shards)
    shards = max(1, min(len(source), round(size / _SHARD_BYTES)))
    with files.staged_directory(folder) as staged, _quiet():
        builder = builder_class(data_dir=str(staged), file_format="array_record")
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=shards))
        made = staged / name / version
        for path in list(made.iterdir()):
            path.rename(staged / path.name)
        for extra in (staged / name, staged / "downloads"):
            shutil.rmtree(extra, ignore_errors=True)
    return folder


def _features(tfds: Any, source: RecordSource) -> tuple[Any, Callable[[dict[str, Any]], dict[str, Any]]]:
    """Return the features of a set, and what makes an example of a record."""
    kinds = tfds.features
    if source.index["kind"] == "text":
        features = kinds.FeaturesDict({"tokens": kinds.Tensor(shape=(None,), dtype=np.int32)})
        return features, lambda record: {"tokens": record["tokens"].astype(np.int32)}
    if source.index["kind"] != "dialogue":
        raise DataError(f"{source.folder} holds {source.index['kind']} data: give prepared recordings or packed text")
    shape = (len(source.index["channels"]), source.index["codec"]["num_codebooks"], None)
    word = {"text": kinds.Text(), "start": np.float32, "end": np.float32, "speaker": kinds.Text()}
    features = kinds.FeaturesDict(
        {
            "id": kinds.Text(),
            "codes": kinds.Tensor(shape=shape, dtype=np.int16),
            "words": kinds.Sequence(word),
            "duration": np.float32,
            "provenance": kinds.Text(),
        }
    )

    def example(record: dict[str, Any]) -> dict[str, Any]:
        words = [dict(zip(("text", "start", "end", "speaker"), entry, strict=True)) for entry in record["words"]]
        provenance = json.dumps(record["provenance"], ensure_ascii=False, sort_keys=True)
        return {**{key: record[key] for key in ("id", "codes", "duration")}, "words": words, "provenance": provenance}

    return features, example


def _about(source: RecordSource) -> str:
    """Return what users of the set have to know, as text."""
    index = source.index
    known = {key: index[key] for key in ("kind", "channels", "codec", "tokenizer_sha256", "sha256") if key in index}
    if "codec" in known:
        known["codec"] = {key: value for key, value in known["codec"].items() if key != "source"}
    return f"Made by moshijax {index.get('moshijax', '(version unknown)')} from a prepared set: {json.dumps(known)}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the progress bars, the prints and the log of TensorFlow Datasets off the terminal."""
    optional.load("tensorflow_datasets").disable_progress_bar()
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        log.setLevel(level)
