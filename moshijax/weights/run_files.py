"""The files of a run directory that are read again: what is trained, on which data, and what was measured.

Whoever reads one of them reads it here, so that a damaged one is reported in the same way everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moshijax.config_json import from_json
from moshijax.errors import ConfigError, DataError

#: What the model is, and its checkpoints.
MODEL, CHECKPOINTS = "model.json", "checkpoints"
#: The experiment as JSON and as a recipe, and what it measured, one JSON object a line.
CONFIG, RECIPE, METRICS = "config.json", "config.gin", "metrics.jsonl"
#: The sha256 of its data, and size and time of the files that this is read from.
DATA, FILES = "data.json", "files.json"
#: Entries of data.json beside the data itself: what says which word or sound a token of the data is. Units are those of
#: centroids.
MEANINGS = ("tokenizer", "codec", "units")


def read_record(path: Path) -> dict[str, Any]:
    """Read a file of a run directory that holds one JSON object: config.json, data.json, files.json or model.json.

    Raises:
      DataError: it cannot be read, or holds something else.
    """
    try:
        return _parsed(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check the path and its permissions") from None
    except ValueError as error:
        raise damaged(path, str(error)) from None


def steps_of(run_dir: Path) -> int:
    """Return how many steps a run is to have.

    Raises:
      DataError: its config.json is damaged.
    """
    path = run_dir / CONFIG
    steps = read_record(path).get("steps")
    if type(steps) is not int:
        raise damaged(path, "it has no whole number as steps")
    return steps


def meanings_of(data: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Return what the tokens of a run's data mean: `MEANINGS` -> sha256, those that the data has.

    Args:
      data: what data.json holds: kind of step, or name of its held-out batches -> part of the data -> sha256.

    Raises:
      DataError: two parts of the data are bound to different ones.
    """
    found: dict[str, tuple[str, str]] = {}
    for kind, parts in data.items():
        for name in MEANINGS:
            sha256 = parts.get(name)
            if sha256 is None:
                continue
            first, expected = found.setdefault(name, (kind, sha256))
            if sha256 != expected:
                raise DataError(
                    f"the data of {kind} has a {name} with the sha256 {sha256[:12]}..., the data of {first} one with "
                    f"{expected[:12]}...: a run has one {name}; prepare both with it"
                )
    return {name: sha256 for name, (_, sha256) in found.items()}


def read_meanings(run_dir: Path) -> dict[str, str]:
    """Return `meanings_of` the data of a run; nothing where no data.json says it.

    Raises:
      DataError: data.json is damaged.
    """
    path = run_dir / DATA
    if not path.exists():
        return {}
    try:
        return meanings_of(from_json(dict[str, dict[str, str]], read_record(path), DATA))
    except ConfigError as error:
        raise damaged(path, str(error)) from None


def damaged(path: Path, what: str) -> DataError:
    """Return the error about a file that `read_record` reads."""
    return DataError(
        f"{path} is damaged ({what}); restore it from a copy, or run `moshijax train` in {path.parent} with "
        f"--allow-change {path.name}, which writes it again"
    )


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics.jsonl, oldest first, also of a run that is still going; none if it is absent.

    A last line that was not written to its end is left out.

    Raises:
      DataError: it cannot be read, or one of the other lines is damaged.
    """
    return complete_lines(path)[0]


def complete_lines(path: str | Path) -> tuple[list[dict[str, Any]], int]:
    """Return what `read_metrics` does, and how many lines were left out: 0 or 1.

    Raises:
      DataError: as `read_metrics`.
    """
    path = Path(path)
    try:
        *complete, rest = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check the path and its permissions") from None
    lines = []
    for number, line in enumerate(complete, 1):
        try:
            lines.append(_checked_line(_parsed(line)))
        except ValueError as error:
            raise DataError(f"line {number} of {path} is damaged ({error}); delete that line") from None
    return lines, int(rest != b"")


def _parsed(content: bytes) -> dict[str, Any]:
    """Return the JSON object that bytes hold; raise a ValueError that says in a few words why they do not."""
    if not content.strip():
        raise ValueError("it is empty")
    try:
        found = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"it holds {_KINDS[type(found)]}, not a JSON object")
    return found


_KINDS = {list: "a list", str: "a string", int: "a number", float: "a number", bool: "a boolean", type(None): "null"}


def _checked_line(line: dict[str, Any]) -> dict[str, Any]:
    if type(line.get("step")) is not int:
        raise ValueError("it has no whole number as step")
    for name, value in line.items():
        if value is not None and type(value) not in (int, float):
            raise ValueError(f"{name} is not a number")
    return line
