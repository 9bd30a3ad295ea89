"""Fields, headers and manifests with arbitrary values: exit code 2 or 3 and one line, or they do no harm.

The values are the same in every run. What an example may allocate is limited, so that one that asks for the memory of
the machine fails here.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from moshijax import runtime
from moshijax.cli.main import run
from moshijax.data.checks import CheckRules, judge
from moshijax.data.manifest import Item
from moshijax.errors import MoshijaxError
from moshijax.runtime import audio
from moshijax.weights.formats.lm_config import DEFAULTS, LOADER_FIELDS
from moshijax.weights.safetensors import DTYPES, TensorFile
from tests.parity.weights_by_name import load_fixture, write_checkpoint
from tests.weights.test_lm import PUBLISHED, published_tensors, write

FUZZ = settings(
    derandomize=True, database=None, deadline=None, max_examples=150, suppress_health_check=list(HealthCheck)
)
GIGABYTE = 1 << 30

NUMBERS = st.one_of(
    st.integers(-3, 40),
    st.sampled_from([2**31 - 1, 2**31, 2**63, 10**30, -(10**30), 10**400, 2**20, 4096]),
    st.sampled_from([float("nan"), float("inf"), -float("inf")]),
    st.floats(allow_nan=True, allow_infinity=True),
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=6) | st.sampled_from(["none", "silu", "rope", "text", "\0"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
ABSENT = object()  # in place of a value: the field or element is taken out


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """Allow a gigabyte more than the process has; whoever asks for it gets a MemoryError."""
    if sys.platform != "linux":
        yield
        return
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + GIGABYTE, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def harmless(*arguments: object) -> int:
    """Run a command that may work, or fail with 2 or 3 and one line; return its exit code."""
    said = io.StringIO()
    with little_memory(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        code = run([str(argument) for argument in arguments])
    lines = said.getvalue().splitlines()
    assert code == 0 or (code in (2, 3) and len(lines) == 1 and lines[0].startswith("error: ")), (code, lines)
    return code


def refuses_well(function: Any, *arguments: Any) -> Any:
    """Call a function that may work, or raise an error of ours, with exit code 2 or 3; return None then."""
    try:
        with little_memory():
            return function(*arguments)
    except MoshijaxError as error:
        assert error.exit_code in (2, 3), error
        return None


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Paths to every part of a JSON value, the shortest first among those beside each other."""
    if path:
        yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from places(part, (*path, key))


def changed(value: Any, changes: list[tuple[tuple, Any]]) -> Any:
    """A JSON value with other values, or none, at some paths, as far as they are still there."""
    value = copy.deepcopy(value)
    for (*parents, last), new in changes:
        with contextlib.suppress(LookupError, TypeError):
            part = value
            for key in parents:
                part = part[key]
            if new is ABSENT:
                del part[last]
            else:
                part[last] = new
    return value


def changes_of(value: Any) -> st.SearchStrategy:
    paths = list(places(value))
    return st.lists(st.tuples(st.sampled_from(paths), VALUES | st.just(ABSENT)), min_size=1, max_size=3)


# Configs --------------------------------------------------------------------------------------------------------------

STATED = {
    **PUBLISHED,
    "model_type": "stt",
    "moshi_name": "model.safetensors",
    "lora": False,
    "lora_scaling": 2.0,
    "depformer_gating": "silu",
    "depformer_max_period": 10000.0,
    "lm_gen_config": {"temp": 0.5, "text_temp": 0.5, "top_k": 250, "use_sampling": True},
    "stt_config": {"audio_delay_seconds": 0.5},
    "tts_config": {"audio_delay": 1.28},
    "conditioners": {"description": {"type": "lut", "lut": {"n_bins": 4, "dim": 5, "possible_values": ["a", "b"]}}},
    "fuser": {"sum": ["description"], "cross": [], "prepend": []},
}


@pytest.fixture(scope="module")
def language_model(tmp_path_factory) -> Path:
    folder = write(tmp_path_factory.mktemp("fuzz") / "lm", STATED, published_tensors(STATED))
    assert run(["weights", "import", str(folder), str(folder.with_name("good"))]) == 0
    return folder


def imported(folder: Path, content: str) -> int:
    """Import the model in a folder with another config.json; return the exit code."""
    (folder / "config.json").write_text(content)
    out = folder.with_name("out")
    shutil.rmtree(out, ignore_errors=True)
    code = harmless("weights", "import", folder, out)
    assert out.exists() == (code == 0) and not list(folder.parent.glob(".*")), "something is left behind"
    return code


@FUZZ
@example(changes=[(("model_type",), [])])
@given(changes=changes_of(STATED))
def test_configs_of_language_models(language_model, changes) -> None:
    imported(language_model, json.dumps(changed(STATED, changes)))


@FUZZ
@given(name=st.text(max_size=8).filter(lambda name: name not in (*DEFAULTS, *LOADER_FIELDS)), value=VALUES)
def test_unknown_fields_of_language_models(language_model, name, value) -> None:
    assert imported(language_model, json.dumps({**STATED, name: value})) == 2


