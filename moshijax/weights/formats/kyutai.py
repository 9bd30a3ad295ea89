"""Names of the PyTorch package: fused in the released files, split in memory, and older spellings; int8 weights.

`modules/transformer.py` (load hook of the attention), `quantization/core_vq.py` and `utils/quantize.py` of `moshi`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from moshijax.errors import DataError
from moshijax.weights.names import Group, Renamed, concatenated, renamed
from moshijax.weights.tensors import Tensors

#: Older ends of names -> the ones in use.
OLDER = {
    "_codebook.inited": "_codebook._initialized",
    "_codebook.cluster_size": "_codebook.cluster_usage",
    "_codebook.embed_avg": "_codebook.embedding_sum",
    "_codebook.embed_sum": "_codebook.embedding_sum",
    ".in_proj.weight": ".in_proj_weight",
}
_SPLIT = re.compile(r"^(.*)\.(in|out)_projs\.(\d+)\.weight$")
_FUSED = re.compile(r"^(.*)\.(in_proj_weight|out_proj\.weight)(_scb)?$")
SCALE = "_scb"


def _fused_name(name: str) -> tuple[str, int]:
    """The name in a released file, and which of its parts this is."""
    if name.endswith(SCALE):
        ours, number = _fused_name(name.removesuffix(SCALE))
        return ours + SCALE, number
    if match := _SPLIT.match(name):
        return f"{match[1]}.{'in_proj_weight' if match[2] == 'in' else 'out_proj.weight'}", int(match[3])
    for old, new in OLDER.items():
        if name.endswith(old):
            return name[: -len(old)] + new, 0
    return name, 0


def fused(tensors: Tensors, where: str) -> Renamed:
    """Open a file of the PyTorch package, in either spelling, under the names of the released files.

    Raises:
      DataError: two tensors that say the same, or parts that do not fit together.
    """
    parts: dict[str, dict[int, str]] = {}
    for name in tensors.shapes:
        ours, number = _fused_name(name)
        if number in parts.setdefault(ours, {}):
            raise DataError(f"{where} has {name} and {parts[ours][number]}, which say the same; keep one of them")
        parts[ours][number] = name
    groups = []
    for ours, numbered in parts.items():
        names = [numbered[i] for i in sorted(numbered)]
        shapes = [tuple(tensors.shapes[name]) for name in names]
        if sorted(numbered) != list(range(len(names))) or len(set(shapes)) > 1:
            found = ", ".join(f"{name} {list(shape)}" for name, shape in zip(names, shapes, strict=True))
            raise DataError(f"{where}: parts of {ours} do not fit together: {found}; fetch the file again")
        if len(names) == 1:
            groups.append(renamed(names[0], ours, shapes[0]))
        else:
            groups.append(concatenated(names, ours, (sum(shape[0] for shape in shapes), *shapes[0][1:])))
    return Renamed(tensors, groups, reading=True)


def spelling(tensors: Tensors) -> str:
    """Return the format of a file: "kyutai" with split projections, "kyutai-fused" with those of the released files."""
    return "kyutai" if any(_SPLIT.match(name) for name in tensors.shapes) else "kyutai-fused"


def split(tensors: Tensors, depth_weights: int = 1) -> Renamed:
    """View tensors with released names under the names that the package has in memory.

    Args:
      tensors: under released names.
      depth_weights: attention weights of every layer of the depth transformer.
    """
    groups = []
    for name, shape in tensors.shapes.items():
        if match := _FUSED.match(name):
            count = depth_weights if name.startswith("depformer.") else 1
            stem = f"{match[1]}.{match[2].split('_')[0]}_projs"
            groups.append(concatenated([f"{stem}.{i}.weight{match[3] or ''}" for i in range(count)], name, shape))
        else:
            groups.append(renamed(name, name, shape))
    return Renamed(tensors, groups, reading=False)


# --- depth steps ----------------------------------------------------------------------------------------------------

_PER_STEP = re.compile(r"^(linears|depformer_(?:in|emb|norms))\.(\d+)\.|^(depformer\.layers\.\d+\.gating)\.(\d+)\.")
_STACKED = re.compile(r"^depformer\.layers\.\d+\.self_attn\.(in_proj_weight|out_proj\.weight)(_scb)?$")


def depth_steps(tensors: Tensors) -> int:
    """Return the number of heads of the depth transformer, one per step."""
    return sum(bool(re.match(r"linears\.\d+\.weight$", name)) for name in tensors.shapes)


def widened(tensors: Tensors) -> Renamed:
    """View a model with twice the depth steps, the second half a copy of the first (as `personaplex` loads them).

    The token table between the halves exists in neither; it is zero.
    """
    steps, groups = depth_steps(tensors), []

    def doubled(arrays: list[np.ndarray]) -> list[np.ndarray]:
        return [np.concatenate([arrays[0], arrays[0]])]

    for name, shape in tensors.shapes.items():
        if _STACKED.match(name):
            groups.append(Group({name: shape}, {name: (2 * shape[0], *shape[1:])}, doubled))
            continue
        groups.append(renamed(name, name, shape))
        if match := _PER_STEP.match(name):
            stem, k = match[1] or match[3], int(match[2] or match[4])
            groups.append(renamed(name, name.replace(f"{stem}.{k}.", f"{stem}.{k + steps}.", 1), shape))
    for name, shape in tensors.shapes.items():
        if name.startswith("depformer_emb.0."):
            between = name.replace(".0.", f".{steps - 1}.", 1)
            groups.append(Group({name: shape}, {between: shape}, lambda arrays: [np.zeros_like(arrays[0])]))
    return Renamed(tensors, groups, reading=True)


# --- int8 -----------------------------------------------------------------------------------------------------------


def dequantise(weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return float32 weights `[out, in]` from int8 ones and the largest magnitude of each row."""
    return weight.astype(np.float32) * scale.astype(np.float32)[:, None] / np.float32(127)


