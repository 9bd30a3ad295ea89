"""Paths on the command line: outputs that would replace something, and files, folders and names that cannot be used."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest

from moshijax.runtime import __main__ as runtime_command
from moshijax.runtime import audio


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(cli, capsys, artifact_dir):
    """Run a command line in this process; `ARTIFACT` stands for an artifact, `runtime` for `-m moshijax.runtime`."""

    def call(*arguments: str) -> tuple[int, str, str]:
        given = [str(artifact_dir) if argument == "ARTIFACT" else argument for argument in arguments]
        if given[0] != "runtime":
            return cli(*given)
        code = runtime_command.main(given[1:])
        return code, *capsys.readouterr()

    return call


def refused(done: tuple[int, str, str], *codes: int) -> str:
    """The error line of a command that failed as it should."""
    code, out, err = done
    assert code in codes and out == "" and err.startswith("error: ") and err.count("\n") == 1, (code, out, err)
    return err


def state(folder: Path) -> dict[str, bytes | int]:
    """Everything in a folder: the content of files, the kind of what is none."""
    paths = sorted(folder.rglob("*"))
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else stat.S_IFMT(path.lstat().st_mode)
        for path in paths
    }


# Outputs --------------------------------------------------------------------------------------------------------------

#: Commands whose output is their input, or another output.
REPLACING = {
    "codec encode": ("codec", "encode", "a.npz", "a.npz", "--codec", "c"),
    "codec encode, the codec": ("codec", "encode", "b", "c.npz", "--codec", "c.npz"),
    "codec decode": ("codec", "decode", "a.wav", "./a.wav", "--codec", "c"),
    "run": ("run", "ARTIFACT", "--user", "a.wav", "--out", "a.wav"),
    "run, the voice": ("run", "ARTIFACT", "--user", "b", "--voice-prompt", "a.wav", "--out", "a.wav"),
    "run, the text": ("run", "ARTIFACT", "--user", "a.wav", "--text-out", "a.wav"),
    "run, two outputs": ("run", "ARTIFACT", "--user", "b", "--out", "a.wav", "--text-out", "a.wav"),
    "runtime": ("runtime", "ARTIFACT", "--user", "a.wav", "--out", "a.wav"),
    "runtime, two outputs": ("runtime", "ARTIFACT", "--user", "b", "--out", "o", "--text-out", "./o"),
    "data synthesize": ("data", "synthesize", "folder", "folder/../folder"),
    "data prepare": ("data", "prepare", "manifest.jsonl", "folder", "--codec", "folder"),
    "data prepare, text": ("data", "prepare", "a.txt", "a.txt", "--tokenizer", "t"),
    "data teacher": ("data", "teacher", "speech", "speech", "--kind", "wavlm", "--model", "m"),
    "data exchanges": ("data", "exchanges", "m", "folder", "--features", "f", "--centroids", "folder"),
    "weights import": ("weights", "import", "folder", "folder"),
    "weights export": ("weights", "export", "folder", "folder", "--format", "kyutai"),
    "weights retokenize": ("weights", "retokenize", "folder", "folder", "--tokenizer", "t"),
    "export": ("export", "folder", "folder"),
    "export, the codec": ("export", "b", "folder", "--codec", "folder"),
    "eval": ("eval", "a.gin", "--out", "a.gin"),
}


@pytest.mark.parametrize("command", REPLACING)
def test_no_output_replaces_an_input_or_another_output(run, place, command):
    for name in ("a.npz", "a.wav", "a.txt", "a.gin", "c.npz", "manifest.jsonl", "folder/thesis.txt"):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text("mine")
    audio.write(place / "b", np.zeros((100, 1)), 8000)
    (place / "speech").mkdir()
    audio.write(place / "speech" / "one.wav", np.zeros((100, 2)), 8000)
    before = state(place)
    message = refused(run(*REPLACING[command]), 2)
    assert " would replace the " in message and ": choose another path" in message
    assert state(place) == before


@pytest.mark.parametrize("command", ["run", "runtime"])
def test_no_output_replaces_a_file_of_the_artifact(run, place, artifact_dir, command):
    artifact = shutil.copytree(artifact_dir, place / "artifact")
    audio.write(place / "a.wav", np.zeros((100, 1)), 8000)
    before = state(place)
    message = refused(run(command, "artifact", "--user", "a.wav", "--text-out", "artifact/artifact.json"), 2)
    assert "output artifact/artifact.json would replace a file of the input artifact" in message
    assert state(place) == before and artifact.is_dir()


#: Commands that write a file, with the option or argument that names it last.
FILES = {
    "codec encode": ("codec", "encode", "b", "--codec", "c", "{}.npz"),
    "codec decode": ("codec", "decode", "b", "--codec", "c", "{}.wav"),
    "run": ("run", "ARTIFACT", "--user", "b", "--out", "{}"),
    "run, the text": ("run", "ARTIFACT", "--user", "b", "--text-out", "{}"),
    "runtime": ("runtime", "ARTIFACT", "--user", "b", "--out", "{}"),
    "runtime, the text": ("runtime", "ARTIFACT", "--user", "b", "--text-out", "{}"),
}
#: Commands that write a folder.
FOLDERS = {
    "data synthesize": ("data", "synthesize", "b", "{}"),
    "data prepare": ("data", "prepare", "b", "{}", "--codec", "c"),
    "weights import": ("weights", "import", "b", "{}"),
    "weights export": ("weights", "export", "b", "{}", "--format", "kyutai"),
    "weights retokenize": ("weights", "retokenize", "b", "{}", "--tokenizer", "t"),
    "export": ("export", "b", "{}"),
    "eval": ("eval", "b", "--out", "{}"),
    "train": ("train", "b", "--run-dir", "{}"),
    "quickstart": ("quickstart", "--run-dir", "{}"),
}


def named(command: tuple[str, ...], output: str) -> tuple[str, ...]:
    return tuple(argument.format(output) for argument in command)


@pytest.mark.parametrize("command", FILES)
@pytest.mark.parametrize("kind", ["device", "folder", "scratch", "long", "NUL", "missing/x", "file/x"])
def test_outputs_that_no_file_can_be(run, place, command, kind):
    output = {"long": "n" * 247, "NUL": "a\0b"}.get(kind, kind)
    path = place / named(FILES[command], output)[-1]
    (place / "b").write_text("mine")
    (place / "file").write_text("mine")
    if kind == "device":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "scratch":
        path.with_name(f".{path.name}.partial").mkdir()
    before = state(place)
    message = refused(run(*named(FILES[command], output)), 2)
    assert {"device": "is a device", "folder": "is a folder", "scratch": "is in the way"}.get(kind, "cannot") in message
    assert state(place) == before


@pytest.mark.parametrize("command", FOLDERS)
@pytest.mark.parametrize("kind", ["file", "file/x", "long", "NUL"])
def test_outputs_that_no_folder_can_be(run, place, command, kind):
    (place / "b").write_text("mine")
    (place / "file").write_text("mine")
    before = state(place)
    refused(run(*named(FOLDERS[command], {"long": "n" * 247, "NUL": "a\0b"}.get(kind, kind))), 2)
    assert state(place) == before


@pytest.mark.parametrize("command", ["weights import", "weights export", "weights retokenize", "export"])
def test_a_folder_of_the_name_of_the_scratch_folder_stays(run, place, command):
    (place / ".x.partial").mkdir()
    (place / ".x.partial" / "thesis.txt").write_text("mine")
    (place / "b").write_text("mine")
    before = state(place)
    assert ".x.partial is in the way; move it" in refused(run(*named(FOLDERS[command], "x")), 2)
    assert state(place) == before


# Inputs ---------------------------------------------------------------------------------------------------------------

#: Commands with one input to be replaced by something else; the other inputs are there.
INPUTS = {
    "codec encode": ("codec", "encode", "{}", "o.npz", "--codec", "c"),
    "codec encode, the codec": ("codec", "encode", "a.wav", "o.npz", "--codec", "{}"),
    "codec decode": ("codec", "decode", "{}", "o.wav", "--codec", "c"),
    "run": ("run", "{}", "--user", "a.wav"),
    "run, the user": ("run", "ARTIFACT", "--user", "{}"),
    "run, the voice": ("run", "ARTIFACT", "--user", "a.wav", "--voice-prompt", "{}"),
    "runtime": ("runtime", "{}", "--user", "a.wav"),
    "runtime, the user": ("runtime", "ARTIFACT", "--user", "{}"),
    "data synthesize": ("data", "synthesize", "{}", "o"),
    "data prepare": ("data", "prepare", "{}", "o", "--codec", "c"),
    "data prepare, text": ("data", "prepare", "a.txt", "o", "--tokenizer", "{}"),
    "data validate": ("data", "validate", "{}"),
    "data inspect": ("data", "inspect", "{}"),
    "data report": ("data", "report", "{}"),
    "data teacher": ("data", "teacher", "{}", "o"),
    "data units": ("data", "units", "{}", "o.npy"),
    "data exchanges": ("data", "exchanges", "{}", "o", "--features", "f", "--centroids", "c"),
    "weights import": ("weights", "import", "{}", "o"),
    "weights export": ("weights", "export", "{}", "o", "--format", "kyutai"),
    "weights verify": ("weights", "verify", "{}"),
    "weights retokenize": ("weights", "retokenize", "{}", "o", "--tokenizer", "t"),
    "export": ("export", "{}", "o"),
    "eval": ("eval", "{}", "--out", "o"),
    "train": ("train", "{}", "--run-dir", "o"),
    "plan": ("plan", "{}", "--devices", "1"),
}


@pytest.mark.parametrize("command", INPUTS)
@pytest.mark.parametrize("kind", ["folder", "text", "long", "text/x", "absent", "NUL"])
def test_inputs_that_are_something_else(run, place, command, kind):
    audio.write(place / "a.wav", np.zeros((100, 1)), 8000)
    (place / "a.txt").write_text("one document\n")
    (place / "text").write_text("\x00\x01 of no kind")
    (place / "folder").mkdir()
    before = state(place)
    value = {"long": "n" * 300, "NUL": "a\0b"}.get(kind, kind)
    refused(run(*(argument.format(value) for argument in INPUTS[command])), 2, 3)
    assert state(place) == before


# Numbers --------------------------------------------------------------------------------------------------------------

NUMBERS = {
    "--max-file-gb": (("weights", "export", "b", "o", "--format", "kyutai"), ("nan", "inf", "-inf", "0", "-1", "x")),
    "--seed": (("weights", "retokenize", "b", "o", "--tokenizer", "t"), ("-1", "4294967296", "1.5", "nan")),
    "--seed of data": (("data", "synthesize", "b", "o"), ("-1", "4294967296")),
    "--seed of a call": (("run", "ARTIFACT", "--user", "a.wav"), ("-1", "18446744073709551616", "x")),
    "--tail": (("run", "ARTIFACT", "--user", "a.wav"), ("nan", "inf", "-1", "1e9")),
    "--tail of the runtime": (("runtime", "ARTIFACT", "--user", "a.wav"), ("nan", "inf", "-1", "1e9")),
    "--temperature": (("run", "ARTIFACT", "--user", "a.wav"), ("nan", "inf", "-1")),
    "--top-k": (("run", "ARTIFACT", "--user", "a.wav"), ("-1", "1000000")),
    "--batch": (("run", "ARTIFACT", "--user", "a.wav"), ("-1", "3")),
    "--batch of an export": (("export", "b", "o"), ("0", "-1", "nan", "", "99999999999999999999")),
    "--guidance": (("export", "b", "o"), ("nan", "inf")),
    "--num-codebooks": (("data", "prepare", "b", "o", "--codec", "c"), ("x", "1.5")),
    "--min-score": (("data", "validate", "b"), ("nan", "inf")),
    "--copies": (("data", "synthesize", "b", "o"), ("0", "1000000000000")),
    "--memory-gb": (("plan", "b", "--devices", "1"), ("nan", "inf", "0")),
    "--mfu": (("plan", "b", "--devices", "1"), ("nan", "2")),
    "--lost-after": (("train", "b", "--run-dir", "o"), ("nan", "inf", "1")),
}


@pytest.mark.parametrize(
    ("option", "value"), [(name, value) for name, (_, values) in NUMBERS.items() for value in values]
)
def test_numbers_out_of_range(run, place, option, value):
    audio.write(place / "a.wav", np.zeros((100, 1)), 8000)
    (place / "b").write_text("mine")
    before = state(place)
    refused(run(*NUMBERS[option][0], f"{option.split()[0]}={value}"), 2)
    assert state(place) == before