CODEC = load_fixture("mimi_small")[0]


@pytest.fixture(scope="module")
def codec(tmp_path_factory) -> Path:
    folder = write_checkpoint(tmp_path_factory.mktemp("fuzz") / "codec", CODEC)
    assert run(["weights", "import", str(folder), str(folder.with_name("good"))]) == 0
    return folder


@FUZZ
@given(changes=changes_of(CODEC["config"]))
def test_configs_of_codecs(codec, changes) -> None:
    imported(codec, json.dumps(changed(CODEC["config"], changes)))


@FUZZ
@given(content=VALUES.map(json.dumps) | st.text(max_size=30))
def test_configs_that_are_none(codec, language_model, content) -> None:
    for folder in (codec, language_model):
        imported(folder, content.encode("utf-8", "replace").decode())


# Headers of safetensors files -----------------------------------------------------------------------------------------

ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
HEADER = {"__metadata__": {"format": "pt"}, "a": ENTRY, "b": {**ENTRY, "data_offsets": [24, 48]}}
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*DTYPES, "F4"]) | VALUES,
        "shape": st.lists(NUMBERS, max_size=3) | VALUES,
        "data_offsets": st.lists(NUMBERS, min_size=2, max_size=2) | VALUES,
    }
)


def opened(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    file = TensorFile(path)
    for name in file:
        assert file[name].shape == file.shapes[name]


@FUZZ
@given(header=changes_of(HEADER).map(lambda changes: changed(HEADER, changes)) | st.dictionaries(st.text(), ENTRIES))
def test_headers_of_weights(tmp_path_factory, header) -> None:
    text = json.dumps(header).encode()
    path = tmp_path_factory.getbasetemp() / "header.safetensors"
    refuses_well(opened, path, len(text).to_bytes(8, "little") + text + b"\0" * 48)


@FUZZ
@given(data=st.binary(max_size=80), length=st.integers(0, 2**64 - 1) | st.integers(0, 60))
def test_bytes_in_place_of_weights(tmp_path_factory, data, length) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.safetensors"
    refuses_well(opened, path, data)
    refuses_well(opened, path, length.to_bytes(8, "little") + data)


# Sidecars of recordings -----------------------------------------------------------------------------------------------

SIDECAR = {
    "alignments": [["hello", [0.1, 0.4], "SPEAKER_MAIN"], ["there", [0.5, 0.9], "SPEAKER_USER", 0.9]],
    "phonemes": [["h", [0.1, 0.2], "SPEAKER_MAIN"]],
}


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("fuzz") / "one.wav"
    audio.write(path, np.random.RandomState(0).uniform(-0.1, 0.1, (8000, 2)), 8000)
    return path


@FUZZ
@given(
    content=changes_of(SIDECAR).map(lambda changes: json.dumps(changed(SIDECAR, changes)))
    | VALUES.map(lambda value: json.dumps({"alignments": [value]}))
    | st.tuples(NUMBERS, NUMBERS).map(lambda times: json.dumps({"alignments": [["hello", times, "SPEAKER_MAIN"]]}))
    | VALUES.map(json.dumps)
    | st.text(max_size=30)
)
def test_sidecars(recording, content) -> None:
    """Words that are accepted have times within the recording."""
    recording.with_suffix(".json").write_text(content, encoding="utf-8", errors="replace")
    found = refuses_well(judge, Item("one", recording, 1.0), CheckRules())
    for word in found[0].words if found else ():
        assert 0 <= word.start <= word.end <= 1, word


# Artifacts ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def artifact(artifact_dir, tmp_path_factory) -> Path:
    runtime.load(artifact_dir)
    return shutil.copytree(artifact_dir, tmp_path_factory.mktemp("fuzz") / "artifact")


@FUZZ
@given(data=st.data())
def test_manifests_of_artifacts(artifact, artifact_dir, data) -> None:
    described = json.loads((artifact_dir / "artifact.json").read_text())
    # The weights by name fill most of it, and one is like the other.
    for part in ("state", "weights"):
        described.pop(part)
    drawn = data.draw(changes_of(described))
    whole = json.loads((artifact_dir / "artifact.json").read_text())
    (artifact / "artifact.json").write_text(json.dumps(changed(whole, drawn)))
    refuses_well(runtime.load, artifact)


@FUZZ
@given(change=st.tuples(st.sampled_from(["program_dtypes", "tensors", "file"]), VALUES))
def test_the_weights_of_manifests(artifact, artifact_dir, change) -> None:
    described = json.loads((artifact_dir / "artifact.json").read_text())
    (artifact / "artifact.json").write_text(json.dumps(changed(described, [(("weights", change[0]), change[1])])))
    refuses_well(runtime.load, artifact)


@FUZZ
@given(content=VALUES.map(json.dumps) | st.text(max_size=30))
def test_manifests_that_are_none(artifact, content) -> None:
    (artifact / "artifact.json").write_text(content, encoding="utf-8", errors="replace")
    refuses_well(runtime.load, artifact)
