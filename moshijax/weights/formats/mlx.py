"""Names of the MLX package (`moshi_mlx`): norms without axes of length one, and a slice per depth step.

Every slice of the depth transformer has all its weights: shared norms, and weights that several steps share, are
repeated. `config.json` is that of the PyTorch package.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from moshijax.errors import ConfigError, DataError
from moshijax.lm.config import LMConfig
from moshijax.weights.formats.lm_table import lm_table
from moshijax.weights.names import Group, Renamed, copied, renamed
from moshijax.weights.tensors import Tensors

_RENAMED = (
    (re.compile(r"^emb\.(\d+)\."), lambda m: f"audio_embs.{m[1]}."),
    (re.compile(r"^depformer_text_emb\."), lambda m: "depformer.slices.0.emb."),
    (re.compile(r"^depformer_emb\.(\d+)\."), lambda m: f"depformer.slices.{int(m[1]) + 1}.emb."),
    (re.compile(r"^linears\.(\d+)\."), lambda m: f"depformer.slices.{m[1]}.linear_out."),
    (re.compile(r"\.in_proj_weight$"), lambda m: ".in_proj.weight"),
    (re.compile(r"\.alpha$"), lambda m: ".weight"),
)
_STEP = re.compile(r"\.gating\.(\d+)\.")


def is_file(tensors: Tensors) -> bool:
    """Return whether these are the names of a language model of the MLX package."""
    return any(name.startswith(("audio_embs.", "depformer.slices.")) for name in tensors.shapes)


def dequantised(tensors: Tensors, shapes: Mapping[str, tuple[int, ...]], where: str) -> Tensors:
    """View the same tensors with float32 in place of packed integers; a file without any is returned as it is.

    For every linear map and table, the 4 and 8 bit files of the package hold `weight [out, words]` uint32, and a scale
    and a bias for every group of values in a row (`mlx.core.quantize`, affine): `scale * integer + bias`.

    Args:
      tensors: of the file.
      shapes: of the model's tensors, which say how many values the words hold.
      where: name of the file in messages.

    Raises:
      DataError: scales and biases are missing or of other shapes, or words do not hold such a row.
    """
    packed = [name for name, dtype in tensors.dtypes.items() if dtype == np.uint32]
    if not packed:
        return tensors
    groups, held = [], set()
    for name in packed:
        parts = [name, *(f"{name.removesuffix('.weight')}.{part}" for part in ("scales", "biases"))]
        found = [tuple(tensors.shapes.get(part, ())) for part in parts]
        rows, columns = shapes.get(name, (0, 0))[-2:]
        words, count = found[0][-1], found[1][-1] if found[1] else 0
        bits = 32 * words // columns if columns else 0
        fits = bits in (2, 4, 8) and bits * columns == 32 * words and count and columns % count == 0
        if not fits or found != [(rows, words), (rows, count), (rows, count)]:
            raise DataError(
                f"{where}: {name} {list(found[0])} with scales {list(found[1])} and biases {list(found[2])} is no row "
                f"of 2, 4 or 8 bit values for {[rows, columns]}; fetch the file again, or one of another precision"
            )
        held |= set(parts)
        groups.append(
            Group(
                dict(zip(parts, found, strict=True)), {name: (rows, columns)}, lambda a, bits=bits: [unpacked(*a, bits)]
            )
        )
    groups += [renamed(name, name, shape) for name, shape in tensors.shapes.items() if name not in held]
    return Renamed(tensors, groups, reading=True, dtypes=dict.fromkeys(packed, "float32"))


def unpacked(words: np.ndarray, scales: np.ndarray, biases: np.ndarray, bits: int) -> np.ndarray:
    """Return float32 `[R, C]` from packed integers.

    Args:
      words: uint32 `[R, W]`, the first value in the lowest bits.
      scales: `[R, groups]`.
      biases: `[R, groups]`.
      bits: of each integer.
    """
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    values = (words[:, :, None] >> shifts) & np.uint32(2**bits - 1)
    values = values.reshape(len(words), scales.shape[1], -1).astype(np.float32)
    values *= scales.astype(np.float32)[:, :, None]
    values += biases.astype(np.float32)[:, :, None]
    return values.reshape(len(words), -1)


def _renamed(name: str) -> str:
    for pattern, new in _RENAMED:
        name = pattern.sub(new, name)
    return name


def _without_axes(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[2:] if name.endswith(".alpha") else shape


def _repeated(theirs: Sequence[str], ours: str, shape: tuple[int, ...], schedule: Sequence[int]) -> Group:
    """Rows of one tensor, one part per distinct weight, as one tensor per step."""
    count = max(schedule) + 1
    part = (shape[0] // count, *shape[1:])

    def read(arrays: list[np.ndarray]) -> list[np.ndarray]:
        first = [schedule.index(weight) for weight in range(count)]
        for step, weight in enumerate(schedule):
            if not np.array_equal(arrays[step], arrays[first[weight]]):
                raise DataError(f"{theirs[step]} differs from {theirs[first[weight]]}, of which it must be a copy")
        return [np.concatenate([arrays[step] for step in first])]

    def write(arrays: list[np.ndarray]) -> list[np.ndarray]:
        parts = np.split(arrays[0], count)
        return [parts[weight] for weight in schedule]

    return Group(dict.fromkeys(theirs, part), {ours: shape}, read, write)


def lm_groups(config: LMConfig) -> list[Group]:
    """Return the names of the MLX package for the tensors of a language model.

    Raises:
      ConfigError: the package has no depth transformer of this kind.
    """
    depth = config.depth
    if depth is not None and (depth.output_norm is not None or not (depth.weights_per_step and depth.multi_linear)):
        raise ConfigError(
            "the MLX package has weights and input projections for every depth step and no norm before the heads; "
            "use --format kyutai"
        )
    return list(_groups(config))


def _groups(config: LMConfig) -> Iterator[Group]:
    steps = config.layout.dep_q
    schedule = config.depth.step_weights(steps) if config.depth is not None else ()

    def slices(rest: str, weight: int | None = None) -> list[str]:
        return [f"depformer.slices.{k}.{rest}" for k in range(steps) if weight is None or schedule[k] == weight]

    for name, entry in lm_table(config).items():
        shape, inner = entry.shape, _without_axes(name, entry.shape)
        if name.startswith("depformer_in."):
            yield copied(slices("linear_in.weight", int(name.split(".")[1])), name, shape)
        elif not name.startswith("depformer."):
            yield renamed(_renamed(name), name, shape, inner)
        elif name.endswith((".in_proj_weight", ".out_proj.weight")):
            rest = _renamed(name.replace("depformer.", "transformer.", 1))
            yield _repeated(slices(rest), name, shape, schedule)
        elif match := _STEP.search(name):
            rest = _STEP.sub(".gating.", name.replace("depformer.", "transformer.", 1))
            yield copied(slices(rest, int(match[1])), name, shape)
        else:
            rest = _renamed(name.replace("depformer.", "transformer.", 1))
            yield copied(slices(rest), name, shape, inner)
