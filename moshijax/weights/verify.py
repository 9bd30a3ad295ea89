"""Comparing a model with recorded numbers of the reference, part by part.

A record is two files beside each other, `NAME.json` and `NAME.npz`: the inputs and what the PyTorch package made of
them in float32 (`python -m tools.reference.fixtures --record` writes one for any weights).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from moshijax.errors import DataError
from moshijax.weights.compare import Part
from moshijax.weights.families import FAMILIES
from moshijax.weights.families.family import Family
from moshijax.weights.opening import open_model

NAME = "reference"


def find_record(path: Path, reference: str | Path | None) -> Path:
    """Return the record that was named (either file of it), or the one that lies with the weights.

    Raises:
      DataError: there is none.
    """
    folder = path if path.is_dir() else path.parent
    record = folder / NAME if reference is None else Path(reference)
    record = record.with_suffix("") if record.suffix in (".json", ".npz") else record
    for suffix in (".json", ".npz"):
        if not Path(f"{record}{suffix}").is_file():
            raise DataError(
                f"no reference numbers at {record}{suffix}; name a record with --reference, or make one with "
                "python -m tools.reference.fixtures --record"
            )
    return record


def read_record(record: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read the description and the arrays of a record.

    Raises:
      DataError: the files are not a record.
    """
    try:
        description = json.loads(Path(f"{record}.json").read_text(encoding="utf-8"))
        with np.load(f"{record}.npz", allow_pickle=False) as file:
            arrays = dict(file)
        kind = description["kind"]
        needed = _family(kind).record_arrays
    except Exception as error:  # JSON, zip, header, missing key: all mean another or a damaged file
        raise DataError(f"{record} is not a record of reference numbers ({error}); make it again") from None
    missing = [name for name in needed if name not in arrays]
    if missing:
        raise DataError(f"{record} is a record of kind {kind!r} without {', '.join(missing)}; make it again")
    return description, arrays


def verify(path: str | Path, reference: str | Path | None = None) -> list[Part]:
    """Compare every part of the model at `path` with a record, in the order in which they are computed.

    Raises:
      DataError: no record, or one of another kind of model.
    """
    path = Path(path)
    description, arrays = read_record(find_record(path, reference))
    family = _family(description["kind"])
    # What rounds to bfloat16 depends on the machine: the weights are the file's, the sums are float32.
    return family.compare(*open_model(path, family.kind).load(dtype="float32"), arrays)


def _family(record_kind: str) -> Family:
    return next(family for family in FAMILIES.values() if family.record_kind == record_kind)


def verdict(parts: list[Part]) -> str:
    """Return one line: "equal", "equal within ...", or what differs first."""
    for part in parts:
        if part.where is not None:
            place = f"first at {list(part.where)}"
            if part.ids:
                return f"differs: {int(part.error)} of {part.size} {part.name}, {place}"
            return f"differs: {part.name} by up to {part.error:.1e}, more than {part.allowed:.1e} {place}"
    largest = max(part.error for part in parts)
    return "equal" if largest == 0 else f"equal within {largest:.1e}"
