"""Bad input through the real command line: one line with value, rule and remedy, the right code, nothing half-done."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

MOSHIJAX = [sys.executable, "-m", "moshijax.cli.main"]
ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu"}
ENVIRONMENT.pop("JAX_COMPILATION_CACHE_DIR", None)


def moshijax(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess:
    command = [*MOSHIJAX, *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=ENVIRONMENT)


def error_of(done: subprocess.CompletedProcess, *codes: int) -> str:
    """The error line of a command that failed as it should."""
    assert done.returncode in codes, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr[-3000:]}"
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr[-3000:]
    return lines[0]


# Paths that are not there ---------------------------------------------------------------------------------------------

ABSENT = {
    "train": ["train", "absent.gin", "--run-dir", "run"],
    "data synthesize": ["data", "synthesize", "absent.txt", "out"],
    "data prepare": ["data", "prepare", "absent.jsonl", "out", "--codec", "absent"],
    "data validate": ["data", "validate", "absent.jsonl"],
    "data inspect": ["data", "inspect", "absent"],
    "data report": ["data", "report", "absent"],
    "data teacher": ["data", "teacher", "absent.jsonl"],
    "codec encode": ["codec", "encode", "absent.wav", "out.npz", "--codec", "absent"],
    "codec decode": ["codec", "decode", "absent.npz", "out.wav", "--codec", "absent"],
    "export": ["export", "absent", "out"],
    "run": ["run", "absent", "--user", "absent.wav", "--out", "out.wav"],
}


@pytest.mark.parametrize("command", ABSENT)
def test_a_path_that_is_not_there_is_named_and_nothing_is_written(command, tmp_path) -> None:
    message = error_of(moshijax(*ABSENT[command], cwd=tmp_path), 2, 3)
    assert "absent" in message
    assert list(tmp_path.iterdir()) == []


# Recordings and transcripts -------------------------------------------------------------------------------------------


@pytest.fixture
def recordings(tmp_path) -> Path:
    """A manifest of two good recordings; returns its path."""
    folder = tmp_path / "set"
    folder.mkdir()
    rng = np.random.default_rng(0)
    lines = []
    for name in ("one", "two"):
        soundfile.write(folder / f"{name}.wav", rng.normal(size=(48000, 2)) * 0.1, 24000)
        words = [["hello", [0.1, 0.4], "SPEAKER_MAIN"], ["there", [0.5, 0.9], "SPEAKER_MAIN"]]
        (folder / f"{name}.json").write_text(json.dumps({"alignments": words}))
        lines.append(json.dumps({"path": f"{name}.wav", "duration": 2.0}))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "manifest.jsonl"


def damage_text(folder: Path) -> None:
    (folder / "two.wav").write_text("this is no recording")


def damage_short(folder: Path) -> None:
    data = (folder / "two.wav").read_bytes()
    (folder / "two.wav").write_bytes(data[: len(data) // 2])


def damage_mono(folder: Path) -> None:
    soundfile.write(folder / "two.wav", np.zeros(48000), 24000)


def damage_gone(folder: Path) -> None:
    (folder / "two.wav").unlink()


def damage_no_transcript(folder: Path) -> None:
    (folder / "two.json").unlink()


def damage_transcript(folder: Path) -> None:
    (folder / "two.json").write_text("{not json")


def damage_speaker(folder: Path) -> None:
    (folder / "two.json").write_text(json.dumps({"alignments": [["hello", [0.1, 0.4], "SOMEBODY"]]}))


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (damage_text, "two"),
        (damage_short, r"two\.wav breaks off after 95978 of 192000 bytes of sound: copy it again"),
        (damage_mono, "mono|stereo|channel"),
        (damage_gone, "two"),
        (damage_no_transcript, "two"),
        (damage_transcript, "two"),
        (damage_speaker, "SOMEBODY"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_bad_item_is_named_counted_and_does_not_stop_the_good_one(recordings, damage, word) -> None:
    damage(recordings.parent)
    strict = moshijax("data", "validate", recordings, "--strict")
    assert strict.returncode in (2, 3) and "Traceback" not in strict.stderr, strict.stderr
    assert re.search(word, strict.stdout + strict.stderr)
    if damage is not damage_speaker:  # an unknown speaker stops everything: the map is missing, not the item
        lenient = moshijax("data", "validate", recordings)
        assert lenient.returncode == 0 and "1 of 2" in lenient.stdout, lenient.stdout + lenient.stderr


@pytest.mark.parametrize("times", [[0.9, 0.2], [0.5, None], [None, None]], ids=["reversed", "no end", "no times"])
def test_reversed_and_missing_times_are_repaired_or_rejected_and_counted(recordings, times) -> None:
    words = [["hello", times, "SPEAKER_MAIN"], ["there", [1.0, 1.3], "SPEAKER_MAIN"]]
    (recordings.parent / "two.json").write_text(json.dumps({"alignments": words}))
    done = moshijax("data", "validate", recordings)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "two" in done.stdout, "what was repaired or rejected is reported"
    assert moshijax("data", "validate", recordings, "--strict").returncode == 3


# Recipes and runs -----------------------------------------------------------------------------------------------------


def recipe() -> str:
    return "nano/pretraining.gin"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stepz=10", ["stepz", "did you mean 'steps'"]),
        ("steps=abc", ["steps = 'abc'", "takes int"]),
        ("optimizer.learning_rte=1", ["learning_rte", "'learning_rate'"]),
        ("steps=0", ["steps", "0"]),
    ],
)
def test_a_wrong_field_of_a_recipe_stops_before_anything_is_written(tmp_path, override, words) -> None:
    done = moshijax("train", recipe(), "--run-dir", tmp_path / "run", f"--gin.{override}")
    message = error_of(done, 2)
    assert all(word in message for word in words), message
    assert not (tmp_path / "run").exists()


# A full disk ----------------------------------------------------------------------------------------------------------

needs_unshare = pytest.mark.skipif(shutil.which("unshare") is None, reason="needs a file system of its own")

FULL = """
mount -t tmpfs -o size={size} tmpfs {folder} || exit 99
cd {folder}
"$@"
code=$?
echo "left: $(find . -type f | sort | tr '\\n' ' ')"
exit $code
"""


def on_a_small_disk(folder: Path, size: str, *arguments: object) -> subprocess.CompletedProcess:
    """Run a command with `folder` on a disk of that size; its standard output ends with the files that are left."""
    script = FULL.format(size=size, folder=folder)
    command = ["unshare", "--map-root-user", "--mount", "bash", "-c", script, "bash", *MOSHIJAX]
    done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, env=ENVIRONMENT)
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip("this machine does not allow mounting a file system")
    return done


@needs_unshare
def test_synthesis_on_a_full_disk_leaves_no_manifest(tmp_path) -> None:
    world = tmp_path / "world.txt"
    world.write_text("what time is it => it is noon\nwhere are you => at home\n")
    small = tmp_path / "small"
    small.mkdir()
    done = on_a_small_disk(small, "300k", "data", "synthesize", world, "out", "--calls", 20)
    assert "no space left" in error_of(done, 1).lower()
    assert "manifest.jsonl" not in done.stdout.partition("left:")[2]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    from moshijax.export.artifact import build
    from moshijax.testing.tiny import tiny_models

    return build(*tiny_models(), tmp_path_factory.mktemp("full") / "artifact")


@pytest.fixture
def small(tmp_path) -> Path:
    folder = tmp_path / "small"
    folder.mkdir()
    return folder


@needs_unshare
def test_an_export_on_a_full_disk_leaves_no_artifact(artifact, small) -> None:
    done = on_a_small_disk(small, "200k", "export", artifact, "out")
    assert "no space left" in error_of(done, 1).lower()
    assert "artifact.json" not in done.stdout.partition("left:")[2]


@needs_unshare
def test_a_call_on_a_full_disk_leaves_no_recording(artifact, small, tmp_path) -> None:
    user = tmp_path / "user.wav"
    soundfile.write(user, np.zeros(80000), 8000)
    done = on_a_small_disk(small, "100k", "run", artifact, "--user", user, "--out", "out.wav")
    assert "no space left" in error_of(done, 1).lower()
    assert "out.wav" not in done.stdout.partition("left:")[2]