def quantise(weight: np.ndarray, scale: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return int8 weights and the magnitudes by which they are scaled.

    These are the given ones where they still fit, else the largest of each row.
    """
    weight = weight.astype(np.float32)
    largest = np.abs(weight).max(axis=1) if weight.size else np.zeros(len(weight), np.float32)
    if scale is not None:
        # Rows that grew since have another scale; bfloat16 rounds the largest entry up by less than this.
        largest = np.where(largest <= scale * np.float32(1.002), scale, largest)
    step = np.where(largest > 0, largest, 1)[:, None]
    return np.rint(weight * np.float32(127) / step).astype(np.int8), largest


def scales(tensors: Tensors) -> dict[str, str]:
    """Return the names of int8 weights and of their scales."""
    return {name: name + SCALE for name in tensors.shapes if name + SCALE in tensors.shapes}


def dequantised(tensors: Tensors, where: str) -> Tensors:
    """View the same tensors with float32 in place of int8 weights; a file without any is returned as it is.

    Raises:
      DataError: scales are missing, or do not fit their weights.
    """
    scaled = scales(tensors)
    for name, scale in scaled.items():
        rows = tuple(tensors.shapes[name])[:1]
        if tensors.dtypes[name] != np.int8 or tuple(tensors.shapes[scale]) != rows:
            raise DataError(
                f"{where}: {scale} {list(tensors.shapes[scale])} is not one scale per row of the int8 weights {name} "
                f"{tensors.dtypes[name]} {list(tensors.shapes[name])}; fetch the file again"
            )
    lonely = [name for name, dtype in tensors.dtypes.items() if dtype.kind in "iu" and name not in scaled]
    lonely += [n for n in tensors.shapes if n.endswith(SCALE) and n.removesuffix(SCALE) not in tensors.shapes]
    if lonely:
        raise DataError(
            f"{where}: {lonely[0]} {tensors.dtypes[lonely[0]]} has no counterpart: int8 weights and their "
            "`weight_scb` come together; fetch the file again, or one of another precision"
        )
    if not scaled:
        return tensors
    held = set(scaled.values())
    groups = [
        Group({name: shape, scaled[name]: shape[:1]}, {name: shape}, lambda a: [dequantise(*a)])
        if name in scaled
        else renamed(name, name, shape)
        for name, shape in tensors.shapes.items()
        if name not in held
    ]
    return Renamed(tensors, groups, reading=True, dtypes=dict.fromkeys(scaled, "float32"))


def quantised(tensors: Tensors, names: Mapping[str, np.ndarray | None]) -> Renamed:
    """View tensors with int8 in place of the named weights, with the given scales where they are known."""
    groups = [
        Group(
            {name: shape, name + SCALE: shape[:1]},
            {name: shape},
            write=lambda a, scale=names[name]: list(quantise(a[0], scale)),
        )
        if name in names
        else renamed(name, name, shape)
        for name, shape in tensors.shapes.items()
    ]
    types = dict.fromkeys(names, "int8") | {name + SCALE: "float32" for name in names}
    return Renamed(tensors, groups, reading=False, dtypes=types)


#: Ends of names of the bias-free linear maps, which int8 files hold as int8 and which adapters add to.
LINEAR = re.compile(
    r"(\.in_proj_weight|\.out_proj\.weight|\.linear_in\.weight|\.linear_out\.weight|\.linear[12]\.weight"
    r"|^depformer_in\.\d+\.weight|^linears\.\d+\.weight|^text_linear\.weight|^extra_heads\.\d+\.weight"
    r"|\.low_rank\.weight|\.out[12]\.weight|\.output_proj\.weight)$"
)


def stem_of(weight: str) -> str:
    """Return the name of the linear map of a weight."""
    return weight.removesuffix("_weight") if weight.endswith(".in_proj_weight") else weight.removesuffix(".weight")


def linear_weights(tensors: Tensors, extra: Mapping[str, np.ndarray]) -> dict[str, np.ndarray | None]:
    """Return the weights that an int8 file holds as int8, with their scales where an earlier file had them."""
    held = {name.removesuffix(SCALE): scale for name, scale in extra.items() if name.endswith(SCALE)}
    return held or {name: None for name in tensors.shapes if LINEAR.search(name)}


def linear_maps(tensors: Tensors) -> list[str]:
    """Return the weights to which an adapter can add: those of linear maps without a bias."""
    return [name for name in tensors.shapes if LINEAR.search(name) and f"{stem_of(name)}.bias" not in tensors.shapes]
