"""Files of a run that are damaged: one line that names the file, what is wrong and what to do."""

from __future__ import annotations

import json
import os

import pytest

from moshijax.errors import DataError
from moshijax.weights.run import read_description
from moshijax.weights.run_files import complete_lines, read_metrics, read_record, steps_of

GOOD = b'{"step": 5, "train/loss": 1.5, "eval/loss": null}\n'
#: What a file of one JSON object may be instead -> what is said of it.
DAMAGES = {
    b"": "it is empty",
    b"\n": "it is empty",
    b"\0\0\0\0": "it is not JSON",
    b'{"steps": 40, "ta': "it is not JSON",
    b'{"steps": 40}{}': "it is not JSON",
    b'{"name": "\xff"}': "byte 10 is not UTF-8",
    b"[" * 100_000: "it is not JSON",
    b"[40]": "it holds a list, not a JSON object",
    b'"40"': "it holds a string, not a JSON object",
    b"null": "it holds null, not a JSON object",
}  # fmt: skip


@pytest.mark.parametrize(("content", "fault"), DAMAGES.items(), ids=range(len(DAMAGES)))
def test_a_damaged_record_is_named_with_what_is_wrong_and_a_remedy(tmp_path, content, fault) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        read_record(path)
    assert str(error.value).startswith(f"{path} is damaged ({fault}")
    assert "restore it from a copy, or run `moshijax train`" in str(error.value)
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)


@pytest.mark.parametrize("steps", ["{}", '{"steps": "40"}', '{"steps": true}', '{"steps": null}'])
def test_a_config_without_a_number_of_steps_is_damaged(tmp_path, steps) -> None:
    (tmp_path / "config.json").write_text(steps)
    with pytest.raises(DataError, match=r"config.json is damaged \(it has no whole number as steps\)"):
        steps_of(tmp_path)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ('{"kind": "lm", "conf', "it is not JSON"),
        ("[]", "it holds a list"),
        ("{}", "it names no kind of model"),
        ('{"kind": ["lm"], "config": {}}', "it names no kind of model"),
        ('{"kind": "codec"}', "model.json is None: must be an object"),
        ('{"kind": "codec", "config": {"rate": 1}}', "MimiConfig has no field 'rate'"),
        ('{"kind": "codec", "config": {"sample_rate": "24"}}', "model.json.sample_rate is '24'"),
    ],
)
def test_a_damaged_description_of_the_model_is_named(tmp_path, content, fault) -> None:
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(DataError) as error:
        read_description(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'model.json'} is damaged ({fault}")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"", "it is empty"),
        (b'{"step": 10, "train/l', "it is not JSON"),
        (b'{"step": 10, "\xe9": 1}', "byte 14 is not UTF-8"),
        (b"[10]", "it holds a list"),
        (b'{"train/loss": 1.0}', "it has no whole number as step"),
        (b'{"step": "10"}', "it has no whole number as step"),
        (b'{"step": 10, "train/loss": "1.0"}', "train/loss is not a number"),
    ],
)
def test_a_damaged_line_of_the_metrics_is_named_by_its_number(tmp_path, line, fault) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(GOOD + line + b"\n" + GOOD)
    with pytest.raises(DataError) as error:
        read_metrics(path)
    assert str(error.value).startswith(f"line 2 of {path} is damaged ({fault}")
    assert str(error.value).endswith("); delete that line")


@pytest.mark.parametrize("end", [b"{", b'{"step": 10, "train/l', b'{"step": 10}', b"\0\0", b'{"step": 10, "\xc3'])
def test_a_last_line_that_was_cut_off_is_left_out_and_counted(tmp_path, end) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(GOOD + end)
    assert complete_lines(path) == ([json.loads(GOOD)], 1)
    assert read_metrics(path) == [{"step": 5, "train/loss": 1.5, "eval/loss": None}]


def test_absent_and_empty_metrics_have_no_lines(tmp_path) -> None:
    assert complete_lines(tmp_path / "metrics.jsonl") == ([], 0)
    (tmp_path / "metrics.jsonl").touch()
    assert complete_lines(tmp_path / "metrics.jsonl") == ([], 0)


@pytest.mark.parametrize("read", [read_record, read_metrics])
def test_what_cannot_be_read_is_named(tmp_path, read) -> None:
    path = tmp_path / "file"
    path.mkdir()
    with pytest.raises(DataError, match=f"file cannot be read \\({os.strerror(21)}\\); check the path"):
        read(path)
