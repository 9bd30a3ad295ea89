"""The encoder of a Whisper in the binary form of CTranslate2 (`model.bin`), which faster-whisper runs."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import ml_dtypes
import numpy as np

from moshijax.errors import DataError
from moshijax.files import check_fetched
from moshijax.nn.layout import pack_in_proj, unpack_in_proj
from moshijax.omni.whisper import WhisperConfig, whisper_stack
from moshijax.weights.formats.whisper import conv
from moshijax.weights.names import Group, renamed

FILE = "model.bin"
VERSION, SPEC = 6, "WhisperSpec"
#: Types by their number; the library also has int8 and int16 for quantised weights.
_DTYPES = {
    0: np.dtype(np.float32),
    1: np.dtype(np.int8),
    2: np.dtype(np.int16),
    3: np.dtype(np.int32),
    4: np.dtype(np.float16),
    5: np.dtype(ml_dtypes.bfloat16),
}


class CTranslate2File(Mapping):
    """The variables of a file by name; each is read when it is asked for.

    Attributes:
      path: The file.
      shapes: name -> shape.
      dtypes: name -> numpy dtype.

    Raises:
      DataError: The file is missing, cut off, of another version or of another model.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, np.dtype] = {}
        self._offsets: dict[str, int] = {}
        try:
            check_fetched(self.path)
            with open(self.path, "rb") as file:
                self._read(file, self.path.stat().st_size)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from None
        except (struct.error, UnicodeDecodeError):
            raise DataError(f"{path}: is cut off, or no model of CTranslate2; fetch it again") from None

    def _read(self, file: BinaryIO, size: int) -> None:
        def numbers(form: str) -> tuple[int, ...]:
            return struct.unpack(f"<{form}", file.read(struct.calcsize(f"<{form}")))

        def text() -> str:
            (length,) = numbers("H")
            return file.read(length).decode().rstrip("\0")

        (version,) = numbers("I")
        if version != VERSION:
            raise DataError(f"{self.path} has version {version}, must be {VERSION}; convert the model again")
        spec = text()
        if spec != SPEC:
            raise DataError(f"{self.path} is of {spec!r}, must be of {SPEC!r}; use the file of a Whisper")
        numbers("I")  # of the spec's revision, which changes nothing for the encoder
        (count,) = numbers("I")
        for _ in range(count):
            name = text()
            shape = numbers(f"{numbers('B')[0]}I")
            kind, length = numbers("BI")
            dtype = _DTYPES.get(kind)
            if dtype is None or math.prod(shape) * dtype.itemsize != length or file.tell() + length > size:
                raise DataError(f"{self.path}: {name} is cut off or of an unknown type; fetch the file again")
            self.shapes[name], self.dtypes[name], self._offsets[name] = shape, dtype, file.tell()
            file.seek(length, 1)

    def __getitem__(self, name: str) -> np.ndarray:
        shape = self.shapes[name]
        with open(self.path, "rb") as file:
            file.seek(self._offsets[name])
            return np.fromfile(file, self.dtypes[name], math.prod(shape)).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def encoder_config(file: CTranslate2File) -> WhisperConfig:
    """Return the encoder that a file describes.

    Raises:
      DataError: It describes none.
    """
    layers = {int(match[1]) for match in (re.match(r"encoder/layer_(\d+)/", name) for name in file) if match}
    try:
        dim, mels, _ = file.shapes["encoder/conv1/weight"]
        positions, _ = file.shapes["encoder/position_encodings/encodings"]
        hidden, _ = file.shapes["encoder/layer_0/ffn/linear_0/weight"]
        heads = int(file["encoder/num_heads"])
    except (KeyError, ValueError):
        raise DataError(f"{file.path}: its variables are of no encoder of Whisper; fetch it again") from None
    return WhisperConfig(mels, positions, whisper_stack(dim, len(layers), heads, hidden))


def encoder_groups(config: WhisperConfig) -> list[Group]:
    """Return the names of an encoder there; queries, keys and values are one map, the keys' bias is zero."""
    c = config.stack
    groups = [renamed("encoder/position_encodings/encodings", "positions", (config.positions, c.dim))]
    for i, width in ((1, config.mels), (2, c.dim)):
        groups.append(conv(f"encoder/conv{i}/weight", f"conv{i}/kernel", 3, width, c.dim))
        groups.append(renamed(f"encoder/conv{i}/bias", f"conv{i}/bias", (c.dim,)))
    for i in range(c.num_layers):
        there, here = f"encoder/layer_{i}", f"stack/layers_{i}"
        groups += _attention(f"{there}/self_attention", f"{here}/attention", config)
        groups += _norm(f"{there}/self_attention/layer_norm", f"{here}/norm1", c.dim)
        groups += _norm(f"{there}/ffn/layer_norm", f"{here}/norm2", c.dim)
        for number, name, shape in ((0, "up", (c.hidden_dim, c.dim)), (1, "down", (c.dim, c.hidden_dim))):
            groups.append(renamed(f"{there}/ffn/linear_{number}/weight", f"{here}/mlp/{name}/kernel", shape))
            groups.append(renamed(f"{there}/ffn/linear_{number}/bias", f"{here}/mlp/{name}/bias", shape[:1]))
    return [*groups, *_norm("encoder/layer_norm", "out_norm", c.dim)]


def _norm(theirs: str, ours: str, dim: int) -> Iterator[Group]:
    yield renamed(f"{theirs}/gamma", f"{ours}/scale", (dim,))
    yield renamed(f"{theirs}/beta", f"{ours}/bias", (dim,))


def _attention(theirs: str, ours: str, config: WhisperConfig) -> Iterator[Group]:
    dim, heads = config.stack.dim, config.stack.num_heads
    yield Group(
        {f"{theirs}/linear_0/weight": (3 * dim, dim)},
        {f"{ours}/in_proj/kernel": (3 * dim, dim)},
        lambda a: [pack_in_proj(a[0], heads)],
        lambda a: [unpack_in_proj(a[0], heads)],
    )

    def read(arrays: list[np.ndarray]) -> list[np.ndarray]:
        q, k, v = np.split(arrays[0], 3)
        if k.any():
            raise DataError(f"{theirs}/linear_0/bias: that of the keys must be zeros; use the file of a Whisper")
        return [q, v]

    yield Group(
        {f"{theirs}/linear_0/bias": (3 * dim,)},
        {f"{ours}/q_bias": (dim,), f"{ours}/v_bias": (dim,)},
        read,
        lambda a: [np.concatenate([a[0], np.zeros_like(a[0]), a[1]])],
    )
    yield renamed(f"{theirs}/linear_1/weight", f"{ours}/out_proj/kernel", (dim, dim))
    yield renamed(f"{theirs}/linear_1/bias", f"{ours}/out_bias", (dim,))
