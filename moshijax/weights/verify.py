"""Comparing a model with recorded numbers of the reference, part by part.

A record is two files beside each other, `NAME.json` and `NAME.npz`: the inputs and what the PyTorch package made of
them in float32 (`python -m tools.reference.fixtures --record` writes one for any weights).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from moshijax import codec, lm
from moshijax.errors import DataError
from moshijax.weights.lm import load_lm
from moshijax.weights.mimi import load_mimi

#: Largest error of a latent, a sample or a logit that passes as rounding, of values up to 1; in proportion above that.
TOLERANCE = 1e-4
NAME = "reference"


@dataclass(frozen=True)
class Part:
    """One compared output.

    Attributes:
        name: of the part.
        error: largest absolute difference; of ids, how many differ.
        where: index of the first difference that counts, or none.
        ids: True if these are codes, which must be equal.
        size: values compared.
        allowed: largest error that passes.
    """

    name: str
    error: float
    where: tuple[int, ...] | None
    ids: bool
    size: int
    allowed: float = 0.0


def find_record(path: Path, reference: str | Path | None) -> Path:
    """The record that was named (either file of it), or the one that lies with the weights.

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
    """Description and arrays.

    Raises:
        DataError: the files are not a record.
    """
    try:
        description = json.loads(Path(f"{record}.json").read_text(encoding="utf-8"))
        with np.load(f"{record}.npz", allow_pickle=False) as file:
            arrays = dict(file)
        kind, needed = description["kind"], NEEDED[description["kind"]]
    except Exception as error:  # JSON, zip, header, missing key: all mean another or a damaged file
        raise DataError(f"{record} is not a record of reference numbers ({error}); make it again") from None
    missing = [name for name in needed if name not in arrays]
    if missing:
        raise DataError(f"{record} is a record of kind {kind!r} without {', '.join(missing)}; make it again")
    return description, arrays


def _numbers(name: str, got: Any, want: np.ndarray, mask: np.ndarray | None = None) -> Part:
    got = np.asarray(got, np.float32)
    if got.shape != want.shape:
        raise DataError(
            f"{name}: this model makes {list(got.shape)}, the record has {list(want.shape)}; it is of another model"
        )
    difference = np.abs(got - want)
    if mask is not None:
        difference = np.where(mask[..., None], difference, 0)
    allowed = TOLERANCE * max(1.0, float(np.abs(want).max(initial=0)))
    large = np.argwhere(~(difference <= allowed))
    where = tuple(int(i) for i in large[0]) if len(large) else None
    return Part(name, float(difference.max(initial=0)), where, False, got.size, allowed)


def _ids(name: str, got: Any, want: np.ndarray) -> Part:
    got = np.asarray(got)
    if got.shape != want.shape:
        raise DataError(
            f"{name}: this model makes {list(got.shape)}, the record has {list(want.shape)}; it is of another model"
        )
    wrong = np.argwhere(got != want)
    where = tuple(int(i) for i in wrong[0]) if len(wrong) else None
    return Part(name, float(len(wrong)), where, True, got.size)


def _codec(path: Path, arrays: dict[str, np.ndarray]) -> list[Part]:
    config, params = load_mimi(path)
    waveform, codes = arrays["waveform"], arrays["codes"]
    if codes.shape[1] > config.num_codebooks or codes.max() >= config.bins:
        raise DataError(
            f"the record has {codes.shape[1]} codebooks with ids to {codes.max()}, the codec {config.num_codebooks} of "
            f"{config.bins}; it is of another model"
        )
    found = [
        _numbers("codec latents", codec.encode_latent(config, params, waveform), arrays["latent"]),
        _ids("codes", codec.encode(config, params, waveform, num_codebooks=codes.shape[1]), codes),
    ]
    return [*found, _numbers("decode", codec.decode(config, params, codes), arrays["decoded"])]


def _language(path: Path, arrays: dict[str, np.ndarray]) -> list[Part]:
    # What rounds to bfloat16 depends on the machine: the weights are the file's, the sums are float32.
    config, params = load_lm(path, dtype="float32")
    codes = arrays["codes"]
    if codes.shape[1] != config.layout.num_streams:
        raise DataError(
            f"the record has {codes.shape[1]} rows, the model {config.layout.num_streams}; it is of another model"
        )
    output = jax.jit(lambda params, codes: lm.forward(config, params, codes))(params, codes)
    found = [_numbers("text logits", output.text_logits, arrays["text_logits"], arrays["text_mask"])]
    for k in range(config.layout.dep_q):
        name = f"depth step {k} logits"
        found.append(_numbers(name, output.logits[:, k], arrays["logits"][:, k], arrays["mask"][:, k]))
    return found


NEEDED = {
    "mimi": ("waveform", "latent", "codes", "decoded"),
    "lm": ("codes", "text_logits", "text_mask"),
}


def verify(path: str | Path, reference: str | Path | None = None) -> list[Part]:
    """Every part of the model at `path` against a record, in the order in which they are computed.

    Raises:
        DataError: no record, or one of another kind of model.
    """
    path = Path(path)
    description, arrays = read_record(find_record(path, reference))
    return {"mimi": _codec, "lm": _language}[description["kind"]](path, arrays)


def verdict(parts: list[Part]) -> str:
    """One line: "equal", "equal within ...", or what differs first."""
    for part in parts:
        if part.where is not None:
            place = f"first at {list(part.where)}"
            if part.ids:
                return f"differs: {int(part.error)} of {part.size} {part.name}, {place}"
            return f"differs: {part.name} by up to {part.error:.1e}, more than {part.allowed:.1e} {place}"
    largest = max(part.error for part in parts)
    return "equal" if largest == 0 else f"equal within {largest:.1e}"
